"""`ling bench cluster`: recorded conversations over two replicas, beside one with their memory.

One `ling serve` is asked turn by turn, which records the conversations. The same prompts then go
through a real gateway to two with half its memory each, once for every way to share requests; what
is computed there is held against the one, and against what the simulator says of the same prompts.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lingflash.bench.over_http.gateway import new_key
from lingflash.bench.over_http.scripted_vendor import HOST
from lingflash.bench.over_http.server_process import ServerProcess, free_port, running
from lingflash.bench.over_http.stream_client import stream_chat
from lingflash.cluster.simulation.cache import CacheShape
from lingflash.cluster.simulation.cluster import Cluster, ClusterShape
from lingflash.cluster.simulation.replica import Rates
from lingflash.cluster.simulation.sessions import Session, Turn, write_sessions
from lingflash.gateway.routing.replicas import BALANCES, Balance
from lingflash.link.http_client import Address, BadAnswer, call
from lingflash.records.record import Record, check_out, require

_MODEL = "ling-nano"
_NUM_APPS = 3
_NUM_REPLICAS = 2
_DRAWS = 16
# Words of what is new in a turn: (fewest, most), drawn uniformly; a word has one to three tokens.
_SYSTEM, _USER, _TOOL_RESULT = (200, 350), (10, 50), (30, 120)
_TOOL_SHARE = 0.6
_ANSWER_TOKENS = 64
_MAX_MODEL_LEN = 8192
# Of ling-nano: tokens whose cache takes as much as the states of a sequence.
_CHECKPOINT_TOKENS = 48
_MAX_RECOMPUTED, _MAX_APART, _MAX_ADDED_MS = 1.1, 0.05, 3.0
_WORDS = """
the train to Lisbon leaves at nine and weather forecast shows rain over hills while prices of coffee
rise again in small shops near harbour where boats wait for wind from north
""".split()  # noqa: SIM905  (a list of so many strings is no easier to read)
_FILE = """
[server]
port = {port}
log_level = "warning"

[accounts]
database = "{database}"

[[directory]]
name = "replicas"
kind = "static"
replicas = {urls}

[[upstream]]
name = "replicas"
directory = "replicas"
balance = "{balance}"

[[model]]
name = "{model}"

[[model.endpoint]]
upstream = "replicas"
"""


@dataclass(slots=True)
class _Conversation:
    """One that grows by turns; answers and sizes (prompt, cached, answer) are the recording's."""

    app: int
    system: str
    questions: list[str]
    answers: list[str] = field(default_factory=list[str])
    sizes: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])

    def prompt(self, number: int) -> list[dict[str, str]]:
        """Everything up to a turn's question."""
        found = [{"role": "system", "content": self.system}]
        for question, answer in zip(self.questions[:number], self.answers, strict=False):
            found.append({"role": "user", "content": question})
            found.append({"role": "assistant", "content": answer})
        return [*found, {"role": "user", "content": self.questions[number]}]


@dataclass(slots=True)
class _Run:
    """What a run of all conversations took."""

    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def computed_tokens(self) -> int:
        return self.prompt_tokens - self.cached_tokens


async def run_cluster(
    *,
    num_conversations: int,
    max_turns: int,
    max_num_seqs: int,
    balances: Sequence[str],
    num_first: int,
    seed: int,
    trace_out: Path | None,
    out: Path | None,
    allow_dirty: bool,
) -> None:
    """Measure and record.

    Raises:
        ConfigError: a value is out of range.
        EngineError: a server did not start.
        BadAnswer: an answer was none.
    """
    require(num_conversations >= 2, "--conversations", num_conversations, "2 or more")
    require(max_turns >= 2, "--turns", max_turns, "2 or more")
    require(max_num_seqs >= 1, "--max-num-seqs", max_num_seqs, "1 or more")
    require(num_first == 0 or num_first >= 2, "--first-tokens", num_first, "0, or 2 or more")
    for each in balances:
        require(each in BALANCES, "--balance", each, ", ".join(BALANCES))
    if trace_out is not None:
        check_out(trace_out, "--trace-out")
    record = Record("cluster", out, allow_dirty)
    record.settings = {
        "model": _MODEL,
        "conversations": num_conversations,
        "turns": max_turns,
        "beginnings that they share": _NUM_APPS,
        "replicas": _NUM_REPLICAS,
        "max_num_seqs of a replica": max_num_seqs,
        "seed": seed,
        "num_first": num_first,
    }
    conversations = _draw(num_conversations, max_turns, seed)
    order = _order(num_conversations, max_turns, seed)
    async with running(_serve(max_num_seqs * _NUM_REPLICAS)) as server:
        alone = await _play(server.address, conversations, order, is_recording=True)
        shared = await _shared_tokens(server.address, conversations)
    record.derived["one replica: prompt tokens"] = alone.prompt_tokens
    record.derived["one replica: computed tokens"] = alone.computed_tokens
    sessions = _as_sessions(conversations, shared)
    if trace_out is not None:
        write_sessions(trace_out, sessions)
    real: dict[str, int] = {}
    simulated: dict[str, float] = {}
    for balance in balances:
        async with _cluster(max_num_seqs, balance) as (_, through, num_blocks):
            run = await _play(through, conversations, order)
        real[balance] = run.computed_tokens
        cache = CacheShape(
            tokens=num_blocks * 16, max_num_seqs=max_num_seqs, checkpoint_tokens=_CHECKPOINT_TOKENS
        )
        simulated[balance] = _simulate(cache, balance, sessions, order)
    _compare(record, alone, real, simulated)
    if num_first:
        await _measure_first(record, conversations, num_first, max_num_seqs)
    record.notes += [
        "one request at a time, turns of all conversations in an order drawn for each round; the "
        "same prompts in every run, whose answers were recorded at the one replica",
        "a session's first replica is often that of the largest hash of its name and the replica's "
        f"port; the simulator's numbers are means of {_DRAWS} draws",
        "the one replica has twice the blocks and slots of each of the two",
    ]
    record.finish()


