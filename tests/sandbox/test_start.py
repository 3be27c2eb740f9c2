"""A server that cannot hold its walls does not start, and says what the host must change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lingflash.core.errors import ConfigError
from lingflash.sandbox import probe
from lingflash.sandbox.config import SandboxConfig
from sandbox_support import refusal, require_bwrap, sandbox_command

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may do this")


@needs_root
def test_sandbox_when_started_by_root_then_it_asks_for_a_user():
    code, said = refusal(sys.executable, "-m", "lingflash", "sandbox", "--port=0")
    assert code == 2
    assert "does not run as root" in said
    assert "--user nobody" in said


@needs_root
@pytest.mark.parametrize(("user", "words"), [("root", "is root"), ("nobody-at-all", "no such")])
def test_sandbox_when_the_user_will_not_do_then_it_says_why(user, words):
    code, said = refusal(sys.executable, "-m", "lingflash", "sandbox", "--port=0", "--user", user)
    assert code == 2
    assert words in said


def test_sandbox_when_bubblewrap_is_missing_then_it_names_the_package(tmp_path):
    code, said = refusal(*sandbox_command(), env={"PATH": str(tmp_path)})
    assert code == 2
    assert "apt-get install bubblewrap" in said


@needs_root
def test_sandbox_when_the_host_has_no_user_namespaces_then_it_names_the_sysctl():
    require_bwrap()
    # In a user namespace of its own a process may take them away from those below.
    off = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    outer = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--keep-caps"]
    inner = ["setpriv", "--ambient-caps=-all", "--inh-caps=-all"]
    server = [sys.executable, "-m", "lingflash", "sandbox", "--port=0", "--cgroups=off"]
    code, said = refusal(*outer, "sh", "-c", off, "sh", *inner, *server)
    assert code == 2, said
    assert "sysctl user.max_user_namespaces=15000" in said


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "/etc/apparmor.d/bwrap"),
        ("kernel/unprivileged_userns_clone", "0", "unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "max_user_namespaces=15000"),
    ],
)
def test_remedy_when_the_host_forbids_namespaces_then_it_says_how_to_allow(
    monkeypatch, tmp_path, path, value, words
):
    # This host's kernel has not all of these switches, so the files are ours.
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(f"{value}\n")
    switches = [
        (name.replace("/proc/sys", str(tmp_path)), bad, advice)
        for name, bad, advice in probe._SYSCTLS
    ]
    monkeypatch.setattr(probe, "_SYSCTLS", switches)
    assert words in probe.remedy("bwrap: No permissions to create new namespace")


@needs_root
@pytest.mark.slow
def test_sandbox_when_cgroups_are_required_and_missing_then_it_says_how_to_have_them():
    require_bwrap()
    # A mount namespace whose cgroup file system is an empty folder.
    hide = 'mount -t tmpfs none /sys/fs/cgroup && exec "$@"'
    command = sandbox_command("--cgroups=require")
    code, said = refusal("unshare", "--mount", "sh", "-c", hide, "sh", *command)
    assert code == 2
    assert "Delegate=yes" in said


def test_interpreter_when_it_has_no_kernel_then_the_package_is_named(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "v")], check=True)
    with pytest.raises(ConfigError, match="has no ipykernel"):
        probe.find_interpreter(tmp_path / "v/bin/python")


@pytest.mark.parametrize("path", ["/bin/false", "/nowhere/python"])
def test_interpreter_when_it_does_not_run_then_it_is_named(path):
    with pytest.raises(ConfigError, match=f"--python {path} cannot be run"):
        probe.find_interpreter(Path(path))


def test_setting_when_in_mib_then_the_bound_is_too():
    with pytest.raises(ConfigError, match=r"--memory-mb is 1\.0; allowed: 64 or more"):
        SandboxConfig(memory_bytes=2**20)


def test_sandbox_when_others_could_reach_it_without_a_key_then_it_is_refused():
    require_bwrap()
    code, said = refusal(*sandbox_command("--host=0.0.0.0"))
    assert code == 2
    assert "--host 0.0.0.0 without a key" in said


BECOME = """
import os, sys
from lingflash.sandbox.privileges import become
become("nobody", [sys.argv[1] + "/shown"])
print(os.getresuid(), os.getresgid(), os.getgroups())
print(sorted(os.listdir(sys.argv[1])), open(sys.argv[1] + "/shown/file").read())
print(open("/proc/self/status").read().split("CapEff:")[1].split()[0])
try: os.setuid(0)
except PermissionError: print("for good")
"""


@needs_root
def test_user_when_root_becomes_it_then_it_sees_what_it_needs_and_nothing_beside(tmp_path):
    hidden = tmp_path / "hidden"
    (hidden / "shown").mkdir(parents=True)
    (hidden / "shown/file").write_text("text")
    (hidden / "secret").write_text("secret")
    hidden.chmod(0o700)
    for above in (tmp_path, *tmp_path.parents):  # pytest's own folders are closed, too
        if above.stat().st_mode & 0o001 == 0:
            above.chmod(above.stat().st_mode | 0o001)
    done = subprocess.run(
        [sys.executable, "-c", BECOME, str(hidden)], capture_output=True, text=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "(65534, 65534, 65534) (65534, 65534, 65534) []", done.stderr
    assert lines[1:] == ["['shown'] text", "0000000000000000", "for good"]


def test_config_when_times_contradict_then_it_is_refused():
    with pytest.raises(ConfigError, match="--max-timeout-s"):
        SandboxConfig(default_timeout_s=100, max_timeout_s=10)


PROBE = """
import asyncio, dataclasses, os, sys
from pathlib import Path
from lingflash.core.errors import ConfigError
from lingflash.sandbox import box, probe
from lingflash.sandbox.jail import argv
from lingflash.sandbox.jail.limits import Limits
from lingflash.sandbox.privileges import become

interpreter = probe.find_interpreter(None, needs_kernel=False)
if os.getuid() == 0:
    become("nobody", interpreter.folders)
kind = box.JailKind(bwrap=probe.find_bwrap(), interpreter=interpreter, limits=Limits())
BREAK
try:
    asyncio.run(probe.probe(kind))
    print("all walls hold")
except ConfigError as error:
    print(error.message)
"""
# How a wall is taken down, and what the probe says then.
BROKEN = {
    "none": ("", "all walls hold"),
    "memory": (
        "kind = dataclasses.replace(kind, counts_memory=True)",  # but there is no such cgroup
        "shared memory could be had",
    ),
    "system calls": (
        "box.filter_bytes = lambda **_: bytes.fromhex('060000000000ff7f')",  # allow all
        "namespaces: a user namespace can be made; system calls: ptrace answers",
    ),
    "files": ("argv._ETC += ('/srv',)", "/srv of the host can be seen"),
    "network": (
        "make = box.jail_argv\n"
        "box.jail_argv = lambda *a, **k: [w for w in make(*a, **k) if w != '--unshare-net']",
        "network: ",
    ),
}


FAST = ("none", "memory")


@pytest.mark.parametrize(
    "wall", [pytest.param(wall, marks=() if wall in FAST else pytest.mark.slow) for wall in BROKEN]
)
def test_probe_when_a_wall_is_taken_down_then_it_is_noticed(wall):
    require_bwrap()
    code, words = BROKEN[wall]
    source = PROBE.replace("BREAK", code)
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60
    )
    assert words in done.stdout, done.stdout + done.stderr
