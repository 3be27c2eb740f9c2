"""The command line: messages, exit codes, environment, and how little it imports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from lingflash import __version__
from lingflash.api.config import ServerConfig
from lingflash.cli import app, main
from lingflash.core.config import EngineConfig
from lingflash.core.errors import ConfigError
from lingflash.core.settings import settings_of
from lingflash.httpd.keys import with_keys_of_file


def run(*arguments, env=None, text=None):
    return subprocess.run(
        [sys.executable, "-c", "from lingflash.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        input=text,
        timeout=60,
        env={**os.environ, **(env or {})},
    )


@pytest.fixture
def call(capsys):
    """Run a command in this process; give exit code, output and errors."""

    def run_here(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run_here


def test_help_then_quick_and_without_torch():
    code = (
        "import sys, time; start = time.perf_counter(); import lingflash.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'fastapi' not in sys.modules\n"
        "print('seconds', time.perf_counter() - start)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    for command in ("serve", "chat", "doctor", "train"):
        assert command in result.stdout
    assert float(result.stdout.rsplit("seconds", 1)[1]) < 5  # under 1 on an idle machine


def test_version_then_printed(call):
    assert call("--version") == (0, f"lingflash {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["serve", "--nope"], 2, ["--nope"]),
        (["frob"], 2, ["frob"]),
        (["serve", "--port", "x"], 2, ["--port"]),
        (["serve", "--port", "99999"], 2, ["--port", "65535"]),
        (["serve", "--device", "tpu"], 2, ["--device", "tpu", "cuda"]),
        (["serve", "--rope-scaling", "{"], 2, ["--rope-scaling", "JSON"]),
        (["serve", "--memory-fraction", "2"], 2, ["--memory-fraction"]),
        (["serve", "--engine-restarts", "-1"], 2, ["--engine-restarts"]),
        (["serve", "--drain-timeout-s", "-1"], 2, ["--drain-timeout-s"]),
        (["serve", "--log-level", "loud"], 2, ["--log-level", "debug"]),
        (["serve", "--api-key", ""], 2, ["--api-key"]),
        (["serve", "/nowhere/at/all", "--port", "0"], 1, ["/nowhere/at/all"]),
        (["serve", "--host", "no.such.host.invalid", "--port", "0"], 2, ["no.such.host.invalid"]),
        (["chat", "--url", "ftp://x"], 2, ["--url"]),
        (["chat", "--url", "http://127.0.0.1:9"], 1, ["127.0.0.1:9"]),
        (["chat", "--temperature", "-3"], 1, ["temperature"]),
        (["doctor", "/nowhere/at/all"], 1, ["/nowhere/at/all"]),
    ],
)
def test_command_when_misused_then_one_clear_line_and_its_exit_code(
    call, monkeypatch, arguments, code, words
):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("hello"))
    got, _, errors = call(*arguments)
    assert got == code, errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    for word in words:
        assert word in errors


def test_serve_when_the_port_is_in_use_then_one_clear_line(call):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        code, _, errors = call("serve", "--port", str(port))
    assert code == 2
    assert errors == (
        f"error: Port {port} on 127.0.0.1 is in use; stop what uses it, or give another --port.\n"
    )


def test_environment_when_a_variable_is_unknown_then_refused_by_name():
    result = run("--version", env={"LINGFLASH_PROT": "1"})
    assert result.returncode == 2
    assert "LINGFLASH_PROT" in result.stderr
    assert "did you mean LINGFLASH_PORT?" in result.stderr


def test_environment_when_a_variable_is_set_then_it_is_the_flag(call, monkeypatch):
    monkeypatch.setenv("LINGFLASH_LOG_LEVEL", "loud")
    code, _, errors = call("serve")
    assert code == 2
    assert "'loud'" in errors


def test_environment_then_every_option_of_serve_has_its_variable():
    import typer

    command = typer.main.get_command(app).commands["serve"]
    found = {}
    for parameter in command.params:
        if parameter.name == "help":
            continue
        flag = parameter.opts[0] if parameter.opts[0].startswith("--") else "MODEL"
        found[flag] = parameter.envvar
    settings = [each for cls in (EngineConfig, ServerConfig) for each in settings_of(cls).values()]
    assert found == {each.flag: each.variable for each in settings}


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve"],
        ["chat"],
        ["doctor"],
        ["train"],
        ["convert", "ling-nano", "x", "--format", "fp8"],
        ["bench", "throughput"],
        ["bench", "soak"],
    ],
)
def test_command_when_torch_is_not_installed_then_one_line_names_the_extra(arguments):
    code = (
        "import sys; sys.modules['torch'] = None  # as if it were not there\n"
        "from lingflash.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr == (
        "error: This needs torch, which is not installed: pip install 'lingflash[engine]'.\n"
    )


def test_chat_when_piped_then_answers_once_through_a_server(tmp_path):
    from api_support import RunningServer, says, write_toy_model
    from lingflash.api.config import ServerConfig

    server = RunningServer(
        says("Grüße!"), config=ServerConfig(model_folder=write_toy_model(tmp_path))
    )
    try:
        result = run("chat", "--url", server.base_url, "--system", "be kind", text="hello\n")
        assert result.returncode == 0, result.stderr
        assert result.stdout == "Grüße!\n"
        assert len(server.engine.requests) == 1
        server.engine.behaviour.fail_after_tokens = 2
        result = run("chat", "--url", server.base_url, text="hello")
        assert result.returncode == 1
        assert result.stderr == "error: scripted failure\n"
        result = run("chat", "--url", server.base_url, text=" ")
        assert result.returncode == 2
    finally:
        server.stop()


def test_rooms_without_torch_then_they_load_without_it():
    code = (
        "import importlib, pkgutil, sys\n"
        "import lingflash\n"
        "for room in ('core', 'protocol', 'text', 'cache', 'structured', 'link',\n"
        "             'httpd', 'api'):\n"
        "    package = importlib.import_module('lingflash.' + room)\n"
        "    for item in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(item.name)\n"
        "import lingflash.engine.schedule.scheduler, lingflash.cli\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr


def test_interrupt_when_serving_the_command_then_130_without_a_traceback():
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from lingflash.cli import main; main()",
            "chat",
            "--url",
            "http://x",
        ],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a script passes on that it ignores this signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(1.5)  # it waits for its standard input
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert errors == ""


@pytest.mark.parametrize("name", ["LINGFLASH_API_KEY", "LINGFLASH_ADMIN_API_KEY"])
@pytest.mark.parametrize("value", ["", "  ", "\n"])
def test_serve_when_a_keys_variable_holds_none_then_refused_by_name(name, value):
    result = run("serve", "--port", "0", env={name: value})
    assert result.returncode == 2
    assert name in result.stderr
    assert "holds no key" in result.stderr


def test_api_key_file_when_read_then_its_keys_are_added_and_bad_ones_named(tmp_path):
    path = tmp_path / "keys"
    path.write_text("one\n\n  two \n")
    config = with_keys_of_file(ServerConfig(api_keys=("zero",), api_key_file=path))
    assert config.api_keys == ("zero", "one", "two")
    for text, what in (("", "holds no key"), ("kéy", "ASCII"), (None, "cannot be read")):
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=what):
            with_keys_of_file(ServerConfig(api_key_file=path))


@pytest.mark.parametrize(
    ("host", "keys", "is_open"),
    [("127.0.0.1", (), False), ("::1", (), False), ("localhost", (), False), ("0.0.0.0", (), True),
     ("::", (), True), ("10.0.0.1", (), True), ("0.0.0.0", ("k",), False)],
)  # fmt: skip
def test_config_when_reached_from_elsewhere_without_keys_then_open(host, keys, is_open):
    assert ServerConfig(host=host, api_keys=keys).is_open == is_open
