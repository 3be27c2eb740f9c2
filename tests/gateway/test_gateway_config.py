"""The gateway's file: what is wrong with it is told in one sentence, with the file and the key."""

from __future__ import annotations

import pytest

from lingflash.core.errors import ConfigError
from lingflash.gateway.config.load import load_config
from lingflash.link.http_client import Address

GOOD = """
[server]
port = 9000

[[upstream]]
name = "Novita AI"
base_url = "https://api.novita.ai/v3/openai"
api_key_variable = "NOVITA_KEY"
dialects = ["chat", "completions"]

[[upstream]]
name = "home"
base_url = "http://127.0.0.1:8000"
allow_private_address = true

[[model]]
name = "inclusionai/ling-2.6-flash"
aliases = ["ling"]

[[model.endpoint]]
upstream = "Novita AI"
quantization = "fp8"

[[model.endpoint.price]]
valid_from = 2026-01-01
prompt = 0.10
completion = "0.30"

[[model.endpoint]]
upstream = "home"
upstream_model = "ling-nano"
"""


@pytest.fixture
def load(tmp_path):
    def load(text, **environ):
        path = tmp_path / "gateway.toml"
        path.write_text(text)
        return load_config(path, {"NOVITA_KEY": "sk-novita-secret", **environ})

    return load


def test_file_when_good_then_all_of_it_is_read(load):
    config = load(GOOD)
    assert config.server.port == 9000
    assert list(config.upstreams) == ["novita-ai", "home"]
    novita, home = config.upstreams.values()
    assert (novita.path, home.path) == ("/v3/openai", "/v1")
    assert novita.address.api_key == "sk-novita-secret"
    assert "sk-novita-secret" not in repr(config)
    first, second = config.catalog.endpoints.values()
    assert first.id == "inclusionai/ling-2.6-flash@novita-ai/fp8"
    assert (first.prices[0][1].prompt, first.prices[0][1].completion) == (100_000, 300_000)
    assert first.prices[0][1].cache_read == 100_000
    assert second.upstream_model == "ling-nano"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("port = 9000", "prot = 9000", "server.prot is not a known key; did you mean port?"),
        ("[server]", "[sever]", "sever is not a known key; did you mean server?"),
        ("port = 9000", 'port = "9000"', "server.port is '9000'; it must be a whole number"),
        ("port = 9000", "port = true", "server.port is true; it must be a whole number"),
        ("port = 9000", "port = 70000", "server.port is 70000; allowed: 0 to 65535"),
        ("port = 9000", "drain_timeout_s = nan", "server.drain_timeout_s is NaN"),
        ('name = "home"', 'nam = "home"', r"upstream\[1\].nam is not a known key"),
        ('name = "home"', "", r"upstream\[1\] lacks the key 'name'"),
        ('name = "home"', 'name = "novita-ai"', "is 'novita-ai', as another's"),
        ('name = "home"', 'name = ""', "must be a text that is not empty"),
        ('"chat", "completions"', '"chat", "embeddings"', "allowed: chat, completions, responses"),
        ('["chat", "completions"]', '"chat"', "must be an array"),
        ("https://api", "ftp://api", "a base URL such as"),
        ("https://api", "https://user:pw@api", "holds more than scheme, host, port and path"),
        ("allow_private_address = true", "", "write allow_private_address = true"),
        ("127.0.0.1:8000", "localhost:8000", ""),
        ('"NOVITA_KEY"', '"NOVITA_KYE"', "names NOVITA_KYE, which is not set or empty"),
        ('_variable = "NOVITA_KEY"', '_file = "key.txt"', "names key.txt, which cannot be read"),
        ('"NOVITA_KEY"', '"X"\napi_key_file = "x"', "two sources; keep one"),
        ('api_key_variable = "NOVITA_KEY"', 'api_key = "sk-written-here"', "api_key is not a"),
        ('upstream = "home"', 'upstream = "hme"', "no ..upstream.. is named; did you mean home?"),
        ('aliases = ["ling"]', 'aliases = ["x:free"]', "the ending means something"),
        ('aliases = ["ling"]', 'aliases = ["inclusionai/ling-2.6-flash"]', "as another's"),
        (
            'upstream = "home"',
            'upstream = "Novita AI"\nquantization = "fp8"',
            "same upstream twice",
        ),
        ('quantization = "fp8"', 'quantization = "fp7"', "allowed: int4, int8"),
        ('quantization = "fp8"', "free = true", "is of a free endpoint; only zeros"),
        ("prompt = 0.10", "prompt = -1", "allowed: 0 to 1000000"),
        ("prompt = 0.10", "prompt = 0.0000001", "finer than a pico-dollar"),
        ("prompt = 0.10", 'prompt = "cheap"', "must be a number"),
        ("2026-01-01", '"soon"', "must be a date"),
        ("[server]", "[server", "is not TOML"),
        ("port = 9000", "port = " + "[" * 5000, "is not TOML"),
        ("port = 9000", "port = " + "9" * 5000, "is not TOML"),
        ("port = 9000", "port = 0x" + "f" * 5000, "server.port is too long to be shown; no"),
        ("port = 9000", "max_body_mb = 1e400", "max_body_mb is 1E.400; no setting takes so much"),
        ("port = 9000", "max_body_mb = 1" + "0" * 400, "no setting takes so much"),
        ("port = 9000", 'metrics_key_file = "\\u0000"', "which cannot be read"),
        ("prompt = 0.10", "prompt = 1e1000000", "no setting takes so much"),
        ("prompt = 0.10", 'prompt = "1e5000"', "allowed: 0 to 1000000"),
        ("https://api", "https://[::1", "a base URL such as"),
        ("https://api", "https://\u00e9", "a base URL such as"),
        ('name = "home"', 'name = "home\\nx: y"', "which no header can show"),
        ('name = "home"', 'name = "\u5bb6"', r"upstream\[1\].slug is ''; a short name of a-z"),
        ('name = "home"', 'name = "home"\nslug = "HOME"', "a short name of a-z"),
        ("[server]\nport = 9000", "server = 1", "server is 1; it must be a table"),
    ],
)
def test_file_when_something_is_wrong_then_one_sentence_with_the_file_and_the_key(
    load, old, new, words
):
    assert old in GOOD
    if not words:  # a name of this machine, which was allowed
        assert load(GOOD.replace(old, new))
        return
    with pytest.raises(ConfigError, match=words) as error:
        load(GOOD.replace(old, new))
    message = error.value.message
    assert message.count("\n") == 0
    assert "gateway.toml: " in message
    assert "sk-" not in message


