"""One request's way through the gateway: admitted, tried at one upstream after another, settled.

call.py        a request as it came, and as an upstream gets it
usage.py       token counts in the words of each dialect
frames.py      what an event of a stream is: content, usage, end, error, or nothing yet
answers.py     the same of an answer that comes whole
additions.py   the fields that the gateway adds, and the usage that it hides
failures.py    why an attempt failed, what that says of the upstream, and what the caller hears
attempt.py     one attempt: its key, its request, its answer
relay.py       all of it in order; settles exactly once, whatever happens
"""
