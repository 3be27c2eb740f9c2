"""Templates of hostile checkpoints: an error in bounded time and memory, never a dead process."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from lingflash.core.errors import InvalidRequestError, LingflashError, ModelLoadError
from lingflash.core.hub import bundled_folder
from lingflash.text import start_check
from lingflash.text.chat_prompt import ModelText
from lingflash.text.chat_template import ChatTemplate
from lingflash.text.template_limits import TemplateLimitError
from lingflash.text.tokenizer import Tokenizer

USER = [{"role": "user", "content": "hi"}]
DOUBLING = "{% set ns = namespace(s='aaaaaaaaaa') %}{% for i in range(60) %}"
HUGE = [
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ '%2000000000d' % 1 }}",
    "{{ '%*d' % (2000000000, 1) }}",
    "{{ '%2000000000d' | format(1) }}",
    "{{ 'a' | center(3000000000) }}",
    "{{ 'a'.center(3000000000) }}",
    "{{ 'a'.zfill(3000000000) }}",
    "{{ 'a' | indent(1000000000) }}",
    "{{ messages | tojson(indent=1000000000) }}",
    "{{ '{:>2000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 2000000000) }}",
    "{% set f = '{:>2000000000}'.format %}{{ f(1) }}",
    "{{ ['{:>2000000000}'] | map('format', 1) | list }}",
    "{{ ([1] * 10**9) | length }}",
    "{{ [1, 2] | batch(1000000000, 'x') | list }}",
    "{{ (10 ** 1000) ** 1000 }}",
    "{{ 1.5 | round(1000000000) }}",
    DOUBLING + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    DOUBLING + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    DOUBLING + "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    DOUBLING + "{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
    DOUBLING + "{% set ns.s = ''.join([ns.s, ns.s]) %}{% endfor %}",
    DOUBLING + "{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    DOUBLING + "{% set ns.s = '{}{}'.format(ns.s, ns.s) %}{% endfor %}",
    DOUBLING + "{% set ns.s = '%s%s' | format(ns.s, ns.s) %}{% endfor %}",
    "{% set a = 'a' * 1000000 %}{{ '%(a)s' * 100000 % {'a': a} }}",
    "{% set a = 'a' * 1000000 %}{{ [a] * 100000 }}",
    "{% set a = 'a' * 1000000 %}{{ ([a] * 20 + [a] * 20) | tojson }}",
    DOUBLING + "{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
    DOUBLING + "{% set ns.s = ns.s | replace('a', ns.s) %}{% endfor %}",
]
ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ ([range(99999)] * 99999) | map('sum') | list | length }}",
    "{{ range(99999) | select('in', range(99999) | list) | list | length }}",
]


@pytest.mark.parametrize("source", HUGE)
def test_render_when_a_template_asks_for_gigabytes_then_refused_without_them(source):
    tracemalloc.start()
    try:
        template = ChatTemplate(source)
        with pytest.raises(InvalidRequestError) as caught:
            template.render(USER)
        assert isinstance(caught.value.__cause__, TemplateLimitError)
        assert tracemalloc.get_traced_memory()[1] < 500 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("source", ENDLESS)
def test_render_when_a_template_runs_for_ever_then_it_ends(source):
    with pytest.raises(InvalidRequestError, match="takes too long"):
        ChatTemplate(source).render(USER)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ 'a' + 'b' + messages[0].content }}", "abhi"),
        ("{{ 1 + 2 + 3 }}", "6"),
        ("{{ [1] + [2] }}", "[1, 2]"),
        ("{% set a = [1] %}{% set b = a + [2] %}{{ a }}{{ b }}", "[1][1, 2]"),
        ("{{ 'a' ~ 1 ~ none }}", "a1None"),
        ("{{ '%s-%5d' % ('x', 3) }}", "x-    3"),
        ("{{ '%s' | format(3) }}", "3"),
        ("{{ '{:>4}|{}'.format(1, 1700000000) }}", "   1|1700000000"),
        ("{{ 'a' * 3 }}{{ 2 ** 10 }}{{ 7 % 4 }}", "aaa10243"),
        ("{{ messages | map(attribute='content') | join('-') }}", "hi"),
        ("{{ 'a,b'.split(',') | join(d='+') }}", "a+b"),
        ("{{ ','.join(['a', 'b']) }}{{ 'aa'.replace('a', 'bb') }}", "a,bbbbb"),
        ("{{ 'x' | center(5) }}{{ 5000000 | string }}", "  x  5000000"),
        ("{% for m in messages if m.role == 'user' %}{{ loop.index }}{% endfor %}", "1"),
        ("{{ messages[0] | tojson }}", json.dumps(USER[0])),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x }}", "a1"),
    ],
)
def test_render_when_a_template_is_ordinary_then_as_jinja_does(source, expected):
    assert ChatTemplate(source).render(USER) == expected


@pytest.mark.parametrize(
    "source",
    ["{{ lipsum(n=100000) }}", "{{ messages | urlize }}", "{{ " + "(" * 5000, "{% for %}"],
)
def test_template_when_it_is_beyond_us_then_an_error_of_ours(source):
    with pytest.raises(LingflashError):
        ChatTemplate(source).render(USER)


def checkpoint(folder, change=None, template="{{ messages[0].content }}", definition=None):
    spec = json.loads((bundled_folder() / "tokenizer.json").read_text())
    if change is not None:
        change(spec)
    (folder / "tokenizer.json").write_text(json.dumps(spec) if definition is None else definition)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def add_token(token_id):
    added = {"id": token_id, "content": "<x>", "special": True, "normalized": False}
    return lambda spec: spec["added_tokens"].append(
        {**added, "single_word": False, "lstrip": False, "rstrip": False}
    )


def set_regex(regex):
    def change(spec):
        spec["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": regex}

    return change


def set_normalizer(*parts):
    return lambda spec: spec.update({"normalizer": {"type": "Sequence", "normalizers": parts}})


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"}
BACKTRACKING = "(x+x+)+y|(a+)+(a+)+(a+)+c"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"change": lambda s: s["model"]["vocab"].update(zzzz=2**31)}, "token id 2147483648"),
        ({"change": lambda s: s["model"]["vocab"].update(zzzz="a")}, "token id 'a'"),
        ({"change": lambda s: s["model"]["vocab"].update(zzzz=True)}, "token id True"),
        ({"change": add_token(2**31)}, "token id 2147483648"),
        ({"change": add_token(-1)}, "token id -1"),
        ({"change": set_normalizer(*[REPLACE] * 12)}, "many times as long"),
        ({"change": set_regex(BACKTRACKING)}, "fails on this text"),
        ({"definition": "[" * 200_000}, "cannot be read"),
        ({"definition": ""}, "cannot be read"),
        ({"template": ENDLESS[0]}, "takes too long"),
        ({"template": HUGE[0]}, "characters"),
        ({"template": "{% for %}"}, "not a valid template"),
    ],
)
def test_from_folder_when_a_checkpoint_is_hostile_then_a_sentence(tmp_path, files, said):
    with pytest.raises(ModelLoadError, match=said):
        ModelText.from_folder(checkpoint(tmp_path, **files))


def test_from_folder_when_a_checkpoint_is_sound_then_read(tmp_path):
    text = ModelText.from_folder(checkpoint(tmp_path))
    assert text.encode_chat(USER) == text.tokenizer.encode("hi")


def test_from_folder_when_only_a_process_can_stop_it_then_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(start_check, "TIME_LIMIT_S", 4.0)
    lists = "{% set a = namespace(l=[1]) %}{% for i in range(60) %}{% set a.l = [a.l, a.l] %}"
    template = lists + "{% endfor %}{{ a.l | tojson | length }}"
    with pytest.raises(ModelLoadError, match=r"chat template of .* damaged or hostile"):
        ModelText.from_folder(checkpoint(tmp_path, template=template))


def test_encode_when_the_regular_expression_gives_up_then_an_error_of_ours(tmp_path):
    checkpoint(tmp_path, set_regex(BACKTRACKING))
    tokenizer = Tokenizer.from_folder(tmp_path)
    for text in ("a" * 4096, "a" * 20_000):
        with pytest.raises(InvalidRequestError, match="tokenizer fails on this text"):
            tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode("ok b")) == "ok b"


def test_tokenizer_when_it_pads_and_truncates_then_prompts_stay_as_they_are(tmp_path):
    def change(spec):
        spec["truncation"] = {"max_length": 2, "stride": 0, "strategy": "LongestFirst"}
        spec["truncation"]["direction"] = "Right"

    tokenizer = Tokenizer.from_folder(checkpoint(tmp_path, change))
    assert tokenizer.decode(tokenizer.encode("one two three four")) == "one two three four"
