"""Files of settings that are none, and one that comes through a pipe."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from lingflash.core.errors import ConfigError
from lingflash.core.toml_tables import read_toml


def test_read_when_the_file_has_no_end_then_says_so():
    with pytest.raises(ConfigError, match=r"^/dev/zero: is over 4 MiB\.$"):
        read_toml(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none", None, "cannot be read: No such file"),
        (".", None, "cannot be read: Is a directory"),
        ("latin", b"a = '\xe9'", "is not UTF-8"),
        ("cut", b"a = [", "is not TOML"),
        ("deep", b"a = " + b"[" * 100_000, "is not TOML"),
    ],
)
def test_read_when_it_is_no_toml_then_one_sentence(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        read_toml(tmp_path / name)
    assert "\n" not in caught.value.message


def test_read_when_it_comes_through_a_pipe_then_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"\xef\xbb\xbfa = 1",))
    writer.start()
    assert read_toml(tmp_path / "pipe") == {"a": 1}
    writer.join()
