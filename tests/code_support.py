"""A scripted model that calls code, in front of a real `ling sandbox`."""

from __future__ import annotations

import json

from api_support import read_named_events
from lingflash.core.hub import bundled_folder
from lingflash.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_folder(bundled_folder())
END = TOKENIZER.token_id("<|role_end|>")
PATH = "/v1/responses"
AUTO = {"type": "code_interpreter", "container": {"type": "auto"}}
OUTPUTS = ["code_interpreter_call.outputs"]
# Code that is still running when it is looked at.
SLEEP = "import time\ntime.sleep(300)"


def alive(sandboxes):
    """The sandboxes that a server has given out."""
    with sandboxes.client() as client:
        return client.get("/v2/sandboxes").json()


def calls(*codes, name="python"):
    """What a model writes to have code run."""
    bodies = [json.dumps({"name": name, "arguments": {"code": code}}) for code in codes]
    return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


class Rounds:
    """A script: one text a round of an answer, each after the results of the one before.

    Args:
        texts: the last one is for all further rounds.
    """

    tokenizer = TOKENIZER

    def __init__(self, *texts):
        self.texts = texts
        self.prompts = []
        self.generated = []

    def __call__(self, request, choice):
        prompt = TOKENIZER.decode(request.prompt_token_ids)
        since = prompt.rpartition("<role>HUMAN</role>")[2]
        done = since.count("<role>ASSISTANT</role>") - 1
        text = self.texts[min(done, len(self.texts) - 1)]
        self.prompts.append(prompt)
        self.generated.append((list(request.prompt_token_ids), TOKENIZER.encode(text)))
        return self.generated[-1][1]

    def check_prefix(self):
        """Each prompt continues the one before it and what was generated then."""
        for (prompt, answer), (following, _) in zip(
            self.generated, self.generated[1:], strict=False
        ):
            assert following[: len(prompt) + len(answer)] == [*prompt, *answer]

    @property
    def results(self):
        """The results of tools in the newest prompt."""
        parts = self.prompts[-1].split("<tool_response>\n")[1:]
        return [part.partition("\n</tool_response>")[0] for part in parts]


def create(server, given="hi", **fields):
    """Ask for an answer that may run code."""
    body = {"input": given, "tools": [AUTO], "include": OUTPUTS, **fields}
    return server.post(PATH, body)


def stream(server, given="hi", **fields):
    """The events of such an answer."""
    body = {"input": given, "tools": [AUTO], "include": OUTPUTS, "stream": True, **fields}
    with server.client.stream("POST", PATH, json=body) as response:
        assert response.status_code == 200, response.read()
        return read_named_events(response.read())


def code_items(response):
    """The items of code."""
    return [item for item in response["output"] if item["type"] == "code_interpreter_call"]


def logs(item):
    """What the code of an item wrote."""
    return "".join(each["logs"] for each in item["outputs"] if each["type"] == "logs")


def texts(response):
    """The texts of the messages."""
    return [c["text"] for i in response["output"] if i["type"] == "message" for c in i["content"]]


def is_idle(server, sandboxes):
    """Whether nothing is left of what was asked: no sequence, no sandbox, no record of it."""
    stats, state = server.engine.stats, server.state
    return (
        stats.num_running == stats.num_waiting == 0
        and not state.live_responses
        and not state.in_flight
        and alive(sandboxes) == []
    )
