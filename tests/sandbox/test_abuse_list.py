"""What may be tried against a sandbox and the test of each, as research and users list it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_ABUSE = "test_abuse.py::test_"
_REFUSED = _ABUSE + "jail_when_a_call_is_dangerous_then_it_is_refused"
_SHELL = _ABUSE + "jail_when_a_shell_tries_the_host_then_it_is_told_no"
_HOG = _ABUSE + "jail_when_it_takes_all_then_others_are_served_and_nothing_is_left"
_BIT32 = _ABUSE + "jail_when_a_32_bit_call_is_made_then_its_process_is_killed"
_MESSAGES = "test_kernel_messages.py::test_"

CASES = {
    "fork bomb": [f"{_HOG}[fork_bomb]"],
    "memory bomb, touched, shared and of many": [
        _ABUSE + "jail_when_private_memory_is_taken_then_it_ends_in_an_error",
        _ABUSE + "jail_when_memory_is_taken_together_then_somebody_is_killed[shared]",
        _ABUSE + "jail_when_memory_is_taken_together_then_somebody_is_killed[many_processes]",
        f"{_HOG}[memory]",
    ],
    "disk fill": [
        _ABUSE + "jail_when_the_disk_is_filled_then_it_is_full_and_uploads_say_so",
        f"{_HOG}[disk]",
    ],
    "inode flood": [
        _ABUSE + "jail_when_inodes_are_flooded_then_they_are_spent",
        f"{_HOG}[inodes]",
    ],
    "network": [_ABUSE + "jail_when_it_uses_the_network_then_there_is_only_itself"],
    "nested namespaces": [
        f"{_REFUSED}[nested_user_namespace]",
        f"{_REFUSED}[nested_network_namespace]",
        f"{_REFUSED}[clone_with_namespace]",
        f"{_REFUSED}[clone3]",
        f"{_SHELL}[unshare_program]",
        f"{_SHELL}[nested_bubblewrap]",
    ],
    "/proc/sys, core_pattern, sysrq, dmesg": [
        f"{_SHELL}[core_pattern]",
        f"{_SHELL}[sysrq]",
        f"{_REFUSED}[kernel_log]",
    ],
    "write outside": [
        f"{_SHELL}[write_to_usr]",
        f"{_SHELL}[write_to_etc]",
        f"{_SHELL}[write_to_root]",
        f"{_SHELL}[write_to_dev]",
        f"{_SHELL}[write_to_our_code]",
    ],
    "kill -9 -1, signal to the server": [
        _ABUSE + "jail_when_everything_is_killed_then_the_sandbox_and_the_server_go_on",
        f"{_SHELL}[signal_to_the_host]",
    ],
    "ptrace of process 1": [
        f"{_REFUSED}[ptrace_of_process_1]",
        f"{_REFUSED}[process_vm_readv]",
        f"{_SHELL}[memory_of_process_1]",
    ],
    "/proc/1/root": [f"{_SHELL}[root_of_process_1]", f"{_SHELL}[descriptors_of_process_1]"],
    "io_uring": [f"{_REFUSED}[io_uring]"],
    "bpf": [f"{_REFUSED}[bpf]"],
    "userfaultfd": [f"{_REFUSED}[userfaultfd]"],
    "keyctl": [f"{_REFUSED}[keyctl]"],
    "setns": [f"{_REFUSED}[setns]"],
    "mount": [
        f"{_REFUSED}[mount]",
        f"{_REFUSED}[new_mount_api]",
        f"{_SHELL}[resize_the_disk]",
    ],
    "busy loop, CPU burn across sandboxes": [
        f"{_HOG}[busy_loops]",
        _ABUSE + "process_when_it_computes_for_ever_then_its_time_is_limited",
        "test_key_limits.py::test_key_when_it_has_used_up_an_hour_s_then_its_sandboxes_pause_"
        "and_others_run[cpu]",
    ],
    "output flood, 1 GB of it, and nobody who reads": [
        _ABUSE + "output_when_it_never_ends_then_it_is_cut_and_the_program_goes_on",
        _ABUSE + "output_when_nobody_reads_it_then_the_server_keeps_little",
        f"{_HOG}[output]",
    ],
    "symlink swap": [
        _ABUSE + "files_when_a_folder_is_swapped_for_a_link_then_nothing_outside_is_read",
        _ABUSE + "files_when_a_link_points_out_then_it_is_followed_inside",
    ],
    "hard links": [_ABUSE + "files_when_a_hard_link_to_the_host_is_made_then_it_is_refused"],
    "FIFO and device upload": [
        _ABUSE + "files_when_it_is_no_regular_file_then_reading_and_writing_are_refused[fifo]",
        _ABUSE + "files_when_it_is_no_regular_file_then_reading_and_writing_are_refused[/dev/zero]",
    ],
    "sparse files": [f"{_SHELL}[sparse_file]"],
    "zip bomb": [_ABUSE + "files_when_a_zip_bomb_is_sent_then_it_stops_at_the_disk"],
    "path traversal": [_ABUSE + "files_when_the_path_climbs_out_then_it_is_the_jail_s"],
    "huge file names": [
        f"{_SHELL}[long_name]",
        _ABUSE + "files_when_names_are_strange_then_the_answer_is_an_error_of_the_caller",
    ],
    "chmod 4755, set-uid programs": [
        _ABUSE + "jail_when_a_program_is_set_uid_then_it_gains_nothing"
    ],
    "mknod": [f"{_SHELL}[devices]"],
    "TIOCSTI": [f"{_REFUSED}[typing_into_a_terminal]"],
    "inherited descriptors, secrets in the environment": [
        _ABUSE + "jail_when_the_server_has_secrets_then_none_is_inside",
        f"{_SHELL}[environment_of_process_1]",
    ],
    "abstract Unix sockets": [
        _ABUSE + "jail_when_the_host_has_an_abstract_socket_then_it_is_not_there"
    ],
    "stdin's end": [_ABUSE + "process_when_it_reads_its_input_then_that_has_an_end"],
    "orphan after timeout": [
        _ABUSE + "process_when_its_time_is_up_then_it_and_its_children_are_gone"
    ],
    "setsid escape": [
        _ABUSE + "process_when_it_escaped_its_group_then_it_ends_with_the_sandbox",
        "test_leftovers.py::test_server_when_it_is_ended_then_nothing_of_its_sandboxes_is_left",
    ],
    "clock": [f"{_REFUSED}[clock]"],
    "what /proc tells of the host": [
        _ABUSE + "jail_when_it_looks_around_then_it_sees_nothing_of_the_host",
        _ABUSE + "jail_when_it_lists_mounts_then_they_are_its_own",
    ],
    "/sys and graphics cards": [f"{_SHELL}[sys]", f"{_SHELL}[graphics_cards]"],
    "32-bit calls": [f"{_BIT32}[int_80]", f"{_BIT32}[x32]"],
    "cgroups that are left": [
        "test_leftovers.py::test_sandboxes_when_200_come_and_go_then_the_server_is_as_before",
        "test_leftovers.py::test_server_when_it_is_killed_then_its_sandboxes_die_and_the_next_one_"
        "sweeps",
    ],
    "sandbox A reading B": [_ABUSE + "sandbox_when_two_run_then_neither_sees_the_other"],
    "token guessing": [_ABUSE + "token_when_it_is_another_s_or_none_then_nothing_is_served"],
    "forged kernel messages": [
        _MESSAGES + "context_when_messages_are_forged_then_only_its_own_sandbox_hears_them"
    ],
    "replayed kernel messages": [
        _MESSAGES + "kernel_when_a_signed_request_is_replayed_then_it_runs_once",
        _MESSAGES + "kernel_when_it_replays_what_it_said_then_no_execution_hears_another_s",
        _MESSAGES + "context_when_messages_are_replayed_then_no_execution_hears_them",
    ],
}


@pytest.mark.slow
def test_every_case_of_the_list_has_the_tests_that_it_names():
    every = ["-m", "slow or not slow", "--collect-only", "-q", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [sys.executable, "-m", "pytest", *every, str(HERE)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    known = set(re.findall(r"tests/sandbox/(test_\S+)", found))
    assert len(known) > 150
    missing = {test for tests in CASES.values() for test in tests} - known
    assert missing == set()
