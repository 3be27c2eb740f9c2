"""The system calls that a sandbox may not make, as a classic BPF program.

What is new in a kernel is refused, too: a number above the newest that was looked at answers
ENOSYS, as an older kernel would. Everything else that is no plain computing, file or process call
answers EPERM: tracing, keys, io_uring, BPF, mounts, namespaces, modules, clocks.
"""

from __future__ import annotations

import errno
import platform
import struct

from lingflash.core.errors import ConfigError

# name: number on x86_64, number on aarch64; None where there is no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "unshare": (272, 97),
    "setns": (308, 268),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "syslog": (103, 116),
    "acct": (163, 89),
    "vhangup": (153, 58),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "_sysctl": (156, None),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "clock_settime": (227, 112),
    "settimeofday": (164, 170),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "personality": (135, 92),
    "memfd_secret": (447, 447),
}
# Memory that no process maps need hold is counted by a memory cgroup alone.
_UNCOUNTED = {"memfd_create": (319, 279), "shmget": (29, 194)}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_SOCKET, _SOCKETPAIR = (41, 198), (53, 199)
_IOCTL = (16, 29)
_NEWEST = 462  # mseal, of Linux 6.10
_X32 = 0x40000000  # the bit that asks for the 32-bit ABI under the 64-bit architecture

# CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}
_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000
_NAMESPACES |= 0x40000000 | 0x00000080
# AF_UNIX, AF_INET, AF_INET6, AF_NETLINK. AF_VSOCK, for one, knows no network namespace.
_FAMILIES = (1, 2, 10, 16)
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24  # offsets in struct seccomp_data, little-endian

_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000


def _refusal(number: int) -> int:
    return 0x00050000 | number


class _Program:
    """Instructions; each `refuse` is a test and, where it holds, a return."""

    def __init__(self) -> None:
        self.code: list[tuple[int, int, int, int]] = []

    def load(self, offset: int) -> None:
        self.code.append((_LOAD, 0, 0, offset))

    def answer(self, verdict: int) -> None:
        self.code.append((_RETURN, 0, 0, verdict))

    def when(self, test: int, operand: int, verdict: int) -> None:
        self.code.append((test, 0, 1, operand))
        self.answer(verdict)

    def in_call(self, number: int, body: _Program) -> None:
        """Run the body for one call; it must end with an answer."""
        self.code.append((_EQUAL, 0, len(body.code), number))
        self.code += body.code


def filter_bytes(*, counts_memory: bool, machine: str | None = None) -> bytes:
    """The program, as `struct sock_filter` after `struct sock_filter`.

    Args:
        counts_memory: there is a memory cgroup, so that memory may be had in other ways than by
            mapping it.
        machine: this one's architecture if None.

    Raises:
        ConfigError: the architecture's numbers are not known here.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        allowed = ", ".join(_ARCHITECTURES)
        raise ConfigError(f"The sandbox has no list of system calls for {machine}, only {allowed}.")
    column, audit_arch = _ARCHITECTURES[machine]
    eperm, enosys = _refusal(errno.EPERM), _refusal(errno.ENOSYS)
    program = _Program()
    program.load(_ARCH)
    program.code.append((_EQUAL, 1, 0, audit_arch))
    program.answer(_KILL)
    program.load(_NR)
    program.when(_GREATER_EQUAL, _X32, _KILL)
    program.when(_GREATER_EQUAL, _NEWEST + 1, enosys)
    # Its flags lie in memory, which a filter cannot read; the C library then takes clone.
    program.when(_EQUAL, _CLONE3[column], enosys)
    refused = _REFUSED if counts_memory else _REFUSED | _UNCOUNTED
    for numbers in refused.values():
        if (number := numbers[column]) is not None:
            program.when(_EQUAL, number, eperm)
    program.in_call(_CLONE[column], _argument(_ARG0, [(_ANY_BIT, _NAMESPACES, eperm)]))
    program.in_call(_IOCTL[column], _argument(_ARG1, [(_EQUAL, n, eperm) for n in _TERMINAL_INPUT]))
    for numbers in (_SOCKET, _SOCKETPAIR):
        families = [(_EQUAL, family, _ALLOW) for family in _FAMILIES]
        program.in_call(numbers[column], _argument(_ARG0, families, _refusal(errno.EAFNOSUPPORT)))
    program.answer(_ALLOW)
    return b"".join(struct.pack("<HBBI", *each) for each in program.code)


def probe_calls() -> dict[str, int]:
    """Calls that this kernel would answer otherwise than by EPERM, were it not for the filter."""
    column, _ = _ARCHITECTURES[platform.machine()]
    names = ("ptrace", "process_vm_readv", "io_uring_setup", "keyctl", "add_key", "personality")
    found = {name: _REFUSED[name][column] for name in names}
    return {name: number for name, number in found.items() if number is not None}


def _argument(offset: int, tests: list[tuple[int, int, int]], otherwise: int = _ALLOW) -> _Program:
    body = _Program()
    body.load(offset)
    for test, operand, verdict in tests:
        body.when(test, operand, verdict)
    body.answer(otherwise)
    return body
