"""How each coding agent is run, and what the scripted model asks it to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

TASK = "What is the word in notes.txt?"
WORD = "heron"
ANSWER = f"The word is {WORD}."
SUMMARY = "SUMMARY: the long files tell of lines."


def call(name: str, **arguments: object) -> str:
    """A tool call as the model writes it."""
    body = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{body}\n</tool_call>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One agent's command and tools.

    Args:
        program: its name in the table of `ling connect`.
        lock: what installs it.
        command: its arguments; the task is appended.
        shell: name of its tool that runs a command: requests that offer it are the main loop.
        run: a call of that tool.
        read: a call that reads a file, by absolute path.
        look: a call that reads a picture; None where it has no such tool.
        end: what the model says at the end, after the answer's text.
        full_context: a context that a few long files fill.
        num_long: how many it reads.
        lines: how many each has.
        summarizes: pattern of its request for a summary; None where it drops turns instead.
        summary: the answer to that.
    """

    program: str
    lock: str
    command: tuple[str, ...]
    shell: str
    run: Callable[[str], str]
    read: Callable[[str], str]
    look: Callable[[str], str] | None = None
    end: tuple[str, ...] = (ANSWER,)
    environment: dict[str, str] = field(default_factory=dict)
    full_context: int
    num_long: int = 6
    lines: int = 150
    summarizes: str | None = None
    summary: str = SUMMARY

    def loop(self, folder: str) -> list[str]:
        """Three turns: a file, two commands at once, the answer."""
        both = self.run("wc -l notes.txt") + "\n" + self.run("ls")
        return [self.read(f"{folder}/notes.txt"), both, *self.end]

    def picture(self, folder: str) -> list[str]:
        """A picture, and then something that needs the session to live."""
        look = self.look or self.read
        return [look(f"{folder}/dot.png"), self.run("cat notes.txt"), *self.end]

    def fill(self, folder: str) -> list[str]:
        """More long files than the context holds."""
        return [*(self.read(f"{folder}/long{k}.txt") for k in range(self.num_long)), *self.end]


def _claude_code(lock: str, full_context: int) -> Agent:
    return Agent(
        program="claude-code",
        lock=lock,
        command=(
            *("claude", "--permission-mode", "acceptEdits", "--allowedTools", "Bash,Read"),
            "-p",
        ),
        shell="Bash",
        run=lambda line: call("Bash", command=line, description="run it"),
        read=lambda path: call("Read", file_path=path),
        full_context=full_context,
        lines=300,
        summarizes="<summary> block",
        summary=f"<analysis>short</analysis>\n<summary>{SUMMARY}</summary>",
    )


AGENTS = {
    "codex": Agent(
        program="codex",
        lock="codex",
        command=(
            *("codex", "exec", "--skip-git-repo-check"),
            "--dangerously-bypass-approvals-and-sandbox",
        ),
        shell="exec_command",
        run=lambda line: call("exec_command", cmd=line),
        read=lambda path: call("exec_command", cmd=f"cat {path}"),
        look=lambda path: call("view_image", path=path),
        full_context=32_000,
        lines=600,
        summarizes="CONTEXT CHECKPOINT COMPACTION",
    ),
    "claude-code": _claude_code("claude-code", 64_000),
    "claude-code-newest": _claude_code("claude-code-newest", 64_000),
    "opencode": Agent(
        program="opencode",
        lock="opencode",
        command=("opencode", "run", "--auto"),
        environment={"OPENCODE_DISABLE_MODELS_FETCH": "1"},
        shell="bash",
        run=lambda line: call("bash", command=line, description="run it"),
        read=lambda path: call("read", filePath=path),
        full_context=34_000,
        summarizes="Do not mention the summary process",
    ),
    "qwen-code": Agent(
        program="qwen-code",
        lock="qwen-code",
        command=("qwen", "--yolo", "-p"),
        shell="run_shell_command",
        run=lambda line: call("run_shell_command", command=line, is_background=False),
        read=lambda path: call("read_file", file_path=path),
        full_context=64_000,
        lines=300,
        summarizes="state_snapshot",
        summary=f"<state_snapshot>{SUMMARY}</state_snapshot>",
    ),
    "cline": Agent(
        program="cline",
        lock="cline",
        command=("cline", "--yolo"),
        shell="run_commands",
        run=lambda line: call("run_commands", commands=[line]),
        read=lambda path: call("read_files", files=[{"path": path}]),
        end=(call("submit_and_exit", summary=ANSWER, verified=True),),
        full_context=20_000,
        num_long=5,
    ),
}
