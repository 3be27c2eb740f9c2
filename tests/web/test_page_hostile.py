"""Hostile text in everything that the page shows: nothing of it runs, and nothing is loaded."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from lingflash.core.errors import LingflashError
from lingflash.link.scripted import Behaviour

pytestmark = pytest.mark.slow

# Each would set `window.hit` or reach another origin; after OWASP's and DOMPurify's lists.
CORPUS = [
    "<script>window.hit=1</script>",
    "<script src=https://evil.example/x.js></script>",
    "<img src=x onerror=window.hit=2>",
    "<img src=https://evil.example/x.png>",
    "![pixel](https://evil.example/x.png)",
    "![x](x.png \"a\" onerror=\"window.hit=3\")",
    "<svg onload=window.hit=4></svg>",
    "<svg><animate onbegin=window.hit=5 attributeName=x dur=1s>",
    "<svg><script>window.hit=6</script></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror=window.hit=7&gt;\">",  # noqa: E501
    "<iframe src=javascript:window.hit=8></iframe>",
    "<iframe srcdoc='<script>parent.hit=9</script>'></iframe>",
    "<object data=javascript:window.hit=10></object><embed src=javascript:window.hit=10>",
    "[link](javascript:window.hit=11)",
    "[link](JaVaScRiPt:window.hit=12)",
    "[link](data:text/html,<script>window.hit=13</script>)",
    "[link](  java&#115;cript:window.hit=14)",
    "[link](vbscript:window.hit=15)",
    "<javascript:window.hit=16>",
    "<a href=\"javascript:window.hit=17\">x</a>",
    "<form action=javascript:window.hit=18><input type=submit formaction=javascript:window.hit=18>",
    "<body onload=window.hit=19><input autofocus onfocus=window.hit=19>",
    "<details open ontoggle=window.hit=20>",
    "<video><source onerror=window.hit=21></video><audio src onerror=window.hit=21>",
    "<style>@import 'https://evil.example/x.css';</style><link rel=stylesheet href=https://evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'><base href=https://evil.example/>",
    "<template><script>window.hit=22</script></template>",
    "<div style=\"background:url(https://evil.example/x)\">x</div>",
    "```html\n<script>window.hit=23</script>\n```",
    "`<img src=x onerror=window.hit=24>`",
    "```\"><img/src=x/onerror=window.hit=25>\nx\n```",
    "| a |\n|---|\n| <img src=x onerror=window.hit=26> |",
    "- [ ] <img src=x onerror=window.hit=27>",
    "[a]: javascript:window.hit=28\n\n[a]",
    "${window.hit=29} {{window.hit=29}} <% window.hit=29 %>",
    "&lt;img src=x onerror=window.hit=30&gt; &#60;script&#62;window.hit=30&#60;/script&#62;",
    "</div></article><script>window.hit=31</script>",
    "<noscript><p title=\"</noscript><img src=x onerror=window.hit=32>\">",
    "\u202ejavascript:window.hit=33\u2028<img src=x onerror=window.hit=33>",
    "<xmp><img src=x onerror=window.hit=34></xmp><plaintext>",
]  # fmt: skip
IN_NAMES = "<img src=x onerror=window.hit=90>"
FORBIDDEN = (
    "script:not([src^='/ui/']), link:not([href^='/ui/']), iframe, object, embed, svg, math, img,"
    " video, audio, base, meta[http-equiv], main style, form[action], .message [style],"
    " a[href^='javascript' i], a[href^='data' i], a[href^='vbscript' i]"
)


def check_harmless(page):
    assert page.evaluate("() => window.hit") is None
    assert page.evaluate(
        "selector => [...document.querySelectorAll(selector)].map(e => e.outerHTML)", FORBIDDEN
    ) == []  # fmt: skip
    handlers = page.evaluate(
        "() => [...document.querySelectorAll('*')].flatMap(e => [...e.attributes])"
        ".filter(a => /^on/i.test(a.name)).map(a => a.name)"
    )
    assert handlers == []


def test_answer_when_its_text_is_hostile_then_shown_as_text(make_server, open_tab):
    # Streamed in small pieces, so that every unfinished state of it is drawn, too.
    server = make_server("\n\n".join(CORPUS), behaviour=Behaviour(delay_s=0.001))
    tab = open_tab(server.base_url)
    page = tab.open()
    tab.say(CORPUS[0])
    answer = tab.wait_answer()
    expect(answer).to_contain_text("<img src=x onerror=window.hit=2>")
    expect(answer).to_contain_text("<xmp>")
    check_harmless(page)
    for link in answer.get_by_role("link").all():
        assert link.get_attribute("href").startswith(("https://", "http://", "mailto:"))
        assert link.get_attribute("rel") == "noopener noreferrer"
    # Each by itself too: what is open before it may hide it.
    for text in CORPUS:
        page.evaluate(
            "async (text) => {"
            " const { GrowingText } = await import('/ui/lib/markdown.js');"
            " const root = document.querySelector('main').appendChild(document.createElement('div'));"  # noqa: E501
            " const drawing = new GrowingText(root);"
            " for (let end = 1; end <= text.length; end += 1) drawing.set(text.slice(0, end), false);"  # noqa: E501
            " drawing.set(text, true);"
            " await new Promise((resolve) => setTimeout(resolve, 5));"
            "}",
            text,
        )
    page.wait_for_timeout(300)  # a loaded picture's error comes later
    check_harmless(page)


def test_call_when_names_arguments_and_thinking_are_hostile_then_shown_as_text(
    make_server, open_tab
):
    call = json.dumps({"name": IN_NAMES, "arguments": {IN_NAMES: CORPUS}})
    thinking = f"<think>{CORPUS[2]}{CORPUS[6]}</think>"
    server = make_server(f"{thinking}\n<tool_call>\n{call}\n</tool_call>")
    tab = open_tab(server.base_url)
    page = tab.open()
    tool = {"type": "function", "function": {"name": IN_NAMES, "description": CORPUS[2]}}
    page.get_by_label("Tools, as JSON").fill(json.dumps([tool]))
    page.get_by_label("System prompt").fill(CORPUS[2])
    page.get_by_label("Think before answering").check()
    tab.say(IN_NAMES)
    answer = tab.wait_answer()
    expect(answer.locator(".tool-card h3 code")).to_have_text(IN_NAMES)
    expect(answer.locator(".reasoning")).to_contain_text(CORPUS[6])
    page.get_by_label("Answer by hand").fill(CORPUS[2])
    page.get_by_role("button", name="Send result").click()
    tab.wait_answer(1)
    tab.answers().nth(0).get_by_role("button", name="Prompt").click()
    expect(page.locator("pre.prompt")).to_contain_text(IN_NAMES)
    check_harmless(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Code").click()
    expect(page.locator("dialog pre.code")).to_contain_text("window.hit=90")
    check_harmless(page)


def test_names_when_hostile_then_shown_as_text(make_server, open_tab, tmp_path):
    failure = LingflashError(IN_NAMES)
    server = make_server(
        "fine",
        behaviour=Behaviour(fail_after_tokens=0, fail_with=failure),
        served_model_names=(IN_NAMES, "other"),
    )
    tab = open_tab(server.base_url, expects=True)
    page = tab.open()
    page.get_by_label("Model", exact=True).select_option(IN_NAMES)
    tab.say("hello")
    expect(tab.wait_answer().get_by_role("alert")).to_contain_text(IN_NAMES)
    file = tmp_path / "<img src=x onerror=window.hit=91>.json"
    for content in (
        IN_NAMES,
        json.dumps({"kind": IN_NAMES}),
        json.dumps(
            {
                "kind": "lingflash-conversation",
                "version": 1,
                "panes": [{"settings": {IN_NAMES: "x"}, "messages": []}],
            }
        ),
    ):
        file.write_text(content)
        page.get_by_label("Conversation file").set_input_files(file)
        expect(page.locator("main > div .trouble").first).to_be_visible()
    page.goto(f"{server.base_url}/ui#/{IN_NAMES}")
    server.client.get(f"/{IN_NAMES}")
    server.client.post("/v1/chat/completions", json={"model": IN_NAMES, "messages": []})
    page.get_by_role("link", name="Dashboard").click()
    expect(page.get_by_role("heading", name="Errors")).to_be_visible()
    check_harmless(page)
