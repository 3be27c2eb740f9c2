"""A scripted server as a process of its own, for tests of signals and exit codes.

python tests/serve_scripted.py FOLDER DRAIN_TIMEOUT_S [die]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from api_support import engine_info, says
from lingflash.api.config import ServerConfig
from lingflash.api.server import serve_engine
from lingflash.cli import report_errors
from lingflash.core.log import setup_logging
from lingflash.httpd.server import bind_socket
from lingflash.link.scripted import Behaviour, ScriptedEngine


async def _serve(folder: str, drain_timeout_s: float, dies: bool) -> None:
    engine = ScriptedEngine(says("x " * 500), engine_info(), Behaviour(delay_s=0.01))
    config = ServerConfig(model_folder=Path(folder), drain_timeout_s=drain_timeout_s)
    sock = bind_socket("127.0.0.1", 0)

    def on_ready(state):
        print(sock.getsockname()[1], flush=True)
        if dies:
            asyncio.get_running_loop().call_later(0.2, lambda: engine.die(for_good=True))

    await serve_engine(engine, config, sock, on_ready=on_ready)


if __name__ == "__main__":
    setup_logging()
    dies = len(sys.argv) > 3
    code = report_errors(lambda: asyncio.run(_serve(sys.argv[1], float(sys.argv[2]), dies)))
    sys.exit(code)
