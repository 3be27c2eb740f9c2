"""Blocks of code that the server ran, as Anthropic's first code execution tool has them.

The later versions of that tool are a shell and an editor; they are not offered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lingflash.api.answer.blocks import Block
from lingflash.api.code.outputs import text_of

CODE_EXECUTION = "code_execution_20250522"
CODE_NAME = "code_execution"
USE, RESULT = "server_tool_use", "code_execution_tool_result"
_CALL_ID, _USE_ID = "call_", "srvtoolu_"
# What is said of a run that did not come to its end.
_ERRORS = {"incomplete": "execution_time_exceeded", "failed": "unavailable"}


def use_id_of(call_id: str) -> str:
    """The id of a call's block, from which a later request finds the call again."""
    return _USE_ID + call_id.removeprefix(_CALL_ID)


def call_id_of(use_id: str) -> str:
    """The call of a block, ours or another server's."""
    return _CALL_ID + use_id.removeprefix(_USE_ID)


def use_block(block: Block, *, is_empty: bool = False) -> dict[str, Any]:
    """A call of code."""
    given = {} if is_empty else {"code": block.text}
    return {"type": USE, "id": use_id_of(block.call_id), "name": CODE_NAME, "input": given}


def result_block(block: Block) -> dict[str, Any]:
    """What came of it. Errors and the standard error are in stdout, where they came."""
    run = block.run
    assert run is not None
    logs = "".join(each["logs"] for each in run.outputs if each["type"] == "logs")
    content: dict[str, Any] = {
        "type": "code_execution_result",
        "stdout": logs,
        "stderr": "",
        "return_code": int(run.has_error or run.status != "completed"),
        "content": [],
    }
    if run.status in _ERRORS and not logs:
        content = {
            "type": "code_execution_tool_result_error",
            "error_code": _ERRORS[run.status],
        }
    return {"type": RESULT, "tool_use_id": use_id_of(block.call_id), "content": content}


def text_of_result(content: Any, max_model_len: int) -> str:
    """What the model reads of such a result in a history; of a client it may be anything."""
    if not isinstance(content, Mapping):
        return ""
    if "error_code" in content:
        return f"[{content['error_code']}]"
    logs = f"{content.get('stdout') or ''}{content.get('stderr') or ''}"
    return text_of([{"type": "logs", "logs": logs}], max_model_len)
