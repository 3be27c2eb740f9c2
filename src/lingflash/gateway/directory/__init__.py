"""Where the gateway learns of replicas: servers of one model that stand behind one upstream.

watch = Watch("fleet", StaticDirectory(...))     # asks it again and again, in a task
for replica in watch.replicas: ...               # as of its newest answer, without waiting

directory.py  the interface, and the error of one that cannot be asked
static.py     URLs in the gateway's file, asked whether they serve
dns.py        every address that a host name has, asked the same: a headless service of Kubernetes
cluster.py    asks `ling cluster`, which knows
watch.py      the newest answer; of a directory that is silent, the last one
make.py       from the gateway's file
watches.py    those of all directories in the file, over its reloads
"""