def _draw(count: int, max_turns: int, seed: int) -> list[_Conversation]:
    rng = random.Random(seed)

    def words(span: tuple[int, int]) -> str:
        return " ".join(rng.choices(_WORDS, k=rng.randint(*span)))

    systems = [f"You are agent {i} of the harbour. {words(_SYSTEM)}" for i in range(_NUM_APPS)]
    return [
        _Conversation(
            i % _NUM_APPS,
            systems[i % _NUM_APPS],
            [
                f"Note {i}.{turn}: "
                + words(_TOOL_RESULT if turn and rng.random() < _TOOL_SHARE else _USER)
                for turn in range(max_turns)
            ],
        )
        for i in range(count)
    ]


def _order(count: int, max_turns: int, seed: int) -> list[int]:
    """Whose turn it is; one order for all rounds would be round robin's luck."""
    rng = random.Random(seed + 1)
    return [i for _ in range(max_turns) for i in rng.sample(range(count), count)]


def _serve(max_num_seqs: int) -> ServerProcess:
    flags = ["--max-num-seqs", str(max_num_seqs), "--max-model-len", str(_MAX_MODEL_LEN)]
    return ServerProcess.ling_serve(_MODEL, [*flags, "--log-level", "warning"])


@contextlib.asynccontextmanager
async def _cluster(max_num_seqs: int, balance: str) -> AsyncIterator[tuple[Address, Address, int]]:
    """Replicas behind a gateway: the first one's address, the gateway's, and a replica's blocks."""
    async with contextlib.AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(running(_serve(max_num_seqs)))
            for _ in range(_NUM_REPLICAS)
        ]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = f"sqlite:///{folder}/gateway.db"
        through = Address(HOST, free_port(), await new_key(database))
        urls = [f"http://{each.address.host}:{each.address.port}" for each in servers]
        file = folder / "gateway.toml"
        text = _FILE.format(
            port=through.port,
            database=database,
            urls=json.dumps(urls),
            balance=balance,
            model=_MODEL,
        )
        file.write_text(text, encoding="utf-8")
        main = "import lingflash.cli as cli; cli.main()"
        command = [sys.executable, "-c", main, "gateway", "--config", str(file)]
        await stack.enter_async_context(running(ServerProcess(through, command)))
        yield servers[0].address, through, await _num_blocks(servers[0].address)


async def _num_blocks(address: Address) -> int:
    _, body = await call(address, "GET", "/metrics")
    for line in body.decode().splitlines():
        if line.startswith("lingflash_kv_blocks_total "):
            return int(float(line.split()[1]))
    raise BadAnswer("/metrics does not say how many blocks there are")


async def _play(
    address: Address,
    conversations: Sequence[_Conversation],
    order: Sequence[int],
    *,
    is_recording: bool = False,
) -> _Run:
    run = _Run()
    turns = [0] * len(conversations)
    for number in order:
        each, turn = conversations[number], turns[number]
        turns[number] += 1
        data = await _chat(address, each.prompt(turn), _ANSWER_TOKENS)
        usage = data["usage"]
        prompt, cached = usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
        run.prompt_tokens += prompt
        run.cached_tokens += cached
        if is_recording:
            each.answers.append(data["choices"][0]["message"]["content"] or "")
            each.sizes.append((prompt, cached, usage["completion_tokens"]))
    return run


