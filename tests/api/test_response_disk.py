"""The store of responses on disks that are full, that hang, and files that are taken away."""

from __future__ import annotations

import os
import stat
import subprocess
import time

import pytest

from lingflash.api.responses.store import ResponseStore
from lingflash.core.errors import CapacityError, ConfigError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
LIMITS = {"max_bytes": 64 * 2**20, "max_age_s": 3600.0}


def body(name, size=100):
    return {"id": name, "status": "completed", "text": "x" * size}


def mount(*arguments):
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no mounts here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@needs_root
async def test_store_when_its_disk_is_full_then_the_oldest_go_and_new_ones_are_stored(small_disk):
    errors = []
    store = ResponseStore(small_disk / "r.db", **LIMITS, on_error=lambda: errors.append(1))
    try:
        stored = [await store.put("me", body(f"r{i}", 6000), []) for i in range(300)]
        assert all(stored)
        assert errors == []
        assert (await store.get("me", "r299")).body["id"] == "r299"
        with pytest.raises(Exception, match="There is no response"):
            await store.get("me", "r0")
        await store.delete("me", "r299")
    finally:
        store.close()
    again = ResponseStore(small_disk / "r.db", **LIMITS)
    assert (await again.get("me", "r298")).body["id"] == "r298"
    again.close()


@needs_root
async def test_store_when_others_fill_its_disk_then_not_stored_counted_and_readable(small_disk):
    errors = []
    store = ResponseStore(small_disk / "r.db", **LIMITS, on_error=lambda: errors.append(1))
    try:
        assert await store.put("me", body("first", 1000), [])
        subprocess.run(["dd", "if=/dev/zero", f"of={small_disk}/filler"], stderr=subprocess.DEVNULL)
        assert not await store.put("me", body("large", 400_000), [])
        assert len(errors) == 1
        (small_disk / "filler").unlink()
        assert await store.put("me", body("later", 1000), [])
    finally:
        store.close()


@pytest.fixture
def freezable_disk(tmp_path):
    folder, image = tmp_path / "disk", tmp_path / "image"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(16 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    mount("-o", "loop", image, folder)
    yield folder
    subprocess.run(["fsfreeze", "-u", folder], check=False)
    subprocess.run(["umount", "-l", folder], check=True)


@needs_root
async def test_store_when_its_disk_hangs_then_nobody_waits_long_and_it_comes_back(freezable_disk):
    errors = []
    store = ResponseStore(
        freezable_disk / "r.db", **LIMITS, deadline_s=0.5, on_error=lambda: errors.append(1)
    )
    try:
        assert await store.put("me", body("a"), [])
        subprocess.run(["fsfreeze", "-f", freezable_disk], check=True)
        started = time.monotonic()
        assert not await store.put("me", body("b"), [])
        assert time.monotonic() - started < 5
        started = time.monotonic()
        for name in "cdefgh":  # at once: they do not queue up behind the first
            assert not await store.put("me", body(name), [])
        with pytest.raises(CapacityError, match="does not answer"):
            await store.get("me", "a")
        assert time.monotonic() - started < 3
        subprocess.run(["fsfreeze", "-u", freezable_disk], check=True)
        deadline = time.monotonic() + 20
        while not await store.put("me", body("z"), []):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert (await store.get("me", "a")).body["id"] == "a"
        assert len(errors) >= 8
    finally:
        store.close()


@needs_root
async def test_close_when_the_disk_hangs_then_it_does_not_wait_for_it(freezable_disk):
    store = ResponseStore(freezable_disk / "r.db", **LIMITS, deadline_s=0.2)
    assert await store.put("me", body("a"), [])
    subprocess.run(["fsfreeze", "-f", freezable_disk], check=True)
    assert not await store.put("me", body("b"), [])
    started = time.monotonic()
    store.close()
    assert time.monotonic() - started < 10


async def test_store_when_its_file_is_removed_then_not_stored_and_counted(tmp_path):
    errors = []
    store = ResponseStore(tmp_path / "r.db", **LIMITS, on_error=lambda: errors.append(1))
    try:
        assert await store.put("me", body("a"), [])
        (tmp_path / "r.db").unlink()
        assert not await store.put("me", body("b"), [])
        assert errors == [1]
    finally:
        store.close()


async def test_store_when_its_process_is_killed_then_it_is_started_again(tmp_path):
    store = ResponseStore(tmp_path / "r.db", **LIMITS)
    try:
        assert await store.put("me", body("a"), [])
        pids = subprocess.run(
            ["pgrep", "-f", "lingflash.api.responses.store_process", "-P", str(os.getpid())],
            capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip
        for pid in pids:
            os.kill(int(pid), 9)
        await store.put("me", body("b"), [])  # this one may be lost
        assert await store.put("me", body("c"), [])
        assert (await store.get("me", "a")).body["id"] == "a"
    finally:
        store.close()


def test_store_when_its_path_is_no_plain_file_or_in_use_then_says_so(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path / "pipe", "no plain file"),
        (tmp_path, "no plain file"),
        (tmp_path / "none" / "r.db", "No such file"),
        ("/dev/full", "no plain file"),
    ):
        with pytest.raises(ConfigError, match=what):
            ResponseStore(type(tmp_path)(path), **LIMITS)
    first = ResponseStore(tmp_path / "r.db", **LIMITS)
    with pytest.raises(ConfigError, match="Another server uses it"):
        ResponseStore(tmp_path / "r.db", **LIMITS)
    first.close()


def test_store_when_its_file_could_be_read_by_others_then_no_longer(tmp_path):
    path = tmp_path / "r.db"
    ResponseStore(path, **LIMITS).close()
    path.chmod(0o644)
    store = ResponseStore(path, **LIMITS)
    for name in tmp_path.iterdir():
        assert stat.S_IMODE(name.stat().st_mode) == 0o600, name
    store.close()
