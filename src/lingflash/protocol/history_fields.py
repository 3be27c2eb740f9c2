"""What becomes of the fields of messages, parts, calls and tools; see `fields.py` for the rule.

All dialects' tables are here that are not of a whole request. In what a client sends back of a
history unknown fields are dropped; a tool is part of the request, so there they are refused.
"""

from __future__ import annotations

from lingflash.protocol.fields import FieldTable, Refusal

_NEVER = "is not supported"

# What clients and other servers leave on anything that they once received.
_LEFT_BEHIND = {
    "id": "an id of the server that made it",
    "index": "its place in a stream",
    "status": "how it ended",
    "cache_control": "where to cache the prompt; the prefix cache needs no marks",
    "prompt_cache_breakpoint": "the same",
    "provider_specific_fields": "what a gateway kept of another server's answer",
    "extra_content": "the same",
    "annotations": "where another server found something",
    "citations": "the same",
    "logprobs": "of an answer",
    "caller": "who called a tool at another server",
}

CHAT_MESSAGE = FieldTable(
    known=(
        *("role", "content", "name", "tool_calls", "tool_call_id"),
        *("reasoning_content", "reasoning", "refusal", "function_call"),
    ),
    inert={
        **_LEFT_BEHIND,
        "parsed": "what a client library read from the content",
        "audio": "an answer's sound, kept by another server",
        "images": "pictures that another model made",
        "reasoning_details": "another server's form of the thinking",
        "thinking_blocks": "the same",
        "phase": "which part of an answer it was",
        "metadata": "labels",
        "model": "who wrote it",
        "finish_reason": "how it ended",
        "created_at": "when",
    },
    drops_unknown=True,
)
TEXT_PART = FieldTable(
    known=("type", "text"),
    inert={
        **_LEFT_BEHIND,
        "parsed": "what a client library read from the text",
        "signature": "proves to another server that it wrote this",
    },
    drops_unknown=True,
)
CALL = FieldTable(
    known=("id", "type", "function", "custom"),
    inert={
        **{name: what for name, what in _LEFT_BEHIND.items() if name != "id"},
        "thought_signature": "proves to another server that it wrote this",
    },
    drops_unknown=True,
)
CALL_FUNCTION = FieldTable(
    known=("name", "arguments"),
    inert={"parsed_arguments": "what a client library read from the arguments"},
    drops_unknown=True,
)
CALL_CUSTOM = FieldTable(known=("name", "input"), drops_unknown=True)

_TOOL_INERT = {
    "cache_control": "where to cache the prompt; the prefix cache needs no marks",
    "defer_loading": "the tool is there from the start",
    "output_schema": "what its results look like; the model sees the results",
    "response": "the same, as BFCL (and Gemini) have it",
    "eager_input_streaming": "arguments are always streamed as they are generated",
}
_TOOL_REFUSED = {
    "input_examples": Refusal(_NEVER + "; leave it out", ([],)),
    "async": Refusal(_NEVER + "; leave it out", (False,)),
}
CHAT_TOOL = FieldTable(
    known=("type", "function", "custom"), inert=_TOOL_INERT, refused=_TOOL_REFUSED
)
FUNCTION = FieldTable(
    known=("name", "description", "parameters", "strict"),
    inert=_TOOL_INERT,
    refused=_TOOL_REFUSED,
)
CUSTOM_TOOL = FieldTable(
    known=("name", "description", "format"), inert=_TOOL_INERT, refused=_TOOL_REFUSED
)
RESPONSES_FUNCTION = FieldTable(
    known=("type", "name", "description", "parameters", "strict", "allowed_callers"),
    inert=_TOOL_INERT,
    refused=_TOOL_REFUSED,
)
RESPONSES_CUSTOM_TOOL = FieldTable(
    known=("type", "name", "description", "format", "allowed_callers"),
    inert=_TOOL_INERT,
    refused=_TOOL_REFUSED,
)
NAMESPACE = FieldTable(known=("type", "name", "description", "tools"), inert=_TOOL_INERT)
MESSAGES_TOOL = FieldTable(
    known=(
        *("type", "name", "description", "input_schema", "strict"),
        *("allowed_callers", "defer_loading"),
    ),
    inert={name: what for name, what in _TOOL_INERT.items() if name != "defer_loading"},
    refused=_TOOL_REFUSED,
)

MESSAGES_CODE_TOOL = FieldTable(
    known=("type", "name", "allowed_callers"), inert=_TOOL_INERT, refused=_TOOL_REFUSED
)

