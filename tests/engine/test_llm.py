"""`LLM` and what is no prompt, message or parameter: one sentence each, before anything runs."""

from __future__ import annotations

import pytest

from lingflash import LLM, SamplingParams
from lingflash.core.errors import InvalidRequestError

ONE_TOKEN = SamplingParams(max_tokens=1)
NO_LIST = [5, b"x", {"a": 1}, 1.5]


@pytest.fixture(scope="module")
def llm():
    return LLM(max_num_seqs=4, max_model_len=256)


@pytest.mark.parametrize("prompts", [*NO_LIST, [5], [[1, 2]], [None], ["a", 5]], ids=repr)
def test_generate_when_prompts_are_no_texts_then_says_so(llm, prompts):
    with pytest.raises(InvalidRequestError, match=r"^prompts is .*; allowed: a text, "):
        llm.generate(prompts, ONE_TOKEN)


@pytest.mark.parametrize(
    "ids", [*NO_LIST, "ab", [["a"]], [1.5], [[1, "x"]], [None], [[1], [None]], [1, [2]]], ids=repr
)
def test_generate_when_ids_are_none_then_says_so(llm, ids):
    with pytest.raises(InvalidRequestError, match=r"^prompt_token_ids is .*; allowed: a list "):
        llm.generate(prompt_token_ids=ids, sampling_params=ONE_TOKEN)


@pytest.mark.parametrize("messages", [*NO_LIST, "hi", [5], ["hi"], [[5]], [None]], ids=repr)
def test_chat_when_messages_are_none_then_says_so(llm, messages):
    with pytest.raises(InvalidRequestError, match=r"^messages(\[0\])? is "):
        llm.chat(messages, ONE_TOKEN)


@pytest.mark.parametrize("params", [*NO_LIST, "x", [1], [ONE_TOKEN, ONE_TOKEN]], ids=type)
def test_generate_when_sampling_params_are_none_then_says_so(llm, params):
    with pytest.raises(InvalidRequestError, match="sampling_params"):
        llm.generate("a", params)


@pytest.mark.parametrize("form", [5, "x", [5], {"json": 5}, {"foo": 1}], ids=repr)
def test_generate_when_structured_outputs_are_none_then_says_so(llm, form):
    with pytest.raises(InvalidRequestError, match="structured_outputs"):
        llm.generate("a", ONE_TOKEN, structured_outputs=form)


def test_generate_when_one_or_several_are_given_then_answers_each(llm):
    ids = [5, 6, 7]
    (one,) = llm.generate(prompt_token_ids=ids, sampling_params=[None])
    both = llm.generate(prompt_token_ids=[ids, (5, 6)], sampling_params=ONE_TOKEN)
    assert [len(each.outputs[0].token_ids) for each in both] == [1, 1]
    assert one.prompt_token_ids == both[0].prompt_token_ids == ids
