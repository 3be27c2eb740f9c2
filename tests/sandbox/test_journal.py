"""What a sandbox remembers of what ran in it."""

from __future__ import annotations

from lingflash.sandbox.journal import Journal
from lingflash.sandbox.process import End, Output


def told(journal):
    return [(each.level, each.source, each.message) for each in journal]


def test_process_then_its_command_output_and_end_are_kept_and_no_letter_is_torn():
    journal = Journal()
    hear = journal.of_process(["sh", "-c", "echo ä"])
    first, second = "ä\n".encode()[:1], "ä\n".encode()[1:]
    for event in (Output(1, first), Output(2, b"oh"), Output(1, second), End(1, 0)):
        hear(event)
    journal.of_process(["true"])(End(0, 9))
    assert told(journal) == [
        ("debug", "process 1", "sh -c 'echo ä'"),
        ("error", "process 1", "oh"),
        ("info", "process 1", "ä\n"),
        ("debug", "process 1", "exit status 1"),
        ("debug", "process 2", "true"),
        ("debug", "process 2", "ended by Killed"),
    ]


def test_code_then_its_text_output_results_and_errors_are_kept():
    journal = Journal()
    hearer = journal.of_code("python", "1 / 0")
    for event in (
        {"type": "stdout", "text": "hi\n"},
        {"type": "result", "text": "42"},
        {"type": "result", "png": "aaaa"},
        {"type": "error", "name": "ZeroDivisionError", "value": "division by zero"},
        {"type": "number_of_executions", "execution_count": 1},
    ):
        hearer.hear(event)
    assert [message for _, _, message in told(journal)] == [
        "1 / 0", "hi\n", "42", "[png]", "ZeroDivisionError: division by zero",
    ]  # fmt: skip
    assert {source for _, source, _ in told(journal)} == {"python 1"}


def test_journal_when_much_is_written_then_the_oldest_goes_and_memory_stays():
    journal = Journal()
    hear = journal.of_process(["yes", "x" * 10_000])
    for number in range(5000):
        hear(Output(1, f"{number} ".encode() * 20))
    hear(Output(1, b"y" * 10**6))
    entries = told(journal)
    assert sum(len(message) for _, _, message in entries) <= 1 << 16
    assert set(entries[-1][2]) == {"y"}
    for number in range(5000):
        hear(Output(1, b"%d" % (number % 10)))
    assert len(told(journal)) == 1000
