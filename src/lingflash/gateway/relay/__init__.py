"""One request's way through the gateway: admitted, tried at one upstream after another, settled.

call.py        a request as it came, and as an upstream gets it
planning.py    what routing has to know of the caller, and what nobody may serve
usage.py       token counts in the words of each dialect
frames.py      what an event of a stream is: content, usage, end, error, or nothing yet
answers.py     the same of an answer that comes whole
additions.py   the fields that the gateway adds, and the usage that it hides
failures.py    why an attempt failed, what that says of the upstream, and what the caller hears
bill.py        what is reserved, and what an answer costs
attempt.py     one attempt: its key, its request, its answer
last_words.py  the event that ends a stream that broke off
report.py      what log, metrics and a collector hear of a request that has ended
run.py         all of it in order; settles exactly once, whatever happens
response.py    the same as an answer of the server, whose client may leave
"""
