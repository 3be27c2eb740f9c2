"""Many replicas of `ling serve`: placed, watched, replaced and scaled. Ray is the control plane.

up        reads cluster.toml, places replicas by Ray, and is the directory that gateways ask
replica   an actor of Ray: takes its GPUs, starts `ling serve` as its child, drains it

A client's stream goes from the gateway to the replica's own port; nothing of it passes here.

config.py      cluster.toml
autoscaler.py  how many replicas: predicted time to first token; no clock, no I/O
rollout.py     which to start and which to drain next; the same
members.py     what is known of each replica
controller.py  the loop that does what the two say
placer.py      what the controller asks of whoever places replicas
on_ray.py      Ray, the one module that imports it
ray_environment.py  variables that Ray reads on import
child.py       one `ling serve` and what becomes of it; no Ray
serve_child.py the child's first lines: it ends with whoever started it
app.py         the directory, and what `status`, `drain`, `restart` and `down` ask
client.py      asks that
server.py      all of it as one server
"""
