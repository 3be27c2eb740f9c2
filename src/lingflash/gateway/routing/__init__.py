"""Which endpoints may serve a request, and in which order. Pure: no clock, no network, no store.

wish = read_wish(fields, headers)                # what the request asks of routing
plan = make_plan(catalog, wish, ...)             # candidates in order, and the rule that chose
for candidate in plan.candidates: ...

catalog.py       models and their endpoints, names, prices
wish.py          `models`, `provider`, session: what a request says of its route
filters.py       what excludes an endpoint, in words
ranking.py       session pin, order, sort, price at the session's cache rate
plan.py          all of it together, with the keys that may be used
breaker.py       who is left alone for a while
replicas.py      which of an upstream's replicas serves
belief.py        what each of them is believed to hold, by
chain.py         the beginnings of a prompt
measurements.py  what was seen of an endpoint's speed
"""
