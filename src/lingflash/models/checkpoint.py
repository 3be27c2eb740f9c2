"""A folder of safetensors files, read by its headers: what is there and whether it is whole."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from lingflash.core.checkpoint_files import parse_json, read_json_object, require_file
from lingflash.core.errors import ModelLoadError

_INDEX = "model.safetensors.index.json"
# A header larger than this is no header; safetensors itself stops at 100 MB.
_MAX_HEADER_BYTES = 100_000_000
# The largest models known have 200,000.
_MAX_TENSORS = 500_000
_MAX_DIMENSIONS = 8
_BYTES_OF = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4,
    "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor is and what it looks like; dtype is safetensors' name, such as "BF16"."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Read a safetensors file's header and check that the file is as long as it says.

    Raises:
        ModelLoadError: missing, truncated or no safetensors file.
    """
    require_file(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise ModelLoadError(f"{path} is truncated: {size} bytes are no safetensors file.")
            (length,) = struct.unpack("<Q", prefix)
            if length > _MAX_HEADER_BYTES:
                raise ModelLoadError(
                    f"{path} is not a safetensors file (its header claims {length} bytes)."
                )
            if 8 + length > size:
                raise ModelLoadError(
                    f"{path} is truncated: its header needs {8 + length} bytes, it has {size}."
                )
            content = file.read(length)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read as safetensors: {error}.") from None
    count = content.count(b'"data_offsets"')
    if count > _MAX_TENSORS:
        raise ModelLoadError(
            f"{path} says that it has {count:,} tensors; at most {_MAX_TENSORS:,} are read."
        )
    header = parse_json(content, f"{path}'s header")
    entries: dict[str, TensorEntry] = {}
    end = 0
    try:
        for name, item in header.items():
            if name == "__metadata__":
                continue
            begin, stop = item["data_offsets"]
            shape = tuple(int(n) for n in item["shape"])
            if not 0 <= begin <= stop or len(shape) > _MAX_DIMENSIONS or min(shape, default=0) < 0:
                raise ValueError(f"tensor {name[:200]} has an entry that cannot be")
            expected = _BYTES_OF.get(item["dtype"], 0)
            for n in shape:
                expected *= n
            if item["dtype"] in _BYTES_OF and expected != stop - begin:
                raise ModelLoadError(
                    f"{path}: tensor {name} of shape {list(shape)} and dtype {item['dtype']} "
                    f"should take {expected} bytes, its entry says {stop - begin}; corrupt."
                )
            entries[name] = TensorEntry(path, item["dtype"], shape, stop - begin)
            end = max(end, stop)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelLoadError(f"{path} has a corrupt safetensors header: {error!r}.") from None
    if size < 8 + length + end:
        raise ModelLoadError(
            f"{path} is truncated: {8 + length + end} bytes are needed, the file has {size}. "
            "Download it again."
        )
    return entries


def read_checkpoint(folder: Path) -> dict[str, TensorEntry]:
    """List every tensor of a checkpoint folder, by the index or from a single file.

    Raises:
        ModelLoadError: no weights, a file of the index is missing, or index and files disagree.
    """
    index_path = folder / _INDEX
    if index_path.exists():
        try:
            weight_map = read_json_object(index_path)["weight_map"]
            names = sorted(set(weight_map.values()))
            paths = [folder / name for name in names]
        except ModelLoadError as error:
            raise ModelLoadError(f"No readable weight_map: {error.message}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelLoadError(f"{index_path} has no readable weight_map: {error!r}.") from None
        for name, path in zip(names, paths, strict=True):
            if path.resolve().parent != folder.resolve() and not path.exists():
                raise ModelLoadError(f"{index_path} names {name!r}, which is not in the folder.")
    else:
        weight_map = None
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise ModelLoadError(
                f"{folder} holds no *.safetensors files; lingflash reads no other weight format."
            )
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise ModelLoadError(
            f"{index_path} names files that are not there: {list_some(missing)}. "
            "The download is incomplete; run it again."
        )
    entries: dict[str, TensorEntry] = {}
    for path in paths:
        for name, entry in read_header(path).items():
            if name in entries:
                raise ModelLoadError(
                    f"Tensor {name} is in both {entries[name].file.name} and {path.name}."
                )
            entries[name] = entry
    if weight_map is not None:
        lost = [
            name
            for name, file in weight_map.items()
            if name not in entries or entries[name].file.name != Path(file).name
        ]
        if lost:
            raise ModelLoadError(
                f"{index_path} says where {list_some(lost)} should be, but the file does not "
                "hold it."
            )
        extra = [name for name in entries if name not in weight_map]
        if extra:
            raise ModelLoadError(
                f"{index_path} does not list {list_some(extra)}, found in the files."
            )
    return entries


def list_some(names: list[str], most: int = 5) -> str:
    """The first few names for a message, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
