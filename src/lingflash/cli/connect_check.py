"""What a running server says of itself, and what of that is too little for a program."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from lingflash.cli.connect_program import Program
from lingflash.core.errors import AuthenticationError, ConfigError, LingflashError
from lingflash.link.http_client import Address, BadAnswer, Deadlines, open_request

_DEADLINES = Deadlines(connect_s=5, first_byte_s=10, idle_s=10, total_s=20)
_TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
}
LARGER_CONTEXT = (
    "--max-model-len 65536 --rope-scaling "
    '\'{"rope_type":"yarn","factor":2,"original_max_position_embeddings":32768}\''
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server as a program will meet it.

    Args:
        url: without a path.
        context: in tokens.
        no_tools: why it takes no tools; None if it does.
    """

    url: str
    model: str
    context: int
    no_tools: str | None

    def lacks_for(self, program: Program) -> list[str]:
        """A sentence for each thing that the program needs and the server has not."""
        sentences = []
        if self.context < program.min_context:
            sentences.append(
                f"{program.title} needs a context of about {program.min_context:,} tokens "
                f"(counted with ling-nano's small vocabulary), and the server has "
                f"{self.context:,}. Start it with a larger --max-model-len; for ling-nano: "
                f"ling serve {LARGER_CONTEXT}"
            )
        if program.calls_tools and self.no_tools is not None:
            sentences.append(
                f"{program.title} calls tools, and the server takes none: {self.no_tools}"
            )
        return sentences


async def ask_server(url: str, api_key: str | None, model: str | None) -> Server:
    """Ask a running server for its models, context and tools.

    Raises:
        ConfigError: the URL or the model's name is wrong.
        AuthenticationError: it wants another key.
        LingflashError: nothing answers there, or no server of this kind.
    """
    address = Address.parse_any(url, api_key)
    listed = await _ask(address, "GET", "/v1/models")
    try:
        models = {each["id"]: int(each["max_model_len"]) for each in listed["data"]}
        chosen = next(iter(models)) if model is None else model
    except (TypeError, KeyError, ValueError, StopIteration):
        raise _no_server(address, "its /v1/models does not name models and max_model_len") from None
    if chosen not in models:
        raise ConfigError(
            f"--model is {chosen!r}; the server has: {', '.join(models)}.", param="model"
        )
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": chosen, "messages": messages, "tools": [_TOOL]}
    no_tools = None
    try:
        await _ask(address, "POST", "/tokenize", body)
    except _RefusedError as error:
        no_tools = error.message
    return Server(url=_base(address), model=chosen, context=models[chosen], no_tools=no_tools)


class _RefusedError(LingflashError):
    """The server answered with an error of its own."""


async def _ask(address: Address, method: str, path: str, payload: Any = None) -> Any:
    body = None if payload is None else json.dumps(payload).encode()
    try:
        async with open_request(address, method, path, body, deadlines=_DEADLINES) as answer:
            status, text = answer.status, await answer.read()
    except OSError as error:
        raise LingflashError(
            f"No server answers at {_base(address)} ({error}). Start one with `ling serve`, or say "
            "with --url where it is."
        ) from None
    except BadAnswer as error:
        raise _no_server(address, str(error)) from None
    if status in (401, 403):
        given = "that was given is wrong" if address.api_key else "is needed"
        raise AuthenticationError(
            f"The server at {_base(address)} says that a key {given}; give one of its keys with "
            "--api-key."
        )
    try:
        answer = json.loads(text)
        if status == 200:
            return answer
        message = answer["error"]["message"]
    except (ValueError, TypeError, KeyError):
        raise _no_server(address, f"{path} answered {status} with no JSON of its kind") from None
    raise _RefusedError(message)


def _no_server(address: Address, why: str) -> LingflashError:
    return LingflashError(f"What answers at {_base(address)} is no lingflash server: {why}.")


def _base(address: Address) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    scheme = "https" if address.is_tls else "http"
    return f"{scheme}://{host}:{address.port}{address.prefix}"
