"""The filter of system calls, run here as the kernel runs it."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from lingflash.core.errors import ConfigError
from lingflash.sandbox.jail import seccomp

ALLOW, KILL, EPERM, ENOSYS, EAFNOSUPPORT = 0x7FFF0000, 0x80000000, 0x50001, 0x50026, 0x50061
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


def verdict(program, audit_arch, number, *arguments):
    """What the program answers to one call."""
    data = struct.pack("<IIQ6Q", number, audit_arch, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator, at = 0, 0
    while True:
        operation, on_true, on_false, operand = code[at]
        at += 1
        match operation:
            case 0x20:
                accumulator = struct.unpack_from("<I", data, operand)[0]
            case 0x15:
                at += on_true if accumulator == operand else on_false
            case 0x35:
                at += on_true if accumulator >= operand else on_false
            case 0x45:
                at += on_true if accumulator & operand else on_false
            case 0x06:
                return operand


@pytest.fixture(params=ARCHITECTURES)
def judge(request):
    """Gives verdicts of one architecture's filter, by the names of calls."""
    audit_arch, column = ARCHITECTURES[request.param]
    program = seccomp.filter_bytes(counts_memory=False, machine=request.param)
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096

    def judge(call, *arguments):
        number = call[column] if isinstance(call, tuple) else call
        return verdict(program, audit_arch, number, *arguments)

    judge.column = column
    judge.program = program
    return judge


def test_filter_when_a_call_is_on_the_list_then_it_is_refused(judge):
    for name, numbers in (seccomp._REFUSED | seccomp._UNCOUNTED).items():
        if numbers[judge.column] is not None:
            assert judge(numbers) == EPERM, name


def test_filter_when_a_call_is_ordinary_then_it_is_allowed(judge):
    read, execve, getpid, futex = ((0, 63), (59, 221), (39, 172), (202, 98))
    for call in (read, execve, getpid, futex, (262, 79), (318, 278)):
        assert judge(call) == ALLOW


def test_filter_when_a_call_is_unknown_then_there_is_none(judge):
    assert judge(463) == ENOSYS
    assert judge(9999) == ENOSYS
    assert judge((435, 435)) == ENOSYS


def test_filter_when_arguments_decide_then_they_are_read(judge):
    clone, ioctl, socket = (56, 220), (16, 29), (41, 198)
    assert judge(clone, 17) == ALLOW
    for bit in (7, 17, 25, 26, 27, 28, 29, 30):
        assert judge(clone, 17 | 1 << bit) == EPERM, bit
    assert judge(ioctl, 0, 0x5401) == ALLOW
    assert judge(ioctl, 0, 0x5412) == EPERM
    assert {family for family in range(64) if judge(socket, family) == ALLOW} == {1, 2, 10, 16}
    assert judge(socket, 40) == EAFNOSUPPORT


def test_filter_when_the_abi_is_another_then_the_process_is_killed(judge):
    assert verdict(judge.program, 0x40000003, 20) == KILL
    assert judge(0x40000000 | 39) == KILL


def test_filter_when_a_memory_cgroup_counts_then_memory_may_be_had_otherwise():
    program = seccomp.filter_bytes(counts_memory=True, machine="x86_64")
    assert verdict(program, ARCHITECTURES["x86_64"][0], 319) == ALLOW


def test_filter_when_the_machine_is_unknown_then_it_says_so():
    with pytest.raises(ConfigError, match=r"for riscv64, only x86_64, aarch64"):
        seccomp.filter_bytes(counts_memory=True, machine="riscv64")


@pytest.mark.parametrize(
    ("header", "column"),
    [("x86_64-linux-gnu/asm/unistd_64.h", 0), ("asm-generic/unistd.h", 1)],
    ids=["x86_64", "aarch64"],
)
def test_numbers_when_the_kernel_s_headers_are_here_then_they_agree(header, column):
    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip(f"{path} is not installed (linux-libc-dev)")
    given = dict(re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text(), re.M))
    for name, numbers in (seccomp._REFUSED | seccomp._UNCOUNTED).items():
        if numbers[column] is not None and name in given:
            assert numbers[column] == int(given[name]), name
