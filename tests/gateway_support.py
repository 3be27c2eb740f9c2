"""A gateway in a thread, with accounts in memory."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from decimal import Decimal
from pathlib import Path

import httpx

from gateway_upstream import ScriptedUpstream
from lingflash.core.errors import AuthenticationError, InsufficientCreditsError, RateLimitError
from lingflash.gateway.accounting import Admission, Caller, Home, Session
from lingflash.gateway.config.load import read_config
from lingflash.gateway.server import reload_config, serve_gateway
from lingflash.httpd.server import bind_socket

KEY = "sk-lf-caller"
HOUSE_KEY = "sk-house-key-of-the-house"


class MemoryAccounts:
    """The protocol of the accounts, without a store."""

    def __init__(self):
        self.callers = {KEY: Caller(key_hash="h1", name="test", label="sk-...r")}
        self.rows = []  # (Start, End)
        self.refusals = []
        self.open = {}
        self.sessions = {}
        self.stored_keys = {}  # slug to ProviderKeys
        self.progress = []
        self.budget_pico = None
        self.limit = None
        self.faults = []
        self.closed = False

    @property
    def degraded(self):
        return ()

    async def authenticate(self, secret):
        if secret not in self.callers:
            raise AuthenticationError("The API key is not valid.")
        return self.callers[secret]

    async def admit(self, start):
        await asyncio.sleep(0)
        if self.budget_pico is not None and start.reserve_pico > self.budget_pico:
            self.refusals.append(start)
            raise InsufficientCreditsError("The budget of this key does not suffice.")
        if self.limit is not None and len(self.open) >= self.limit:
            self.refusals.append(start)
            raise RateLimitError("Too many at once.", headers={"x-ratelimit-limit": "1"})
        session = self.sessions.get(start.session_id) or Session(id=start.session_id)
        headers = {"x-ratelimit-remaining-requests": "9"}
        admission = Admission(start=start, session=session, limit_headers=headers)
        self.open[start.id] = admission
        return admission

    def note_progress(self, admission, usage, cost, **more):
        if admission.start.id not in self.open:
            self.faults.append("progress of a request that is not open")
        self.progress.append((admission.start.id, usage, cost))

    async def settle(self, admission, end):
        if self.open.pop(admission.start.id, None) is None:
            self.faults.append("settled twice")
        start = admission.start
        self.rows.append((start, end))
        known = self.sessions.get(start.session_id) or Session(id=start.session_id)
        rate = known.cache_rate
        if known.turns and end.usage is not None and end.usage.prompt_tokens:
            rate = end.usage.cached_tokens / end.usage.prompt_tokens
        self.sessions[start.session_id] = Session(
            id=start.session_id,
            turns=known.turns + 1,
            pinned_endpoint=end.endpoint or known.pinned_endpoint,
            cache_rate=rate,
        )
        await asyncio.sleep(0)

    async def home_of(self, caller, response_id):
        homes = [
            Home(
                endpoint=end.endpoint,
                replica=end.replica,
                byok_id=end.byok_id,
                key_hash=start.caller.key_hash,
                session_id=start.session_id,
            )
            for start, end in reversed(self.rows)
            if end.response_id == response_id
        ]
        return next((h for h in homes if h.key_hash == caller.key_hash), next(iter(homes), None))

    async def provider_keys(self, caller, provider, names):
        return self.stored_keys.get(provider, ())

    async def pins(self):
        return Counter(each.pinned_endpoint for each in self.sessions.values())

    async def close(self):
        self.closed = True


class RunningGateway:
    """A gateway and its upstreams in one thread.

    Args:
        upstreams: by name; a ScriptedUpstream, or the URL of a real server.
        tables: changes of the file's tables.
    """

    def __init__(self, upstreams, *, tables=None, accounts=None, routers=(), environ=None, port=0):
        self.upstreams = upstreams
        self.accounts = accounts or MemoryAccounts()
        self.environ = {"HOUSE_KEY": HOUSE_KEY, **(environ or {})}
        self._tables = tables or (lambda tables: tables)
        self._routers = routers
        self.sock = bind_socket("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self.sock.getsockname()[1]}"
        headers = {"authorization": f"Bearer {KEY}"}
        self.client = httpx.Client(base_url=self.url, timeout=30, headers=headers)
        self.state = None
        self.error = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(20)
        if self.error is not None:
            raise self.error

    def tables(self):
        """The file as it would be parsed."""
        urls = {n: getattr(u, "url", u) for n, u in self.upstreams.items()}
        return self._tables(gateway_tables(urls))

    def config(self, tables=None):
        return read_config(
            tables or self.tables(), self.environ, file="gateway.toml", folder=Path()
        )

    def _run(self):
        async def main():
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            scripted = [u for u in self.upstreams.values() if isinstance(u, ScriptedUpstream)]
            for each in scripted:
                await each.start()
            try:
                await serve_gateway(
                    self.config(),
                    self.accounts,
                    self.sock,
                    close=self.accounts.close,
                    reload=self.config,
                    routers=self._routers,
                    on_ready=self._on_ready,
                )
            finally:
                for each in scripted:
                    await each.stop()

        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self._ready.set()

    def _on_ready(self, state):
        self.state = state
        self.num_tasks = len(asyncio.all_tasks())
        self._ready.set()

    def in_loop(self, function, *args):
        """Run something in the gateway's thread; its result."""

        async def call():
            result = function(*args)
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(20)

    def reload(self):
        self.in_loop(reload_config, self.state, self.config)

    def stop(self):
        self.client.close()
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def post(self, path="/v1/chat/completions", **fields):
        options = {k: fields.pop(k) for k in ("headers",) if k in fields}
        return self.client.post(path, json={**request_of(path), **fields}, **options)

    def stream(self, path="/v1/chat/completions", **fields):
        """Status, headers and the bytes of a streamed answer."""
        body = {**request_of(path), "stream": True, **fields}
        with self.client.stream("POST", path, json=body) as response:
            return response.status_code, response.headers, response.read()

    def leaked(self):
        """What is still open after all answers: tasks and admissions."""

        def look():
            tasks = [t for t in asyncio.all_tasks() if "RelayedAnswer" in repr(t.get_coro())
                     or "Run." in repr(t.get_coro())]  # fmt: skip
            return [*tasks, *self.accounts.open, *self.state.in_flight, *self.accounts.faults]

        return self.in_loop(look)


