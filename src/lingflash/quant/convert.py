"""Write a checkpoint in another number format, shard by shard.

Everything is written into `OUT.partial`, a shard at a time under a temporary name, and the folder
is renamed to OUT when it is complete: OUT never exists half done. A manifest in the partial folder
says what is finished, so that a killed conversion goes on. In memory are the shard that is written,
and of the one that is read the pages that the system keeps.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lingflash.core.errors import ConfigError, ModelLoadError
from lingflash.quant.pack import dequantize, quantize_fp8, quantize_int4
from lingflash.quant.recipe import FormatName, Target, plan_targets, quantization_config
from lingflash.quant.scheme import Entry

INDEX = "model.safetensors.index.json"
REPORT = "conversion_report.json"
_MANIFEST = "conversion.json"
_COPIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "chat_template.json", "generation_config.json", "vocab.json", "merges.txt", "README.md",
    "LICENSE",
)  # fmt: skip
# Numbers that are quantized at once; their temporaries take some 40 bytes each.
_PIECE_ELEMENTS = 1 << 23
_FLOATS = ("F32", "BF16", "F16")

Progress = Callable[[int, int], None]
"""Called with bytes of the source done so far and in all."""


class SourceEntry(Entry, Protocol):
    """Where a tensor of the source is and what it looks like."""

    @property
    def file(self) -> Path: ...

    @property
    def num_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Conversion:
    """What is to be converted, to what, and where.

    Args:
        format_name: "fp8", "int4" or "int4-fp8".
        group_size: columns that share a scale, for INT4.
    """

    source: Path
    entries: Mapping[str, SourceEntry]
    config: Mapping[str, Any]
    out: Path
    format_name: FormatName
    group_size: int

    @property
    def partial(self) -> Path:
        """Where it is written until it is complete."""
        return self.out.with_name(self.out.name + ".partial")

    def names_by_file(self) -> dict[Path, list[str]]:
        """The source's tensors."""
        found: dict[Path, list[str]] = {}
        for name, entry in self.entries.items():
            found.setdefault(entry.file, []).append(name)
        return found

    def identity(self) -> dict[str, Any]:
        """What must agree for a conversion to go on: settings and the source's files."""
        files = {entry.file for entry in self.entries.values()}
        return {
            "format": self.format_name,
            "group_size": self.group_size,
            "config": dict(self.config),
            "files": {
                path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(files)
            },
        }


def convert(
    job: Conversion,
    progress: Progress | None = None,
    check: Callable[[Path], None] | None = None,
) -> dict[str, float]:
    """Run or resume a conversion.

    Args:
        progress: told about bytes of the source.
        check: called with the complete partial folder before it gets its name; may raise.

    Returns:
        Relative error (Frobenius norm) of every converted matrix, by name.

    Raises:
        ConfigError: the source is quantized already, the output is in the way, the disk is too
            small, or the format does not fit the model.
        ModelLoadError: a file cannot be read or written, or a tensor holds NaN or infinity.
    """
    if job.config.get("quantization_config") is not None:
        raise ConfigError(
            f"{job.source} is quantized already (config.json has a quantization_config); convert "
            "the BF16 checkpoint."
        )
    odd = [n for n, e in job.entries.items() if e.dtype not in (*_FLOATS, "F64")]
    if odd:
        raise ConfigError(
            f"{job.source}: {odd[0]} is {job.entries[odd[0]].dtype}; BF16, F16 or F32 is needed."
        )
    targets = plan_targets(job.entries, job.format_name, job.group_size)
    done = _open_partial(job)
    total = sum(entry.num_bytes for entry in job.entries.values())
    by_file = job.names_by_file()
    _check_disk(
        job, targets, [n for p, names in by_file.items() if p.name not in done for n in names]
    )
    errors: dict[str, float] = {}
    weight_map: dict[str, str] = {}
    finished = total_size = 0
    for path, names in by_file.items():
        if path.name not in done:
            done[path.name] = _convert_shard(job, path, names, targets)
            _write_manifest(job, done)
        shard = done[path.name]
        errors |= shard["errors"]
        weight_map |= dict.fromkeys(shard["tensors"], path.name)
        total_size += shard["bytes"]
        finished += sum(job.entries[name].num_bytes for name in names)
        if progress is not None:
            progress(finished, total)
    config = dict(job.config)
    config["quantization_config"] = quantization_config(job.entries, targets, job.format_name)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    with _writing(job.partial):
        for name in _COPIED:
            if (job.source / name).is_file():
                shutil.copyfile(job.source / name, job.partial / name)
        report = {"format": job.format_name, "group_size": job.group_size, "errors": errors}
        _write_json(job.partial / REPORT, report)
        _write_json(job.partial / INDEX, index)
        # Without config.json nothing loads the folder, so it comes last.
        _write_json(job.partial / "config.json", config)
    if check is not None:
        check(job.partial)
    with _writing(job.out):
        os.replace(job.partial, job.out)
        (job.out / _MANIFEST).unlink()
        _sync(job.out.parent)
    return errors


