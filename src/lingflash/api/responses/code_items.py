"""Items and events of code that the server ran: OpenAI's code_interpreter_call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lingflash.api.answer.blocks import Block, BlockStep

ITEM = "code_interpreter_call"
_CALL_ID, _ITEM_ID = "call_", "ci_"
_EVENT, _CODE_EVENT = "response.code_interpreter_call", "response.code_interpreter_call_code"


def item_id_of(call_id: str) -> str:
    """The id of a call's item, from which a later request finds the call again."""
    return _ITEM_ID + call_id.removeprefix(_CALL_ID)


def call_id_of(item_id: str) -> str:
    """The call of an item, ours or another server's."""
    return _CALL_ID + item_id.removeprefix(_ITEM_ID)


def code_item(block: Block) -> dict[str, Any]:
    """A call with its outputs."""
    run = block.run
    assert run is not None
    return {
        "id": item_id_of(block.call_id),
        "type": ITEM,
        "status": run.status,
        "code": block.text,
        "container_id": run.container_id,
        "outputs": run.outputs,
    }


def without_outputs(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items as who did not ask for outputs sees them."""
    return [{**item, "outputs": None} if item["type"] == ITEM else item for item in output]


def write_code_step(
    step: BlockStep, item: dict[str, Any], event: Callable[..., bytes], events: list[bytes]
) -> None:
    """Add the events of a step of such a call.

    Args:
        item: as it is now.
        event: makes one of its name and fields.
    """
    index = step.block.index
    where = {"item_id": item["id"], "output_index": index}
    match step.action:
        case "open":
            added = {**item, "status": "in_progress", "code": ""}
            events.append(event("response.output_item.added", output_index=index, item=added))
            events.append(event(_EVENT + ".in_progress", **where))
        case "add":
            events.append(event(_CODE_EVENT + ".delta", **where, delta=step.text))
        case "close":
            events.append(event(_CODE_EVENT + ".done", **where, code=item["code"]))
        case "run":
            events.append(event(_EVENT + ".interpreting", **where))
        case "end":
            if item["status"] == "completed":
                events.append(event(_EVENT + ".completed", **where))
            events.append(event("response.output_item.done", output_index=index, item=item))