# Items of /v1/responses.
ITEM_MESSAGE = FieldTable(
    known=("type", "role", "content", "status"),
    inert={
        **{name: what for name, what in _LEFT_BEHIND.items() if name != "status"},
        "phase": "which part of an answer it was",
        "name": "of the speaker",
        "internal_chat_message_metadata_passthrough": "trace data",
    },
    drops_unknown=True,
)
_ITEM_INERT = {
    **{name: what for name, what in _LEFT_BEHIND.items() if name != "status"},
    "parsed_arguments": "what a client library read from the arguments",
    "async": "whether the client waited for it",
}
ITEM_CALL = FieldTable(
    known=("type", "call_id", "name", "namespace", "arguments", "input", "status"),
    inert=_ITEM_INERT,
    drops_unknown=True,
)
ITEM_CALL_OUTPUT = FieldTable(
    known=("type", "call_id", "output", "status"),
    inert={**_ITEM_INERT, "name": "of the tool", "namespace": "of the tool"},
    drops_unknown=True,
)
ITEM_REASONING = FieldTable(
    known=("type", "content", "status"),
    inert={
        **_ITEM_INERT,
        "summary": "another server's words about the thinking",
        "encrypted_content": "thinking that only another server can read",
    },
    drops_unknown=True,
)
ITEM_CODE = FieldTable(
    known=("type", "id", "code", "outputs", "container_id", "status"),
    inert={name: what for name, what in _ITEM_INERT.items() if name != "id"},
    drops_unknown=True,
)
# Calls of tools that ran elsewhere, and what else other servers leave in a history.
OTHER_ITEMS = {
    "web_search_call": "a search at another server",
    "file_search_call": "the same, in files",
    "computer_call": "another model's hand on a screen",
    "computer_call_output": "the screen",
    "image_generation_call": "a picture that another model made",
    "code_interpreter_call": "code that ran at another server",
    "local_shell_call": "a command of another server's shell tool",
    "local_shell_call_output": "what came of it",
    "shell_call": "a command of another server's shell tool",
    "shell_call_output": "what came of it",
    "apply_patch_call": "an edit of another server's patch tool",
    "apply_patch_call_output": "what came of it",
    "mcp_list_tools": "tools of a server that another server spoke with",
    "mcp_approval_request": "a question about them",
    "mcp_approval_response": "its answer",
    "mcp_call": "a call of one of them",
    "tool_search_call": "a search among tools; all are there from the start",
    "compaction": "a summary that only another server can read",
    "compaction_summary": "the same",
    "program": "code that called tools at another server",
    "program_output": "what came of it",
}
REFUSED_ITEMS = {
    "compaction_trigger": _NEVER + "; send a shorter input",
    "configuration_update": _NEVER + "; use reasoning and text of the request",
}

# Blocks of /v1/messages.
MESSAGE = FieldTable(
    known=("role", "content"),
    inert={
        **_LEFT_BEHIND,
        "type": "what it is",
        "model": "who wrote it",
        "stop_reason": "how it ended",
        "stop_sequence": "the same",
        "stop_details": "the same",
        "usage": "its token counts",
        "container": "where code ran",
        "context_management": "what another server left out",
        "clear_at": "when another server would forget it",
        "output_config": "how much effort it deserves",
    },
    drops_unknown=True,
)
TOOL_USE = FieldTable(
    known=("type", "id", "name", "input"),
    inert={
        **{name: what for name, what in _LEFT_BEHIND.items() if name != "id"},
        "toolset_name": "which set the tool was of",
    },
    drops_unknown=True,
)
TOOL_RESULT = FieldTable(
    known=("type", "tool_use_id", "content", "is_error"),
    inert={**_LEFT_BEHIND, "toolset_name": "which set the tool was of"},
    drops_unknown=True,
)
CODE_RESULT = FieldTable(
    known=("type", "tool_use_id", "content"), inert=_LEFT_BEHIND, drops_unknown=True
)
THINKING = FieldTable(
    known=("type", "thinking"),
    inert={**_LEFT_BEHIND, "signature": "proves to another server that it wrote this"},
    drops_unknown=True,
)
# What ran at another server, or only it can read.
OTHER_BLOCKS = {
    "redacted_thinking": "thinking that only another server can read",
    "server_tool_use": "a call of a tool that ran at another server",
    "web_search_tool_result": "what came of it",
    "web_fetch_tool_result": "the same",
    "advisor_tool_result": "the same",
    "code_execution_tool_result": "the same",
    "bash_code_execution_tool_result": "the same",
    "text_editor_code_execution_tool_result": "the same",
    "tool_search_tool_result": "the tools that were found",
    "mcp_tool_use": "a call of a tool that ran at another server",
    "mcp_tool_result": "what came of it",
    "mcp_tool_listing": "the tools of such a server",
    "container_upload": "a file for code at another server",
    "browser_state": "what a browser shows",
    "fallback": "which model went on for which",
}

# The words for what is dropped that is no field.
TOOL_NOT_OFFERED = "tools"
LEFT_TO_MODEL = "schema"
