"""A cluster without servers: the gateway's router and the engine's cache, on a clock of its own.

sessions.py   what is asked: generated sessions of agents, or a trace that was recorded
cache.py      what a replica keeps: the engine's own bookkeeping, without tensors
replica.py    how long a replica takes, by rates that were measured
rates.py      those rates, out of benchmarks/
cluster.py    all of it together: one policy, one run
report.py     `ling cluster simulate`: policies beside each other
sums.py       `ling cluster sums`: how many cards so many tokens a day take
"""
