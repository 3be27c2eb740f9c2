"""`ling chat`: a conversation in the terminal, with an engine of its own or a running server."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from lingflash.api.config import ServerConfig
from lingflash.cli.options import takes_options
from lingflash.core.config import BUNDLED_MODEL, EngineConfig
from lingflash.core.errors import ConfigError, InvalidRequestError, LingflashError
from lingflash.core.settings import settings_of
from lingflash.core.types import PromptProgress

KEY_VARIABLE = settings_of(ServerConfig)["api_keys"].variable
HELP = "/exit ends, /reset forgets the conversation, /system TEXT sets the instructions, /help"


@takes_options(config=("model", "device", "dtype", "max_model_len"))
def chat(
    *,
    url: Annotated[
        str | None,
        typer.Option("--url", help="Talk to this server, such as http://127.0.0.1:8000/v1."),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar=KEY_VARIABLE, help="Key for --url.")
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="Instructions for the model.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="0 always takes the likeliest token.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Longest answer; the context if left out.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="For repeatable answers.")] = None,
    config: EngineConfig,
) -> None:
    """Talk to a model. Ctrl-C stops an answer; text from a pipe is answered once."""
    from lingflash.cli.chat_backends import ChatBackend, EngineBackend, ServerBackend

    options: dict[str, Any] = {}
    for name, value in (
        ("temperature", temperature),
        ("max_tokens", max_tokens),
        ("seed", seed),
    ):
        if value is not None:
            options[name] = value
    backend: ChatBackend
    if url is not None:
        key = (api_key or "").split()[:1]  # the variable may hold several, for `ling serve`
        model = None if config.model == BUNDLED_MODEL else config.model
        backend = ServerBackend(url, key[0] if key else None, model, options)
    else:
        backend = EngineBackend(dataclasses.replace(config, max_num_seqs=1), options)
    with backend:
        conversation = Conversation(backend, system)
        if sys.stdin.isatty():
            conversation.talk(Console(highlight=False))
        else:
            conversation.answer_pipe(sys.stdin.read())


class Conversation:
    """Messages so far, and the terminal's side of them.

    Args:
        backend: answers.
        system: instructions, if any.
    """

    def __init__(self, backend: Any, system: str | None) -> None:
        self._backend = backend
        self._system = system
        self._messages: list[dict[str, Any]] = []

    def answer_pipe(self, text: str) -> None:
        """Answer one text and end.

        Raises:
            ConfigError: there is no text.
        """
        if not text.strip():
            raise ConfigError("Standard input is empty; pipe a message in, or use a terminal.")
        self._messages.append({"role": "user", "content": text.strip()})
        for piece in self._backend.stream(self._prompt()):
            if isinstance(piece, str):
                sys.stdout.write(piece)
                sys.stdout.flush()
        sys.stdout.write("\n")

    def talk(self, console: Console) -> None:
        """Read and answer until /exit or the end of input."""
        console.print(f"[dim]{self._backend.name}. {HELP}. Ctrl-C stops an answer.[/dim]")
        while True:
            try:
                line = console.input("[bold cyan]> [/bold cyan]").strip()
            except KeyboardInterrupt:
                console.print("\n[dim]/exit ends[/dim]")
                continue
            except EOFError:
                console.print()
                return
            if line in ("/exit", "/quit"):
                return
            if line:
                self._take(console, line)

    def _take(self, console: Console, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/reset":
            self._messages.clear()
            console.print("[dim]forgotten[/dim]")
        elif command == "/system":
            self._system = rest.strip() or None
            console.print("[dim]instructions set[/dim]" if self._system else "[dim]none[/dim]")
        elif command.startswith("/"):
            console.print(f"[dim]{HELP}[/dim]")
        else:
            self._answer(console, line)

    def _answer(self, console: Console, line: str) -> None:
        self._messages.append({"role": "user", "content": line})
        shown: list[str] = []
        reading = console.status("")
        try:
            for piece in self._backend.stream(self._prompt()):
                if isinstance(piece, str):
                    reading.stop()
                    shown.append(piece)
                    console.print(piece, end="", markup=False, soft_wrap=True)
                elif piece.processed < piece.total:
                    reading.update(_progress_line(piece))
                    reading.start()
        except KeyboardInterrupt:
            reading.stop()
            self._backend.cancel()
            console.print(" [dim](stopped)[/dim]", end="")
        except InvalidRequestError as error:
            self._messages.pop()
            console.print(f"[red]{error.message}[/red]", markup=True)
            return
        except LingflashError as error:
            self._messages.pop()
            console.print(f"\n[red]{error.message}[/red]")
            return
        finally:
            reading.stop()
        console.print()
        self._messages.append({"role": "assistant", "content": "".join(shown)})

    def _prompt(self) -> list[dict[str, Any]]:
        if self._system is None:
            return self._messages
        return [{"role": "system", "content": self._system}, *self._messages]


def _progress_line(progress: PromptProgress) -> str:
    cached = f" ({progress.cached:,} from the cache)" if progress.cached else ""
    return f"read {progress.processed:,} of {progress.total:,} tokens{cached}"