FLEET = """
[[directory]]
name = "fleet"
kind = "ray"
url = "http://10.0.0.1:8200"
token_variable = "NOVITA_KEY"

[[upstream]]
name = "home"
directory = "fleet"
"""
FLEETED = GOOD.replace(GOOD[GOOD.rindex("[[upstream]]") : GOOD.index("[[model]]")], FLEET)


def test_file_when_an_upstream_names_a_directory_then_its_key_is_the_clusters_token(load):
    config = load(FLEETED)
    home = config.upstreams["home"]
    assert (home.directory, home.path) == ("fleet", "/v1")
    assert home.at("http://10.0.0.7:43001") == Address("10.0.0.7", 43001, "sk-novita-secret")
    [endpoint] = [e for e in config.catalog.endpoints.values() if e.slug == "home"]
    assert endpoint.has_house_key
    assert "sk-novita-secret" not in repr(config.directories)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('kind = "ray"', 'kind = "rya"', "directory.0..kind is 'rya'; allowed: static, dns, ray"),
        ('kind = "ray"', "", r"directory\[0\] lacks the key 'kind'"),
        ('kind = "ray"', 'kind = "dns"', r"\[0\].host is needed by a directory of kind 'dns'"),
        (
            'kind = "ray"',
            'kind = "ray"\nhost = "a"',
            "host means nothing to a directory of kind 'ra",
        ),
        ("http://10.0.0.1:8200", "http://10.0.0.1:8200/v1", "scheme, host and port such as"),
        ("http://10.0.0.1:8200", "10.0.0.1:8200", "scheme, host and port such as"),
        ('url = "http://10.0.0.1:8200"', 'replicas = ["http://a"]', "replicas means nothing to"),
        ('token_variable = "NOVITA_KEY"', "", "has no token; name the cluster's"),
        ('"NOVITA_KEY"\n\n[[up', '"NONE"\n\n[[up', "token_variable names NONE, which is not set"),
        ('directory = "fleet"', 'directory = "flet"', "no ..directory.. is named; did you mean fl"),
        ('directory = "fleet"', "", r"\[1\] lacks the key 'base_url', or 'directory' instead"),
        (
            'directory = "fleet"',
            'directory = "fleet"\nbase_url = "http://a"',
            "means nothing beside directory",
        ),
        ("[[model]]", '[[directory]]\nname = "fleet"\nkind = "dns"\n[[model]]', "as another's"),
    ],
)
def test_file_when_a_directory_is_wrong_then_one_sentence(load, old, new, words):
    assert old in FLEETED
    with pytest.raises(ConfigError, match=words) as error:
        load(FLEETED.replace(old, new))
    assert "gateway.toml: " in error.value.message


def test_file_when_it_has_no_upstream_or_model_then_told(load):
    with pytest.raises(ConfigError, match="upstream is missing"):
        load("")
    with pytest.raises(ConfigError, match="model is missing"):
        load(GOOD[: GOOD.index("[[model]]")])
    with pytest.raises(ConfigError, match=r"needs a \[\[model.endpoint\]\]"):
        load(GOOD[: GOOD.index("[[model.endpoint]]")])


def test_file_when_it_cannot_be_read_then_told(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(path, {})
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_config(bad, {})


def test_key_when_in_a_file_then_read_beside_the_configuration(load, tmp_path):
    (tmp_path / "key.txt").write_text("sk-from-file\n")
    text = GOOD.replace('api_key_variable = "NOVITA_KEY"', 'api_key_file = "key.txt"')
    assert load(text).upstreams["novita-ai"].address.api_key == "sk-from-file"
    (tmp_path / "key.txt").write_text("")
    with pytest.raises(ConfigError, match="which is empty"):
        load(text)
    (tmp_path / "key.txt").write_text("two words")
    with pytest.raises(ConfigError, match="no HTTP header holds"):
        load(text)
