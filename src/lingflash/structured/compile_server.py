"""Checks grammars where they can do no harm: python -m lingflash.structured.compile_server FD.

A hundred bytes of schema can ask for minutes of work and gigabytes of memory inside the grammar
library, which nothing can interrupt. So a process without torch and without threads keeps the
vocabulary and forks a child for each grammar. The child ends with its answer, or by its limits of
processor time, time and memory, or is killed by whoever asked; nothing of it stays.

At socket FD come the vocabulary, once, and then the sockets of jobs. A job's socket brings what is
asked for and takes back the child's process id, then the answer; it ends without one where the
child did. The process ends when FD does.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from llguidance import LLTokenizer

from lingflash.core.errors import LingflashError
from lingflash.core.types import GrammarSpec
from lingflash.structured.grammar import check_grammar
from lingflash.structured.vocabulary import Vocabulary

# Of processor time: good schemas take 1 to 300 milliseconds.
CPU_LIMIT_S = 1.0
# On a busy machine, where that second may take longer; and a dead parent kills nobody.
TIME_LIMIT_S = 2.5
# Beyond what the process has already: good grammars take some 20 MB.
MEMORY_LIMIT_BYTES = 256 * 2**20

PID = struct.Struct("!I")
LENGTH = struct.Struct("!I")


class VocabularyMessage(msgspec.Struct):
    """What of a vocabulary decides how long grammars take.

    Args:
        token_bytes: of every token, by id.
        special_ids: tokens that are commands.
    """

    token_bytes: list[bytes]
    special_ids: list[int]


class Job(msgspec.Struct):
    """A grammar to check.

    Args:
        spec: what is asked for.
        param: the request field that it came in, for messages.
    """

    spec: GrammarSpec
    param: str | None


class Outcome(msgspec.Struct):
    """What came of a job.

    Args:
        spec: the grammar to use; None if it cannot be compiled.
        code: of the error then.
        message: for the client.
        param: the field at fault.
    """

    spec: GrammarSpec | None = None
    code: str | None = None
    message: str = ""
    param: str | None = None


def main(fd: int) -> int:
    """Serve the parent at the other end of socket `fd` until it hangs up; the exit code."""
    # The parent decides when this ends, by closing its socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    control = socket.socket(fileno=fd)
    tokenizer = _read_vocabulary(control)
    control.sendall(b"\0")
    while True:
        data, jobs, _, _ = socket.recv_fds(control, 1, 1)
        if not data:
            return 0
        for job in jobs:
            _fork(control, socket.socket(fileno=job), tokenizer)


def _read_vocabulary(control: socket.socket) -> LLTokenizer | None:
    """Index the vocabulary; without one grammars are checked as far as that goes."""
    (length,) = LENGTH.unpack(_read(control, LENGTH.size))
    if not length:
        return None
    message = msgspec.msgpack.decode(_read(control, length), type=VocabularyMessage)
    ids = {token: i for i, token in reversed(list(enumerate(message.token_bytes)))}

    def encode(text: str) -> list[int]:
        """Byte by byte: which tokens spell a forced text decides nothing here."""
        return [ids[bytes((byte,))] for byte in text.encode() if bytes((byte,)) in ids]

    return Vocabulary(
        token_bytes=message.token_bytes,
        special_ids=message.special_ids,
        stop_ids=message.special_ids[:1],
        size=len(message.token_bytes),
        encode=encode,
    ).build()


def _read(sock: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = sock.recv(count - len(parts))
        if not part:
            sys.exit(0)  # the parent is gone
        parts += part
    return bytes(parts)


def _fork(control: socket.socket, job: socket.socket, tokenizer: LLTokenizer | None) -> None:
    try:
        pid = os.fork()
    except OSError:  # no memory or no process to be had: the job ends without an answer
        pid = -1
    if pid == 0:
        try:
            control.close()
            _work(job, tokenizer)
        except BaseException:
            os._exit(1)  # never into the parent's loop
        os._exit(0)
    job.close()


def _work(job: socket.socket, tokenizer: LLTokenizer | None) -> None:
    """Child: do one job within its limits."""
    _limit_everything()
    job.sendall(PID.pack(os.getpid()))
    parts = []
    while part := job.recv(1 << 20):
        parts.append(part)
    asked = msgspec.msgpack.decode(b"".join(parts), type=Job)
    job.sendall(msgspec.msgpack.encode(_outcome(lambda: _checked(asked, tokenizer))))


def _checked(asked: Job, tokenizer: LLTokenizer | None) -> GrammarSpec:
    return check_grammar(asked.spec, asked.param, tokenizer)


def _outcome(work: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(work())
    except LingflashError as error:
        return Outcome(None, error.code, error.message, error.param)


def _limit_everything() -> None:
    # The kernel ends the process at each of these; no handler could run inside the library.
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_S)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm", encoding="ascii") as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + MEMORY_LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # What a library says when it has no memory is for nobody's log.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