class OpenToAll(MemoryAccounts):
    """Accounts that take any key."""

    async def authenticate(self, secret):
        return self.callers[KEY]


def start_gateway_to(*urls, **options):
    """A gateway to real servers of ling-nano, for whoever has any key."""

    def tables(tables):
        tables["model"][0] |= {"name": "ling-nano", "aliases": []}
        for endpoint in tables["model"][0]["endpoint"]:
            endpoint["upstream_model"] = "ling-nano"
        return tables

    upstreams = {f"replica-{i}": url for i, url in enumerate(urls)}
    return RunningGateway(upstreams, tables=tables, accounts=OpenToAll(), **options)


@contextlib.contextmanager
def gateway_to(*urls):
    """The same with an end; its URL."""
    gateway = start_gateway_to(*urls)
    try:
        yield f"{gateway.url}/v1"
    finally:
        gateway.stop()


def request_of(path):
    """A request for an endpoint."""
    messages = [{"role": "user", "content": "hi"}]
    if path.endswith("/messages"):
        return {"model": "test/model", "messages": messages, "max_tokens": 64}
    if path.endswith("/responses"):
        return {"model": "test/model", "input": "hi", "max_output_tokens": 64}
    if path.endswith("/chat/completions"):
        return {"model": "test/model", "messages": messages, "max_tokens": 64}
    return {"model": "test/model", "prompt": "hi", "max_tokens": 64}


def gateway_tables(urls):
    """A file with one model at each of these upstreams, equal but for the name."""
    upstreams = [
        {
            "name": name,
            "base_url": url,
            "dialects": ["chat", "completions", "responses", "messages"],
            "api_key_variable": "HOUSE_KEY",
            "allow_private_address": True,
        }
        for name, url in urls.items()
    ]
    price = {
        "prompt": Decimal("0.10"),
        "completion": Decimal("0.30"),
        "cache_read": Decimal("0.02"),
    }
    endpoints = [
        {
            "upstream": name,
            "upstream_model": "up",
            "context_tokens": 8192,
            "price": [price],
        }
        for name in urls
    ]
    return {
        "upstream": upstreams,
        "model": [{"name": "test/model", "aliases": ["model"], "endpoint": endpoints}],
    }


def impatient(tables):
    """The file with deadlines for upstreams that never answer."""
    short = Decimal("0.5")
    deadlines = {"connect_s": 5, "first_byte_s": short, "idle_s": short, "total_s": Decimal("2.5")}
    return {**tables, "deadlines": deadlines}