async def _chat(
    address: Address, messages: Sequence[dict[str, str]], max_tokens: int, **fields: Any
) -> dict[str, Any]:
    payload = {"model": _MODEL, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
    status, body = await call(address, "POST", "/v1/chat/completions", {**payload, **fields})
    if status != 200:
        raise BadAnswer(f"status {status}: {body[:300]!r}")
    return json.loads(body)


async def _shared_tokens(address: Address, conversations: Sequence[_Conversation]) -> list[int]:
    """Tokens that the prompts of each beginning share."""
    found: list[int] = []
    for app in range(_NUM_APPS):
        system = next(each.system for each in conversations if each.app == app)
        payload = {"messages": [{"role": "system", "content": system}],
                   "add_generation_prompt": False}  # fmt: skip
        status, body = await call(address, "POST", "/tokenize", payload)
        if status != 200:
            raise BadAnswer(f"/tokenize: status {status}: {body[:300]!r}")
        found.append(json.loads(body)["count"])
    return found


def _as_sessions(conversations: Sequence[_Conversation], shared: Sequence[int]) -> list[Session]:
    """The recording as the simulator reads it: what each prompt adds to the last answer."""
    sessions: list[Session] = []
    for i, each in enumerate(conversations):
        turns: list[Turn] = []
        length = 0
        for number, (prompt, _, answer) in enumerate(each.sizes):
            following = each.sizes[number + 1][1] if number + 1 < len(each.sizes) else prompt
            # Where the next prompt was not found to this answer's end, it has other tokens there.
            is_rewritten = following < prompt + answer - 1
            turns.append(Turn(max(prompt - length, 1), answer, is_rewritten=is_rewritten))
            length = prompt + answer
        sessions.append(Session(f"conversation-{i}", f"app-{each.app}", shared[each.app], turns))
    return sessions


def _simulate(
    cache: CacheShape, balance: str, sessions: Sequence[Session], order: Sequence[int]
) -> float:
    """Prompt tokens computed, mean of some draws: hashes of the replicas' ports are luck."""
    shape = ClusterShape(
        num_replicas=_NUM_REPLICAS,
        # One request at a time: nobody waits, whatever the rates.
        rates=Rates(prefill_tokens_per_s=10_000, step_s=((1, 0.001),)),
        cache=cache,
        balance=_checked(balance),
    )
    draws: list[int] = []
    for i in range(_DRAWS):
        named = [replace(each, name=f"{each.name}, draw {i}") for each in sessions]
        draws.append(Cluster(shape).play_in_turn(named, order).computed_tokens)
    return sum(draws) / len(draws)


def _checked(balance: str) -> Balance:
    return next(each for each in BALANCES if each == balance)


def _compare(
    record: Record, alone: _Run, real: dict[str, int], simulated: dict[str, float]
) -> None:
    for balance, computed in real.items():
        record.derived |= {
            f"{balance}: computed tokens": computed,
            f"{balance}: simulated": simulated[balance],
            f"{balance}: over one replica": computed / alone.computed_tokens,
        }
        name = f"simulated tokens computed, {balance}, part from the real ones"
        record.promise(name, abs(simulated[balance] / computed - 1), _MAX_APART, "at most")
    if "belief" in real:
        name = "prompt tokens computed over two replicas, over one with their memory"
        value = real["belief"] / alone.computed_tokens
        record.promise(name, value, _MAX_RECOMPUTED, "at most")
    if len(real) > 1:
        swapped = sum(
            (real[a] - real[b]) * (simulated[a] - simulated[b]) < 0
            and abs(real[a] - real[b]) > _MAX_APART * real[a]
            for a in real
            for b in real
            if a < b
        )
        record.promise("pairs of ways that the simulator has the wrong way", swapped, 0, "at most")


async def _measure_first(
    record: Record, conversations: Sequence[_Conversation], num_first: int, max_num_seqs: int
) -> None:
    """Time to the first token of a turn whose prompt is cached, direct and through the gateway."""
    messages = conversations[0].prompt(len(conversations[0].sizes) - 1)
    times: dict[str, list[float]] = {"direct": [], "through": []}
    async with _cluster(max_num_seqs, "belief") as (direct, through, _):
        for i in range(num_first + 20):  # the first ones warm up, both replicas
            for name, address in (("direct", direct), ("through", through)):
                stream = await stream_chat(address, 4, model=_MODEL, messages=messages)
                await stream.read_texts()
                if i >= 20:
                    times[name].append(1e3 * (stream.first_s - stream.started_s))
    for name, samples in times.items():
        record.add(f"first token of a cached turn, {name}", "ms", samples)
    pairs = zip(times["direct"], times["through"], strict=True)
    added = record.add("first token of a cached turn, added", "ms", [b - a for a, b in pairs])
    record.promise(
        "ms added to the first token by gateway and directory, p50",
        added.median,
        _MAX_ADDED_MS,
        "at most",
    )
