"""`ling serve` around an engine that replays tokens, to measure the server without a model.

    python -m lingflash.bench.over_http.scripted_server MODEL_FOLDER PORT STEP_MS

Tokenizer and template are the model's; the answer to everything is the same sentence, over and
over, up to max_tokens. With STEP_MS 0 a step's tokens come as soon as the last one's were taken.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from lingflash.api.config import ServerConfig
from lingflash.api.server import serve_engine
from lingflash.core.errors import ConfigError
from lingflash.core.log import setup_logging
from lingflash.core.types import EngineInfo, EngineRequest
from lingflash.httpd.server import bind_socket
from lingflash.link.scripted import Behaviour, ScriptedEngine
from lingflash.text.tokenizer import Tokenizer

SENTENCE = "The weather in the city is fine today, and the train leaves at nine. "
HOST = "127.0.0.1"
_MAX_MODEL_LEN = 8192


async def serve_scripted(folder: Path, port: int, step_s: float) -> None:
    """Serve until a signal.

    Args:
        folder: of the model whose tokenizer and template are used.
        step_s: seconds between two tokens of every answer.
    """
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer is None:
        raise ConfigError(f"{folder} has no tokenizer.json.")
    sentence = tokenizer.encode(SENTENCE)

    def script(request: EngineRequest, choice: int) -> list[int]:
        wanted = request.sampling.max_tokens or _MAX_MODEL_LEN
        return (sentence * (wanted // len(sentence) + 1))[:wanted]

    info = EngineInfo(
        model=folder.name,
        max_model_len=_MAX_MODEL_LEN,
        vocab_size=tokenizer.vocab_size,
        stop_token_ids=[],
        max_num_seqs=256,
        max_num_waiting=256,
        num_blocks=1024,
        block_size=16,
        device="cpu",
        dtype="float32",
    )
    engine = ScriptedEngine(script, info, Behaviour(delay_s=step_s, is_punctual=step_s > 0))
    config = ServerConfig(model_folder=folder, host=HOST, port=port)
    await serve_engine(engine, config, bind_socket(HOST, port))


if __name__ == "__main__":
    setup_logging("warning")
    asyncio.run(serve_scripted(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) * 1e-3))
