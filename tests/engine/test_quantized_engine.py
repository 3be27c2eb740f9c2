"""A converted ling-nano through the whole engine: it still calls tools."""

from __future__ import annotations

import json

import pytest

from engine_support import WEATHER_MESSAGES, WEATHER_TOOL
from lingflash import LLM, SamplingParams
from lingflash.core.hub import bundled_folder
from quant_support import quantize


@pytest.mark.parametrize("name", ["fp8", "int4", "int4-fp8"])
def test_nano_when_converted_then_still_calls_the_tool(tmp_path, name):
    folder = quantize(bundled_folder(), tmp_path / "nano", name)
    options = {"device": "cpu", "max_model_len": 512, "max_num_seqs": 2, "memory_fraction": 0.2}
    llm = LLM(model=str(folder), **options)
    (answer,) = llm.chat(WEATHER_MESSAGES, SamplingParams(temperature=0.0), tools=[WEATHER_TOOL])
    text = answer.outputs[0].text
    call = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert call == {"name": "get_weather", "arguments": {"city": "Lisbon", "day": "tomorrow"}}


def test_batch_invariance_when_weights_are_quantized_then_is_checked_and_kept(tmp_path):
    folder = quantize(bundled_folder(), tmp_path / "nano", "int4-fp8")
    options = {"max_model_len": 512, "max_num_seqs": 2, "memory_fraction": 0.2}
    llm = LLM(model=str(folder), batch_invariant=True, **options)  # would refuse if it were not
    assert llm.info.batch_invariant
