"""A browser for the tests of the page: Debian's Chromium, and what it complained about."""

from __future__ import annotations

import contextlib
import os
import shutil
from urllib.parse import urlsplit

from clients_support import missing_client

# Beside others on the machine; nothing that is as it should be waits for so long.
PATIENCE_S = 30
SANDBOX_KEYS = ("e2b_key", "e2b_other")
# What Chromium itself writes about an answer with a bad status, which some tests provoke.
_EXPECTED = "Failed to load resource"


@contextlib.contextmanager
def chromium():
    """A browser, or the end of the test where there is none."""
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError as error:
        missing_client(f"playwright is not installed ({error}); `make check` installs it")
    path = shutil.which("chromium")
    if path is None:
        missing_client("there is no Chromium; tests/install-debian.sh installs it")
    expect.set_options(timeout=PATIENCE_S * 1000)
    with sync_playwright() as playwright:
        # As root Chromium has no sandbox of its own; all it opens here is ours.
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page and everything about it that must not happen.

    Args:
        url: of the server.
        expects_failures: answers with a bad status are part of the test.
    """

    def __init__(self, browser, url, *, width=1280, height=800, scheme="light", expects=False):
        self.origin = url
        self.complaints = []
        self._expects = expects
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        self.context.set_default_timeout(PATIENCE_S * 1000)
        self.page = self.context.new_page()
        self.page.add_init_script(
            "addEventListener('securitypolicyviolation', (event) =>"
            " console.error('policy', event.violatedDirective, event.blockedURI));"
        )
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"threw: {error}"))
        self.page.on("dialog", lambda dialog: self._on_dialog(dialog))
        self.page.on("request", self._on_request)

    def _on_console(self, message):
        if message.type in ("error", "warning"):
            if self._expects and _EXPECTED in message.text:
                return
            self.complaints.append(f"console: {message.text}")

    def _on_dialog(self, dialog):
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _on_request(self, request):
        parts = urlsplit(request.url)
        if parts.scheme in ("data", "blob"):
            return
        if f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.complaints.append(f"request: {request.url}")

    def open(self, screen="playground"):
        self.page.goto(f"{self.origin}/ui#/{screen}")
        return self.page

    def say(self, text):
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.keyboard.press("Enter")

    def answers(self):
        return self.page.get_by_role("article", name="Model")

    def wait_answer(self, number=0):
        """The answer with this number, when it has ended."""
        answer = self.answers().nth(number)
        answer.get_by_role("button", name="Retry").wait_for(timeout=30_000)
        return answer

    def close(self):
        self.context.close()
        assert self.complaints == []


@contextlib.contextmanager
def tab(browser, url, **options):
    """A page that must not have complained by the end."""
    opened = Tab(browser, url, **options)
    try:
        yield opened
    except BaseException:
        print("the page complained:", opened.complaints)
        opened.context.close()
        raise
    opened.close()
