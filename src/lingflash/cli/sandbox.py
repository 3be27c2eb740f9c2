"""`ling sandbox`: jails for code, over the API that agents already use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
from typing import TYPE_CHECKING

from lingflash.cli.options import new_event_loop, takes_options
from lingflash.core.errors import ConfigError
from lingflash.sandbox.config import SandboxConfig

if TYPE_CHECKING:
    from lingflash.sandbox.cgroup import Cgroups


@takes_options()
def sandbox(config: SandboxConfig) -> None:
    """Serve sandboxes over E2B's API until SIGTERM or Ctrl-C.

    Each option can also be set by the environment variable shown beside it.
    """
    # Late: these take longer to import than `ling --help` may take in all.
    from lingflash.core.log import setup_logging, tell
    from lingflash.httpd.keys import with_keys_of_file
    from lingflash.httpd.page import PAGE_PATH
    from lingflash.httpd.server import bind_socket
    from lingflash.sandbox import cgroup
    from lingflash.sandbox.app import create_app, serve
    from lingflash.sandbox.privileges import become, check_user, own_name
    from lingflash.sandbox.probe import find_bwrap, find_interpreter

    setup_logging(config.log_level)
    check_user(config.user)
    is_here = config.backend == "bwrap"
    if is_here:
        find_bwrap()
    interpreter = find_interpreter(config.python, needs_kernel=is_here)
    config = with_keys_of_file(config)
    if config.is_open:
        raise ConfigError(
            f"--host {config.host} without a key: whoever reaches it could run code here. Give "
            "--api-key KEY or --api-key-file FILE, or listen on 127.0.0.1.",
            param="api_key",
        )
    with contextlib.ExitStack() as stack:
        ports = (config.port, *config.more_ports)
        socks = [stack.enter_context(bind_socket(config.host, port)) for port in ports]
        if os.getuid() == 0:
            assert config.user is not None
            entry = pwd.getpwnam(config.user)
            if is_here:
                cgroup.give(entry.pw_uid, entry.pw_gid)
            become(config.user, interpreter.folders)
        groups = _cgroups(config) if is_here else None
        app = create_app(config, interpreter, groups)
        host, port = socks[0].getsockname()[:2]

        def announce() -> None:
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            if is_here:
                languages = ", ".join(sorted(app.state.context.manager.languages))
                memory = f"cgroup v{groups.version}" if groups else "rlimits and a watchdog"
                tell(f"walls hold; memory by {memory}; languages: {languages}; user {own_name()}")
            else:
                tell(f"sandboxes at {config.remote}; user {own_name()}")
            if config.has_page:
                tell(f"the page is on {url}{PAGE_PATH}")
            tell(f"serving sandboxes on {url}; for E2B's SDKs:")
            tell(f"  export E2B_API_URL={url} E2B_SANDBOX_URL={url} E2B_API_KEY=e2b_KEY")

        with asyncio.Runner(loop_factory=new_event_loop()) as runner:
            runner.run(serve(app, socks, announce))


def _cgroups(config: SandboxConfig) -> Cgroups | None:
    from lingflash.sandbox import cgroup

    cgroup.sweep()
    groups = None if config.cgroups == "off" else cgroup.prepare()
    needed_for = "--cgroups require" if config.cgroups == "require" else None
    if config.cpu_s_per_key is not None:
        needed_for = "--cpu-s-per-key"
    if groups is None and needed_for is not None:
        raise ConfigError(
            f"{needed_for} needs cgroups, and none can be made here. Start it by "
            "`systemd-run --user --scope -p Delegate=yes ling sandbox`, or as root with --user.",
            param="cgroups",
        )
    return groups
