"""What one sandbox may use."""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one sandbox.

    Args:
        memory_bytes: of its processes together; of one process also RLIMIT_DATA.
        disk_bytes: of all that it can write. It is a tmpfs, so it takes memory, too, of its own.
        disk_inodes: files, folders and links that it can make.
        processes: RLIMIT_NPROC, counted in the sandbox's own user namespace, threads included.
        open_files: of each process.
        cpu_s: CPU time of each process, after which the kernel ends it.
        output_bytes: of each process; what it writes beyond is read and thrown away.
    """

    memory_bytes: int = 1024 * _MIB
    disk_bytes: int = 512 * _MIB
    disk_inodes: int = 50_000
    processes: int = 128
    open_files: int = 256
    cpu_s: int = 600
    output_bytes: int = 16 * _MIB
