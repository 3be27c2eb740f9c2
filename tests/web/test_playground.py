"""The playground in Chromium, against a real `ling serve` with ling-nano."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.slow

# Title of each example to what its answer must show.
EXAMPLES = {
    "Call a tool": ["get_weather", '"city": "Lisbon"'],
    "Two calls at once": ['"city": "Lisbon"', '"city": "Oslo"'],
    "Choose among tools": ["book_table", '"people": 6', '"time": "19:30"'],
    "No tool fits": ["Sorry, none of my tools can do that."],
    "Answer in a schema": ['{"city": "Lisbon"}'],
}


def use_example(tab, title="Call a tool"):
    tab.page.get_by_role("button", name=title).click()
    return tab.wait_answer()


def test_first_visit_then_every_example_works_with_ling_nano(ling_serve, open_tab):
    tab = open_tab(ling_serve)
    page = tab.open()
    page.get_by_role("button", name="Call a tool").wait_for()
    titles = page.locator(".examples strong").all_text_contents()
    assert titles == list(EXAMPLES)
    for title, wanted in EXAMPLES.items():
        answer = use_example(tab, title)
        for text in wanted:
            expect(answer).to_contain_text(text)
        page.get_by_role("button", name="New", exact=True).click()


def test_tool_loop_when_answered_by_hand_then_measured_and_the_prompt_shows_what_was_cached(
    ling_serve, open_tab
):
    tab = open_tab(ling_serve)
    page = tab.open()
    use_example(tab)
    tab.say("and now?")  # refused while a call has no answer
    expect(page.get_by_text("Answer the calls above first.")).to_be_visible()
    assert tab.answers().count() == 1
    page.get_by_label("Answer by hand").fill("21 degrees, sunny")
    page.get_by_role("button", name="Send result").click()
    answer = tab.wait_answer(1)
    expect(answer).to_contain_text("21 degrees, sunny")
    measured = answer.locator(".measured")
    names, values = (measured.locator(each).all_text_contents() for each in ("dt", "dd"))
    numbers = dict(zip(names, values, strict=True))
    assert set(numbers) == {"First token", "Tokens/s", "Prompt", "Cached", "Answer"}
    assert 0 < int(numbers["Cached"]) < int(numbers["Prompt"])
    assert re.fullmatch(r"[\d.]+ m?s", numbers["First token"])
    assert float(numbers["Tokens/s"].replace(",", "")) > 0
    expect(measured).to_contain_text("Cache:")
    answer.get_by_role("button", name="Prompt").click()
    prompt = page.locator("pre.prompt")
    expect(prompt).to_contain_text("<role>OBSERVATION</role>")
    shaded = prompt.locator("mark").inner_text()
    assert prompt.inner_text().startswith(shaded)
    assert "What is the weather in Lisbon?" in shaded


def test_settings_when_a_schema_is_wrong_then_said_at_once_and_nothing_is_sent(
    ling_serve, open_tab
):
    tab = open_tab(ling_serve)
    page = tab.open()
    tools = page.get_by_label("Tools, as JSON")
    for text, said in (
        ("[{,}]", "Line 1, column 3"),
        ('{"type": "function"}', "Write a list of tools"),
        ('[{"type": "function"}]', "tools[0].function is missing"),
        (_tool(parameters={"type": "objekt"}), 'parameters.type is "objekt"; allowed: object'),
        (
            _tool(parameters={"type": "object", "properties": {"a": {}}, "required": ["b"]}),
            'required names "b", which is no property',
        ),
        (_tool(strict=True, parameters={"not": {}}), "parameters.not cannot be enforced"),
    ):
        tools.fill(text)
        expect(page.locator(".field", has=tools)).to_contain_text(said)
        expect(tools).to_have_attribute("aria-invalid", "true")
    tab.say("hello")
    expect(page.get_by_text("Something in the settings is wrong.")).to_be_visible()
    assert tab.answers().count() == 0
    tools.fill("")
    page.get_by_label("Temperature").fill("warm")
    expect(page.get_by_text("Temperature: a number, 0 to 2.")).to_be_visible()


def test_settings_when_the_server_refuses_a_schema_then_said_beside_it(ling_serve, open_tab):
    tab = open_tab(ling_serve, expects=True)
    page = tab.open()
    page.get_by_label("The answer is").select_option("regex")
    page.get_by_label("Regular expression").fill("(a")
    tab.say("hello")
    expect(tab.wait_answer().get_by_role("alert")).to_contain_text("regex")
    field = page.locator(".field", has=page.get_by_label("Regular expression"))
    expect(field.locator(".problems")).to_contain_text("regex")
    page.get_by_label("Regular expression").fill("yes|no")
    page.get_by_role("button", name="Retry").click()
    expect(tab.answers().first.locator("pre.code")).to_have_text(re.compile("^(yes|no)$"))


def _tool(**fields):
    return json.dumps([{"type": "function", "function": {"name": "f", **fields}}])


def test_compare_when_settings_differ_then_two_answers_side_by_side(ling_serve, open_tab):
    tab = open_tab(ling_serve)
    page = tab.open()
    page.get_by_role("button", name="Compare").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Settings of B").click()
    page.get_by_label("Longest answer").fill("3")
    page.get_by_label("Temperature").fill("0")
    tab.say("Hello! Who are you?")
    tab.wait_answer(1)
    first = page.get_by_role("region", name="Conversation A")
    second = page.get_by_role("region", name="Conversation B")
    expect(first).to_contain_text("I am ling-nano, the small model")
    expect(second).not_to_contain_text("the small model")
    expect(second).to_contain_text("Cut off")


def test_file_when_exported_and_imported_then_the_conversation_goes_on(
    ling_serve, open_tab, tmp_path
):
    tab = open_tab(ling_serve)
    page = tab.open()
    use_example(tab)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / "conversation.json"
    download.value.save_as(file)
    assert json.loads(file.read_text())["kind"] == "lingflash-conversation"
    page.reload()
    page.get_by_label("Conversation file").set_input_files(file)
    page.get_by_label("Answer by hand").fill("rain")
    page.get_by_role("button", name="Send result").click()
    expect(tab.wait_answer(1)).to_contain_text("rain")
    for content, said in (("{", "no JSON"), ("{}", "no conversation of this page")):
        file.write_text(content)
        page.get_by_label("Conversation file").set_input_files(file)
        expect(page.get_by_role("alert")).to_contain_text(said)


def test_code_then_each_language_runs_and_gets_the_answer(ling_serve, open_tab, tmp_path):
    tab = open_tab(ling_serve)
    page = tab.open()
    use_example(tab)
    page.get_by_label("System prompt").fill('It\'s "so" – $HOME `x` \\n')
    page.get_by_label("Top k").fill("5")
    page.get_by_role("button", name="Code").click()
    environment = {k: v for k, v in os.environ.items() if k != "OPENAI_API_KEY"}
    for language, command in (
        ("curl", ["sh"]),
        ("Python", [sys.executable]),
        ("JavaScript", ["node", "--input-type=module", "-"]),
    ):
        page.get_by_role("button", name=language).click()
        code = page.locator("dialog pre.code").inner_text()
        assert "top_k" in code
        ran = subprocess.run(
            command, input=code, capture_output=True, text=True, timeout=60, env=environment
        )
        assert ran.returncode == 0, ran.stderr
        assert "get_weather" in ran.stdout, ran.stdout + ran.stderr


def test_keyboard_alone_then_a_message_is_sent_and_a_dialog_left(ling_serve, open_tab):
    tab = open_tab(ling_serve)
    page = tab.open()
    page.get_by_role("button", name="Call a tool").wait_for()
    page.keyboard.press("Tab")
    seen = []
    for _ in range(60):
        focused = page.evaluate(
            "() => { const e = document.activeElement;"
            " return [e.id, (e.textContent || '').trim().slice(0, 20),"
            " getComputedStyle(e).outlineStyle]; }"
        )
        if focused[0] == "composer":
            break
        seen.append(focused)
        page.keyboard.press("Tab")
    assert focused[0] == "composer", seen
    labels = [each[1] for each in seen]
    wanted = ("Playground", "Dashboard", "New", "Compare", "Code", "Export", "Import")
    assert [name for name in wanted if name not in labels] == []
    assert all(outline != "none" for _, _, outline in seen)
    page.keyboard.type("Hello! Who are you?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Tell me.")
    page.keyboard.press("Enter")
    answer = tab.wait_answer()
    answer.get_by_role("button", name="Prompt").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
