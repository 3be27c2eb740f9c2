"""Stop strings: found across chunk borders, nothing held back without need."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingflash.text.stop_strings import StopStringMatcher

letters = st.text(alphabet="ab\n", max_size=30)
stops = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), min_size=1, max_size=3)


def run(stop, chunks):
    matcher = StopStringMatcher(stop)
    shown = ""
    for chunk in chunks:
        text, match = matcher.push(chunk)
        shown += text
        if match is not None:
            return shown, match
    return shown + matcher.finish(), None


def expected(stop, text):
    ends = [(text.find(s) + len(s), text.find(s), s) for s in stop if s in text]
    if not ends:
        return text, None
    _, start, match = min(ends)
    return text[:start], match


@st.composite
def chunked(draw):
    text = draw(letters)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    bounds = [0, *cuts, len(text)]
    return text, [text[a:b] for a, b in itertools.pairwise(bounds)]


@given(stops, chunked())
def test_push_when_text_is_cut_anywhere_then_same_as_search_in_the_whole(stop, case):
    text, chunks = case
    assert run(stop, chunks) == expected(stop, text)


@given(stops, letters)
def test_push_when_no_match_then_only_a_possible_prefix_is_held(stop, text):
    matcher = StopStringMatcher(stop)
    seen = shown = ""
    for char in text:
        piece, match = matcher.push(char)
        if match is not None:
            return
        seen += char
        shown += piece
        held = seen[len(shown) :]
        assert seen.startswith(shown)
        assert held == "" or any(s.startswith(held) and s != held for s in stop)


def test_push_when_it_may_not_stop_yet_then_earlier_matches_are_passed_over():
    matcher = StopStringMatcher(["END"])
    assert matcher.push("xENDy", may_stop=False) == ("xENDy", None)
    assert matcher.push("EN", may_stop=False) == ("", None)
    assert matcher.push("D!") == ("", "END")


def test_push_when_a_held_match_was_passed_over_then_it_stays_passed_over():
    matcher = StopStringMatcher(["ab", "abc"])
    assert matcher.push("ab", may_stop=False) == ("", None)
    assert matcher.push("x") == ("abx", None)


@pytest.mark.parametrize("char", list("^]-\\[.*"))
def test_push_when_stop_is_a_regex_character_then_it_is_taken_literally(char):
    assert run([char + "!"], ["a" + char, "b" + char, "!"]) == ("a" + char + "b", char + "!")
