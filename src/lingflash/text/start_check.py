"""Reads a checkpoint's tokenizer and template where they can do no harm, before they are used here.

A tokenizer.json or a template can take all memory or hang while it is read, and a checkpoint may be
anybody's. So a process with limits of time and memory reads both and renders and encodes a few
messages: python -m lingflash.text.start_check FOLDER. What passes is read again in the process that
needs it, and works there under the limits of `template_limits.py`.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from lingflash.core.errors import InvalidRequestError, ModelLoadError
from lingflash.core.hub import bundled_folder
from lingflash.text.chat_template import ChatTemplate
from lingflash.text.template_limits import TemplateLimitError
from lingflash.text.tokenizer import Tokenizer

# A vocabulary of 157,000 tokens takes a second and 0.4 GB.
CPU_LIMIT_S = 10
TIME_LIMIT_S = 30.0
MEMORY_LIMIT_BYTES = 4 * 2**30

_REFUSED = 3
_STAGES = ("tokenizer", "chat template")
_USER = {"role": "user", "content": "Hello, how are you? 12345\n\n\tÄÖ 日本語 🙂"}
_ASSISTANT = {"role": "assistant", "content": "Fine."}
_TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
}
_CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [_USER],
    [{"role": "system", "content": "Be brief."}, _USER, _ASSISTANT, _USER, _ASSISTANT, _USER],
)
# Runs that make regular expressions backtrack.
_TEXTS = ("a" * 4096, " " * 4096, "\n" * 4096, "1" * 4096, "a " * 2048, "!?" * 2048)


def check_text_files(folder: Path) -> None:
    """See that a checkpoint's tokenizer and template can be used; the bundled one's can.

    Raises:
        ModelLoadError: they cannot, or take too much time or memory.
    """
    if folder.resolve() == bundled_folder() or not (folder / "tokenizer.json").is_file():
        return
    command = [sys.executable, "-m", "lingflash.text.start_check", str(folder)]
    # Threads and their arenas would count as memory.
    quiet = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TIME_LIMIT_S,
            env={**os.environ, **quiet},
            check=False,
        )
        code, said = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        code, said = -1, late.stdout or b""
    except OSError as error:
        raise ModelLoadError(f"No process could be started to check {folder}: {error}.") from None
    lines = said.decode("utf-8", "replace").split("\n")
    if code == _REFUSED:
        raise ModelLoadError(" ".join(line for line in lines[:-1] if line not in _STAGES))
    if code:
        stage = _STAGES[-1] if _STAGES[-1] in lines else _STAGES[0]
        raise ModelLoadError(
            f"The {stage} of {folder} takes over {CPU_LIMIT_S} s or "
            f"{MEMORY_LIMIT_BYTES // 2**30} GB to be read and used once; it is damaged or hostile. "
            "Fetch it again, or take another checkpoint."
        )


def main(folder: Path) -> int:
    """Say which file is being tried, and what is wrong with it; the exit code."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    print(_STAGES[0], flush=True)  # in case that this process is ended
    try:
        tokenizer = Tokenizer.from_folder(folder)
        assert tokenizer is not None
        for text in _TEXTS:
            tokenizer.encode(text)
            tokenizer.encode_run(text)
        print(_STAGES[1], flush=True)
        template = ChatTemplate.from_folder(folder)
        if template is not None:
            for messages in _CONVERSATIONS:
                for tools in (None, [_TOOL]):
                    tokenizer.encode(_render(template, messages, tools))
    except (ModelLoadError, InvalidRequestError) as error:
        print(f"{folder}: {error.message}", flush=True)
        return _REFUSED
    except BaseException:  # MemoryError, or what else its contents can do
        return 1
    return 0


def _render(
    template: ChatTemplate, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> str:
    try:
        return template.render(messages, tools=tools)
    except InvalidRequestError as error:
        if isinstance(error.__cause__, TemplateLimitError):
            raise
        return ""  # it may refuse a conversation, say one with a system message


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
