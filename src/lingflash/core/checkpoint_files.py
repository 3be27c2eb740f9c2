"""A checkpoint's small files, which may be anybody's: read in bounded time and memory, or refused.

Whatever is in them, what comes of it is a sentence.
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingflash.core.errors import InvalidRequestError, ModelLoadError
from lingflash.core.types import SamplingParams

MAX_JSON_BYTES = 64 * 2**20
"""Of config.json and the like; the largest known, an index of weights, has a tenth of it."""

_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def require_file(path: Path) -> None:
    """Refuse what is no file with an end: a folder, a pipe, which would be waited for, a device.

    Raises:
        ModelLoadError: it is none, or is not there.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}.") from None
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise ModelLoadError(f"{path} is {kind}; a file is needed.")


def parse_json(content: bytes, source: str) -> Any:
    """Parse JSON of a checkpoint.

    Raises:
        ModelLoadError: it is none, or nobody's: nested thousands deep, numbers of thousands of
            digits.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ModelLoadError(f"{source} cannot be read as JSON: it is nested too deeply.") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError, too
        reason = str(error).partition(";")[0]
        raise ModelLoadError(f"{source} cannot be read as JSON: {reason}.") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        ModelLoadError: it does not, or is too large.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error}.") from None
    if len(content) > MAX_JSON_BYTES:
        raise ModelLoadError(f"{path} has over {MAX_JSON_BYTES // 2**20} MiB; that is no settings.")
    raw = parse_json(content, str(path))
    if not isinstance(raw, dict):
        raise ModelLoadError(f"{path} holds no JSON object.")
    return raw


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What generation_config.json says.

    Args:
        sampling: fields of SamplingParams.
        eos_token_ids: tokens that end an answer.
    """

    sampling: dict[str, Any] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()


def read_generation_config(folder: Path) -> GenerationConfig:
    """Read a folder's generation_config.json, which need not be there.

    Raises:
        ModelLoadError: it cannot be read, or a value in it is none that a request may have.
    """
    path = folder / "generation_config.json"
    if not path.exists():
        return GenerationConfig()
    raw = read_json_object(path)
    sampling = {key: raw[key] for key in _SAMPLING_KEYS if raw.get(key) is not None}
    try:
        SamplingParams(**sampling)
    except InvalidRequestError as error:
        raise ModelLoadError(f"{path}: {error.message}") from None
    if raw.get("do_sample") is False:
        sampling["temperature"] = 0.0
    eos = raw.get("eos_token_id")
    ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        given = repr(eos)[:200]
        raise ModelLoadError(
            f"{path}: eos_token_id is {given}; a token id or a list of them is needed."
        )
    return GenerationConfig(sampling, tuple(ids))
