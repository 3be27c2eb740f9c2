"""`ling connect` against a running server: what it prints, writes, refuses and misses."""

from __future__ import annotations

import json
import socket
import tomllib

import pytest

from api_support import RunningServer, engine_info, says
from lingflash.api.config import ServerConfig
from lingflash.cli import main
from lingflash.cli.connect_program import Settings
from lingflash.cli.connect_programs import PROGRAMS
from lingflash.core.hub import bundled_folder
from lingflash.text.tokenizer import Tokenizer


@pytest.fixture
def start():
    servers = []

    def make(context=65_536, **config):
        tokenizer = Tokenizer.from_folder(bundled_folder())
        end = tokenizer.token_id("<|role_end|>")
        info = engine_info(
            vocab_size=tokenizer.vocab_size, stop_token_ids=[end], max_model_len=context
        )
        config = {"model_folder": bundled_folder(), **config}
        servers.append(RunningServer(says("x"), config=ServerConfig(**config), info=info))
        return servers[-1].base_url

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def connect(capsys, monkeypatch, tmp_path):
    """Run the command with a home of its own; give exit code, output and errors."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["connect", *arguments])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


def test_connect_when_nothing_is_named_then_lists_every_program(connect):
    code, out, _ = connect()
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_connect_when_the_server_has_all_then_prints_its_settings(connect, start, name):
    url = start(api_keys=("se'cret",))
    code, out, err = connect(name, "--url", f"{url}/v1", "--api-key", "se'cret")
    assert (code, err) == (0, "")
    program = PROGRAMS[name]
    settings = Settings(url=url, model="ling-nano", key="se'cret", context=65_536)
    for text in (*program.files.values(), program.code):
        assert settings.fill(text).rstrip() in out
    assert all(f"export {variable}=" in out for variable in program.environment)
    assert program.version in out
    assert "$" not in out


@pytest.mark.parametrize("name", PROGRAMS)
def test_settings_when_filled_then_files_can_be_read(name):
    settings = Settings(url="http://h:1", model='a"b', key="k\\k", context=100_000)
    for file, text in PROGRAMS[name].files.items():
        filled = settings.fill(text)
        if file.endswith(".json"):
            assert 'a"b' in str(json.loads(filled))
        elif file.endswith(".toml"):
            assert tomllib.loads(filled)["model"] == 'a"b'


def test_connect_when_the_context_is_too_small_then_says_how_much_is_needed(connect, start):
    code, out, err = connect("claude-code", "--url", start(context=8192))
    assert code == 1
    assert "ANTHROPIC_BASE_URL" in out
    assert "needs a context of about 48,000 tokens" in err
    assert "the server has 8,192" in err
    assert "--max-model-len 65536" in err


def test_connect_when_the_server_takes_no_tools_then_says_so(connect, start):
    code, _, err = connect("codex", "--url", start(model_folder=None))
    assert code == 1
    assert "Codex CLI calls tools, and the server takes none: " in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["codx"], "did you mean codex?"),
        (["codex", "--url", "ftp://x"], "--url is 'ftp://x'"),
        (["codex", "--force"], "give both"),
    ],
)
def test_connect_when_used_wrongly_then_one_line(connect, arguments, expected):
    code, _, err = connect(*arguments)
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1


def test_connect_when_nobody_answers_then_says_what_to_start(connect):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        code, _, err = connect("codex", "--url", url)
    assert code == 1
    assert f"No server answers at {url}" in err
    assert "ling serve" in err


def test_connect_when_the_key_is_wrong_or_missing_then_says_which(connect, start):
    url = start(api_keys=("right",))
    assert "a key is needed" in connect("codex", "--url", url)[2]
    code, _, err = connect("codex", "--url", url, "--api-key", "wrong")
    assert code == 1
    assert "a key that was given is wrong" in err


def test_connect_when_the_model_is_not_served_then_names_those_that_are(connect, start):
    code, _, err = connect("codex", "--url", start(), "--model", "gpt")
    assert code == 2
    assert "the server has: ling-nano." in err


def test_write_when_there_is_no_file_then_it_is_made_for_its_owner_alone(connect, start, tmp_path):
    url = start()
    code, out, _ = connect("codex", "--url", url, "--write")
    assert code == 0
    path = tmp_path / ".codex/config.toml"
    assert path.stat().st_mode & 0o777 == 0o600
    assert (
        tomllib.loads(path.read_text())["model_providers"]["lingflash"]["base_url"] == f"{url}/v1"
    )
    assert '+model = "ling-nano"' in out
    assert "says so already" in connect("codex", "--url", url, "--write")[1]


@pytest.mark.parametrize(
    ("name", "file", "before"),
    [
        ("codex", ".codex/config.toml", '# mine\nhide = true\n\n[mcp_servers.x]\ncommand = "y"\n'),
        ("qwen-code", ".qwen/settings.json", '{"ui": {"theme": "dark"}, "env": {"A": "b"}}'),
        (
            "llm",
            ".config/io.datasette.llm/extra-openai-models.yaml",
            "- model_id: other\n  model_name: o\n",
        ),
    ],
)
def test_write_when_the_user_has_other_settings_then_they_stay(
    connect, start, tmp_path, name, file, before
):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(before)
    code, out, err = connect(name, "--url", start(), "--write")
    assert (code, err) == (0, "")
    assert f"{path} was written." in out
    after = path.read_text()
    if file.endswith(".toml"):
        assert before.strip() in after
        assert tomllib.loads(after)["mcp_servers"] == {"x": {"command": "y"}}
        assert tomllib.loads(after)["model_provider"] == "lingflash"
    elif file.endswith(".json"):
        read = json.loads(after)
        assert read["ui"] == {"theme": "dark"}
        assert read["env"] == {"A": "b", "LINGFLASH_API_KEY": "none"}
    else:
        assert after.startswith(before)
        assert 'model_id: "ling-nano"' in after


@pytest.mark.parametrize(
    ("name", "file", "before", "named"),
    [
        ("codex", ".codex/config.toml", 'model = "gpt"\n', "model"),
        ("codex", ".codex/config.toml", "model = \n", "no TOML"),
        (
            "claude-code",
            ".claude/settings.json",
            '{"env": {"ANTHROPIC_BASE_URL": "http://else"}}',
            "env.ANTHROPIC_BASE_URL",
        ),
        ("opencode", ".config/opencode/opencode.json", '// mine\n{"model": "x"}', "no plain JSON"),
        (
            "llm",
            ".config/io.datasette.llm/extra-openai-models.yaml",
            '- model_id: "ling-nano"\n  model_name: mine\n',
            "model_id",
        ),
    ],
)
def test_write_when_a_setting_would_change_then_only_with_force_and_a_copy(
    connect, start, tmp_path, name, file, before, named
):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(before)
    url = start()
    code, out, err = connect(name, "--url", url, "--write")
    assert code == 2
    assert named in err
    assert "Nothing was written" in err
    assert "+++" in out
    assert path.read_text() == before
    code, out, err = connect(name, "--url", url, "--write", "--force")
    assert (code, err) == (0, "")
    assert url in path.read_text()
    assert path.with_name(path.name + ".before-lingflash").read_text() == before


def test_write_when_the_program_has_no_file_then_says_so(connect, start):
    code, _, err = connect("openai-node", "--url", start(), "--write")
    assert code == 2
    assert "keeps no settings in a file" in err
