"""A converted ling-nano through the whole engine: it still calls tools."""

from __future__ import annotations

import json

import pytest

from lingflash import LLM, SamplingParams
from lingflash.models.hub import bundled_folder
from quant_support import quantize

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather forecast for a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "name of the city"},
                    "day": {"type": "string", "enum": ["today", "tomorrow"]},
                },
                "required": ["city"],
            },
        },
    }
]
MESSAGES = [{"role": "user", "content": "What will the weather be like in Lisbon tomorrow?"}]


@pytest.mark.parametrize("name", ["fp8", "int4", "int4-fp8"])
def test_nano_when_converted_then_still_calls_the_tool(tmp_path, name):
    folder = quantize(bundled_folder(), tmp_path / "nano", name)
    options = {"device": "cpu", "max_model_len": 512, "max_num_seqs": 2, "memory_fraction": 0.2}
    llm = LLM(model=str(folder), **options)
    (answer,) = llm.chat(MESSAGES, SamplingParams(temperature=0.0), tools=TOOLS)
    text = answer.outputs[0].text
    call = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert call == {"name": "get_weather", "arguments": {"city": "Lisbon", "day": "tomorrow"}}


def test_batch_invariance_when_weights_are_quantized_then_is_checked_and_kept(tmp_path):
    folder = quantize(bundled_folder(), tmp_path / "nano", "int4-fp8")
    options = {"max_model_len": 512, "max_num_seqs": 2, "memory_fraction": 0.2}
    llm = LLM(model=str(folder), batch_invariant=True, **options)  # would refuse if it were not
    assert llm.info.batch_invariant
