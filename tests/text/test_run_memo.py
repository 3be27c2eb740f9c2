"""Token ids that are remembered: the same as encoded anew, for their owner, in bounded memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from lingflash.core.hub import bundled_folder
from lingflash.text.chat_prompt import ModelText
from lingflash.text.run_memo import RunMemo


def letters(text):
    return [ord(c) for c in text]


def test_memo_when_asked_again_then_encodes_once_and_for_its_owner_only():
    memo, asked = RunMemo(), []

    def encode(text):
        asked.append(text)
        return letters(text)

    for owner in ("a", "a", "b"):
        assert list(memo.encode(owner, "hello", encode)) == letters("hello")
    assert asked == ["hello", "hello"]


def test_memo_when_full_then_the_longest_unused_goes_and_memory_stays_bounded():
    memo, asked = RunMemo(most_bytes=3000), []

    def encode(text):
        asked.append(text[0])
        return letters(text)

    for name in "abacadaeaf":  # four fit
        assert list(memo.encode("x", name * 40, encode)) == letters(name * 40)
        assert memo.num_bytes <= 3000
    assert "".join(asked) == "abcdef"
    kept = memo.num_bytes
    memo.encode("x", "z" * 4000, encode)  # more than may be kept
    assert memo.num_bytes == kept


def test_memo_when_used_by_threads_then_each_gets_its_own_text():
    memo = RunMemo(most_bytes=5000)
    texts = [str(i % 40) * 30 for i in range(2000)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: list(memo.encode("x", text, letters)), texts))
    assert found == [letters(text) for text in texts]
    assert 0 < memo.num_bytes <= 5000


@pytest.mark.skipif(not bundled_folder().exists(), reason="ling-nano is not bundled")
def test_conversation_when_it_grows_then_only_new_text_is_encoded():
    text, memo, asked = ModelText.from_folder(bundled_folder()), RunMemo(), []

    def encode(run):
        asked.append(run)
        return text.tokenizer.encode_run(run)

    messages = []
    for turn in range(6):
        messages.append({"role": "user", "content": f"Question {turn}: 1 < {turn}? <b>é</b>"})
        asked.clear()
        ids = text.encode_chat(messages, encode_run=lambda run: memo.encode("x", run, encode))
        assert ids == text.encode_chat(messages)
        assert len(asked) <= 1 if turn else asked
        messages.append({"role": "assistant", "content": f"Answer {turn}."})
        text.encode_chat(messages, encode_run=lambda run: memo.encode("x", run, encode))