def _open_partial(job: Conversion) -> dict[str, dict[str, Any]]:
    """Finished shards of an earlier run with the same settings; makes the folder if need be."""
    out, partial = job.out, job.partial
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty; name another folder or remove it.")
    if out.resolve() == job.source.resolve():
        raise ConfigError(f"{out} is the model itself; name another folder.")
    if not partial.exists() or all(path.suffix == ".tmp" for path in partial.iterdir()):
        with _writing(partial):
            partial.mkdir(parents=True, exist_ok=True)
        _write_manifest(job, {})
        return {}
    try:
        manifest = json.loads((partial / _MANIFEST).read_text(encoding="utf-8"))
        same = manifest["identity"] == json.loads(json.dumps(job.identity()))
        done = dict(manifest["done"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{partial} exists but is no conversion that can go on; remove it and try again."
        ) from None
    if not same:
        raise ConfigError(
            f"{partial} holds a conversion with other settings or of other files; remove it to "
            "start anew, or give the same settings to go on."
        )
    return {
        name: shard
        for name, shard in done.items()
        if (partial / name).is_file() and (partial / name).stat().st_size == shard["file_bytes"]
    }


def _check_disk(job: Conversion, targets: Mapping[str, Target], names: list[str]) -> None:
    needed = sum(
        converted_bytes(job.entries[name].shape, targets[name])
        if name in targets
        else job.entries[name].num_bytes
        for name in names
    )
    free = shutil.disk_usage(job.partial).free
    if free < needed:
        raise ConfigError(
            f"{job.out.parent} has {free / 2**30:.2f} GiB free, the conversion needs "
            f"{needed / 2**30:.2f}; free some space or write elsewhere."
        )


def converted_bytes(shape: tuple[int, ...], target: Target) -> int:
    """Bytes of a matrix after its conversion, scales included."""
    sizes = {"I32": 4, "BF16": 2, "I64": 8, "F8_E4M3": 1, "F32": 4}
    return sum(sizes[d] * torch.Size(s).numel() for d, s in target.stored(shape))


def _convert_shard(
    job: Conversion, path: Path, names: list[str], targets: Mapping[str, Target]
) -> dict[str, Any]:
    """Write one shard; returns what the manifest keeps of it."""
    tensors: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in names:
                weight = file.get_tensor(name)
                if name in targets:
                    converted, errors[name] = convert_matrix(name, weight, targets[name])
                    tensors |= converted
                else:
                    tensors[name] = weight.clone()
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}.") from None
    destination = job.partial / path.name
    temporary = destination.with_suffix(".tmp")
    with _writing(destination):
        save_file(tensors, temporary, metadata={"format": "pt"})
        _sync(temporary)
        os.replace(temporary, destination)
    return {
        "tensors": list(tensors),
        "bytes": sum(t.nbytes for t in tensors.values()),
        "file_bytes": destination.stat().st_size,
        "errors": errors,
    }


