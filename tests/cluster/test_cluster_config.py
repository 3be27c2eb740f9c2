"""cluster.toml: what is wrong with it is told in one sentence, with the file and the key."""

from __future__ import annotations

import socket
import sys

import pytest

from lingflash import cli
from lingflash.cluster.config import load_cluster
from lingflash.cluster.ray_environment import prepare
from lingflash.core.errors import ConfigError

GOOD = """
[cluster]
port = 8201
token_variable = "TOKEN"

[ray]
address = "10.0.0.1:6379"

[replica]
model = "ling-nano"
flags = ["--max-model-len", "2048"]
num_gpus = 1

[scale]
min = 2
max = 4
"""


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "cluster.toml"
        path.write_text(text)
        return load_cluster(path, {"TOKEN": "tok-secret"})

    return load


def test_file_when_good_then_all_of_it_is_read(load):
    config = load(GOOD)
    assert (config.cluster.port, config.ray.address, config.token) == (
        8201,
        "10.0.0.1:6379",
        "tok-secret",
    )
    assert (config.replica.flags, config.replica.num_gpus) == (("--max-model-len", "2048"), 1)
    assert (config.scale.min, config.scale.most) == (2, 4)
    assert "tok-secret" not in repr(config)


def test_file_when_it_is_short_then_one_replica_of_a_local_ray(load):
    config = load('[cluster]\ntoken_variable = "TOKEN"\n[replica]\nmodel = "ling-nano"')
    assert (config.ray.address, config.scale.min, config.scale.most) == ("local", 1, 1)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('model = "ling-nano"', "", r"replica lacks the key 'model'"),
        ('model = "ling-nano"', "model = 3", "replica.model is 3; it must be a text"),
        ('[replica]\nmodel = "ling-nano"', "[replicas]", "replica is missing; write .replica."),
        ("[ray]", "[rey]", "rey is not a known key; did you mean ray"),
        ("port = 8201", "prot = 1", "cluster.prot is not a known key; did you mean port"),
        ("port = 8201", "port = 70000", "cluster.port is 70000; allowed: 0 to 65535"),
        ('"TOKEN"', '"TOKN"', "cluster.token_variable names TOKN, which is not set or empty"),
        ('token_variable = "TOKEN"', "", "cluster has no token; name one by token_variable or"),
        ('token_variable = "TOKEN"', 'token = "t"', "cluster.token is not a known key"),
        ("num_gpus = 1", "num_gpus = -1", "replica.num_gpus is -1; allowed: 0 or more"),
        ("num_gpus = 1", "num_gpus = 0.5", "replica.num_gpus is 0.5; it must be a whole number"),
        ('"--max-model-len"', '"--port"', "replica.flags holds --port, which the cluster sets"),
        ('"--max-model-len"', '"--api-key=k"', "replica.flags holds --api-key, which the clus"),
        ("num_gpus = 1", 'host = "0.0.0.0"', "replica.host is '0.0.0.0', every address of a mac"),
        ("max = 4", "max = 1", "scale.max is 1, below scale.min, which is 2"),
        ("min = 2", "min = 0", "scale.min is 0; allowed: 1 to 10000"),
        ("max = 4", "cooldown_s = -1", "scale.cooldown_s is -1; allowed: 0 or more"),
        ('address = "10.0.0.1:6379"', 'address = ""', "must be a text that is not empty"),
        ("[scale]", "[scale", "is not TOML"),
    ],
)
def test_file_when_something_is_wrong_then_one_sentence(load, old, new, words):
    assert old in GOOD
    with pytest.raises(ConfigError, match=words) as error:
        load(GOOD.replace(old, new))
    message = error.value.message
    assert message.count("\n") == 0
    assert "cluster.toml: " in message
    assert "tok-secret" not in message


def test_digest_when_replicas_would_be_others_then_another(load):
    same = load(GOOD.replace("max = 4", "max = 5")).digest
    assert same == load(GOOD).digest
    assert load(GOOD.replace("2048", "4096")).digest != same


def test_environment_when_ray_is_started_here_then_it_wants_a_token_and_reports_nothing(load):
    local, joined = {}, {"RAY_AUTH_TOKEN": "of-its-operator"}
    prepare(load(GOOD.replace("10.0.0.1:6379", "local")), local)
    prepare(load(GOOD), joined)
    assert local["RAY_USAGE_STATS_ENABLED"] == joined["RAY_USAGE_STATS_ENABLED"] == "0"
    assert local["RAY_AUTH_MODE"] == "token"
    assert len(local["RAY_AUTH_TOKEN"]) == 64
    assert "tok-secret" not in local["RAY_AUTH_TOKEN"]
    assert (joined["RAY_AUTH_TOKEN"], "RAY_AUTH_MODE" in joined) == ("of-its-operator", False)


def run_cli(*arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(["cluster", *map(str, arguments)])
    return end.value.code


@pytest.mark.parametrize("command", ["up", "status", "restart", "down"])
def test_command_when_there_is_no_file_then_one_line(command, tmp_path, capsys):
    assert run_cli(command, tmp_path / "none.toml") == 2
    error = capsys.readouterr().err
    assert "none.toml: cannot be read" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", [["status"], ["drain", "replica-1"], ["restart"], ["down"]])
def test_command_when_nobody_listens_then_one_line(command, tmp_path, monkeypatch, capsys):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        path = tmp_path / "cluster.toml"
        path.write_text(GOOD.replace("8201", str(sock.getsockname()[1])))
        monkeypatch.setenv("TOKEN", "tok")
        assert run_cli(*command, path) == 1
    assert "`ling cluster up` starts it" in capsys.readouterr().err


def test_up_when_ray_is_not_installed_then_the_extra_is_named(tmp_path, monkeypatch, capsys):
    path = tmp_path / "cluster.toml"
    path.write_text(GOOD.replace("8201", "0"))
    monkeypatch.setenv("TOKEN", "tok")
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(name, "0")  # `up` sets them; the next test is not to see it
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "lingflash.cluster.on_ray", raising=False)
    assert run_cli("up", path) == 2
    assert "pip install 'lingflash[cluster]'" in capsys.readouterr().err


def test_up_when_ray_cannot_be_joined_then_one_sentence(load, monkeypatch):
    on_ray = pytest.importorskip("lingflash.cluster.on_ray", reason="needs lingflash[cluster]")

    def init(**options):
        raise ConnectionError("Failed to connect to\nRay at 10.0.0.1:6379.")

    monkeypatch.setattr(on_ray.ray, "init", init)
    with pytest.raises(ConfigError) as error:
        on_ray.RayPlacer.connect(load(GOOD))
    assert error.value.message.endswith(
        "ray.address is '10.0.0.1:6379', which cannot be joined: Failed to connect to Ray at "
        "10.0.0.1:6379. Start Ray on this machine by `ray start`, set RAY_AUTH_TOKEN if it wants "
        "one, or write local."
    )
