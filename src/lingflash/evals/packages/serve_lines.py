"""Answers lines of JSON, [function, values], with lines of JSON, for the other files here."""

import json
import os
import sys


def serve(make):
    """Serve the methods of what `make` gives, until standard input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What a package prints is no answer, and most of it no news.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    served = make()  # what is wrong with it is said on standard error
    for line in sys.stdin:
        function, values = json.loads(line)
        try:
            answer = {"value": getattr(served, function)(**values)}
        except Exception as error:  # the package's, of any class: the item's answer
            answer = {"error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(answer) + "\n")
        out.flush()