def convert_matrix(name: str, weight: Tensor, target: Target) -> tuple[dict[str, Tensor], float]:
    """Quantize one matrix, a few rows at a time.

    Args:
        name: of the matrix, ending in ".weight".
        weight: float [R, C].

    Returns:
        The stored tensors by name, and the relative error in the Frobenius norm.

    Raises:
        ModelLoadError: the matrix holds NaN or infinity.
    """
    values_name, scale_name, shape_name = target.names(name)
    pieces, scales = [], []
    for part in weight.split(_piece_rows(weight, target)):
        numbers = part.float()
        if not torch.isfinite(numbers).all():
            raise ModelLoadError(f"{name} holds NaN or infinity; it cannot be quantized.")
        if target.is_packed:
            values, scale = quantize_int4(numbers, target.block[1])
        else:
            values, scale = quantize_fp8(numbers, target.block)
        pieces.append(values)
        scales.append(scale)
    values, scale = torch.cat(pieces), torch.cat(scales)
    tensors = {values_name: values, scale_name: scale}
    if shape_name is not None:
        tensors[shape_name] = torch.tensor(weight.shape, dtype=torch.int64)
    return tensors, _error_of(weight, values, scale, target)


def _piece_rows(weight: Tensor, target: Target) -> int:
    """Rows that are quantized at once, in whole blocks."""
    return max(_PIECE_ELEMENTS // weight.shape[1] // target.block[0], 1) * target.block[0]


def read_back(
    folder: Path, job: Conversion, errors: Mapping[str, float]
) -> Iterator[tuple[str, float]]:
    """Compare a converted checkpoint's files with the source, tensor by tensor.

    Yields:
        Name of each converted matrix and its relative error as read from the files.

    Raises:
        ModelLoadError: a tensor that was not to change has changed, or an error is not what the
            conversion found.
    """
    targets = plan_targets(job.entries, job.format_name, job.group_size)
    for path, names in job.names_by_file().items():
        with (
            safe_open(path, framework="pt", device="cpu") as source,
            safe_open(folder / path.name, framework="pt", device="cpu") as made,
        ):
            for name in names:
                weight = source.get_tensor(name)
                target = targets.get(name)
                if target is None:
                    if not torch.equal(made.get_tensor(name), weight):
                        raise ModelLoadError(f"{folder / path.name}: {name} has changed.")
                    continue
                values_name, scale_name, _ = target.names(name)
                error = _error_of(
                    weight, made.get_tensor(values_name), made.get_tensor(scale_name), target
                )
                # So put that NaN counts as damage.
                if not abs(error - errors[name]) <= 1e-3 * errors[name] + 1e-9:
                    raise ModelLoadError(
                        f"{folder / path.name}: {name} has a relative error of {error:.6f}, "
                        f"{errors[name]:.6f} when it was converted; the file is damaged."
                    )
                yield name, error


def _error_of(weight: Tensor, values: Tensor, scale: Tensor, target: Target) -> float:
    rows = _piece_rows(weight, target)
    grid = rows // target.block[0]
    squared_error = squared_norm = 0.0
    for part, v, s in zip(weight.split(rows), values.split(rows), scale.split(grid), strict=True):
        back = dequantize(v, s, target.block, torch.float32)
        squared_error += float((back - part.float()).square().sum())
        squared_norm += float(part.float().square().sum())
    return (squared_error / squared_norm) ** 0.5 if squared_norm else 0.0


def _write_manifest(job: Conversion, done: Mapping[str, Any]) -> None:
    with _writing(job.partial):
        _write_json(job.partial / _MANIFEST, {"identity": job.identity(), "done": done})


def _write_json(path: Path, value: object) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while writing into one error of ours."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(
            f"{path} cannot be written: {error}. What is finished is kept; run the same command "
            "again to go on."
        ) from None
