"""Token counts as OpenAI's completions write them, and what all dialects add to theirs."""

from __future__ import annotations

from typing import Any

from lingflash.core.types import Usage


def openai_usage(usage: Usage) -> dict[str, Any]:
    """The `usage` of chat and text completions."""
    details: dict[str, int] = {}
    if usage.drafts is not None:
        accepted, rejected = usage.drafts
        details["accepted_prediction_tokens"] = accepted
        details["rejected_prediction_tokens"] = rejected
    if usage.reasoning_tokens is not None:
        details["reasoning_tokens"] = usage.reasoning_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        **cache_report(usage),
        **({"completion_tokens_details": details} if details else {}),
    }


def cache_report(usage: Usage) -> dict[str, Any]:
    """The usage's field of the cache report, if one was asked for."""
    if usage.cache_reports is None:
        return {}
    reports = [
        {"cached_tokens": num_cached, "result": report.result, "position": report.position}
        for num_cached, report in usage.cache_reports
    ]
    return {"cache_report": reports}


def code_details(usage: Usage) -> dict[str, Any]:
    """The usage's field of code that the server ran, if it could run any."""
    if usage.code is None:
        return {}
    code = usage.code
    return {
        "code_interpreter_details": {
            "calls": code.calls,
            "seconds": round(code.seconds, 3),
            "output_bytes": code.output_bytes,
        }
    }
