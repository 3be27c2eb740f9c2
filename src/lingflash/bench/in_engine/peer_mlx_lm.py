"""A process that measures mlx-lm for `ling bench throughput`, in the peer's own environment.

    PYTHON -I peer_mlx_lm.py MODEL_FOLDER

One JSON object per line comes in and one goes out, so that the caller can take turns with it. It
imports nothing of lingflash, loads the folder as mlx-lm does by itself, then turns the weights to
float32.
"""

# mlx is not among our dependencies.
# pyright: reportMissingImports=false

from __future__ import annotations

import base64
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.utils import load_model


class Peer:
    """A model in mlx-lm and what can be asked of it."""

    def __init__(self, folder: str) -> None:
        self.model: Any = load_model(Path(folder))[0]
        self.model.set_dtype(mx.float32)
        mx.eval(self.model.parameters())

    def info(self) -> dict[str, Any]:
        """Versions, device and the dtypes the weights really have."""
        dtypes = {str(value.dtype) for _, value in tree_flatten(self.model.parameters())}
        return {
            "mlx": version("mlx"),
            "mlx_lm": version("mlx-lm"),
            "device": str(mx.default_device()),
            "dtypes": sorted(dtypes),
        }

    def logits(self, token_ids: list[int]) -> dict[str, Any]:
        """Logits of every position of one prompt, float32 [T, V] as base64."""
        out = self.model(mx.array([token_ids]))[0].astype(mx.float32)
        mx.eval(out)
        data = base64.b64encode(memoryview(out).tobytes()).decode("ascii")
        return {"shape": list(out.shape), "data": data}

    def prefill(self, token_ids: list[int]) -> dict[str, Any]:
        """Seconds from a prompt to its first token."""
        done = 0.0

        def progress(processed: int, total: int) -> None:
            nonlocal done
            if processed == total:
                done = time.perf_counter()

        start = time.perf_counter()
        steps = generate_step(
            mx.array(token_ids), self.model, max_tokens=1, prompt_progress_callback=progress
        )
        tokens = [int(token) for token, _ in steps]
        return {"seconds": done - start, "tokens": tokens}

    def decode(self, prompts: list[list[int]], num_steps: int) -> dict[str, Any]:
        """Seconds that num_steps tokens of every prompt take after the first."""
        if len(prompts) == 1:
            return self._decode_one(prompts[0], num_steps)
        generator = BatchGenerator(
            self.model,
            max_tokens=num_steps + 1,
            completion_batch_size=len(prompts),
            prefill_batch_size=len(prompts),
        )
        try:
            uids = generator.insert(prompts)
            tokens: dict[Any, list[int]] = {uid: [] for uid in uids}
            start = end = 0.0
            while responses := generator.next_generated():
                for response in responses:
                    tokens[response.uid].append(int(response.token))
                end = time.perf_counter()
                if not start:
                    if len(responses) != len(prompts):
                        raise RuntimeError("the prompts did not start to decode together")
                    start = end
        finally:
            generator.close()
        return {"seconds": end - start, "tokens": list(tokens.values())}

    def _decode_one(self, prompt: list[int], num_steps: int) -> dict[str, Any]:
        start = 0.0
        tokens = []
        for token, _ in generate_step(mx.array(prompt), self.model, max_tokens=num_steps + 1):
            if not tokens:
                start = time.perf_counter()
            tokens.append(int(token))
        return {"seconds": time.perf_counter() - start, "tokens": [tokens]}


def main() -> None:
    """Answer requests until standard input ends."""
    out = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints must not end up among the answers
    peer = Peer(sys.argv[1])
    print(json.dumps(peer.info()), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        operation = request.pop("op")
        try:
            answer = getattr(peer, operation)(**request)
        except Exception as error:  # said to the caller, who decides
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
