"""Bytecodes that one streamed request costs a gateway with SQLite, by where they are spent.

    python tests/gateway_cost.py

They are the same on a busy machine as on a quiet one, which times are not. Counted are the
gateway's thread and the one that writes to SQLite, from the connection to the settled row, with the
scripted upstream, which is in the same thread. Work inside of C is not seen: parsers, msgspec,
SQLite, and the event loop where that is uvloop.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections import Counter

import httpx

from accounts_support import opened
from gateway_support import RunningGateway, request_of
from gateway_upstream import ScriptedUpstream

WARM_UP, COUNTED = 30, 20
_PLACE = re.compile(r"(lingflash/\w+/[\w.]+|site-packages/\w+|python3\.\d+/(?!site-)\w+)")


class Accounts:
    """Accounts in SQLite, opened in the gateway's own loop when it is ready."""

    async def open(self, url):
        self.own = await opened(url)
        self.key, _ = await self.own.keys.create({"name": "cost"})

    def __getattr__(self, name):
        return getattr(self.own, name)

    async def close(self):
        await self.own.close()


def counter(counts):
    """A tracer that counts what is run, by its file."""

    def count(frame, event, _):
        if event == "opcode":
            counts[frame.f_code.co_filename] += 1
        return count

    def trace(frame, event, _):
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return count

    return trace


def main():
    counts = Counter()
    with tempfile.TemporaryDirectory() as folder:
        accounts = Accounts()
        gateway = RunningGateway({"One": ScriptedUpstream(words=1)}, accounts=accounts)
        gateway.in_loop(accounts.open, f"sqlite:///{folder}/gateway.db")
        headers = {"authorization": f"Bearer {accounts.key}"}
        path = "/v1/chat/completions"

        def ask(count):
            for _ in range(count):
                body = {**request_of(path), "stream": True}
                httpx.post(f"{gateway.url}{path}", json=body, headers=headers).raise_for_status()

        def watch(tracer):
            accounts.database._writer.submit(sys.settrace, tracer).result()
            gateway.in_loop(sys.settrace, tracer)

        ask(WARM_UP)
        watch(counter(counts))
        ask(COUNTED)
        watch(None)
        gateway.stop()
    places = Counter()
    for file, count in counts.items():
        found = _PLACE.search(file.replace(os.sep, "/"))
        places[found.group(1) if found else "generated, tests"] += count
    print(f"{counts.total() / COUNTED:9,.0f} bytecodes a request")
    for place, count in places.most_common(16):
        print(f"{count / COUNTED:9,.0f} {place}")


if __name__ == "__main__":
    main()
