"""Between TrainModel and the files of a Hugging Face checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from lingflash.core.errors import ModelLoadError
from lingflash.models.config import ModelConfig, load_model_config
from lingflash.train.model import TrainModel

_EXPERT_PARTS = {"expert_gate": "gate_proj", "expert_up": "up_proj", "expert_down": "down_proj"}


def _published_names(config: ModelConfig, name: str) -> list[str]:
    """Return the checkpoint's names for a parameter of ours; one per expert if stacked."""
    if name.startswith("mtp.layer."):
        name = f"layers.{config.num_hidden_layers}." + name[len("mtp.layer.") :]
    elif name.startswith("mtp."):
        name = f"layers.{config.num_hidden_layers}." + name[len("mtp.") :]
    head, _, leaf = name.rpartition(".")
    if leaf in _EXPERT_PARTS:
        return [
            f"model.{head}.experts.{e}.{_EXPERT_PARTS[leaf]}.weight"
            for e in range(config.num_experts)
        ]
    if leaf == "expert_bias":
        return [f"model.{head}.gate.expert_bias"]
    if leaf != "weight":
        name += ".weight"
    return [name if name.startswith("lm_head") else "model." + name]


def to_tensors(model: TrainModel) -> dict[str, Tensor]:
    """Return the tensors under their published names: BF16, expert_bias F32."""
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        names = _published_names(model.config, name)
        value = value.detach().cpu()
        value = value.float() if name.endswith("expert_bias") else value.bfloat16()
        parts = [value] if len(names) == 1 else list(value)
        tensors.update({n: p.contiguous() for n, p in zip(names, parts, strict=True)})
    return tensors


def export(model: TrainModel, folder: Path, shards: int = 2) -> int:
    """Write model-0000x-of-0000y.safetensors, model-mtp-layer.safetensors and the index.

    Returns:
        Bytes of tensors.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = to_tensors(model)
    mtp_prefix = f"model.layers.{model.config.num_hidden_layers}."
    main = {n: t for n, t in tensors.items() if not n.startswith(mtp_prefix)}
    mtp = {n: t for n, t in tensors.items() if n.startswith(mtp_prefix)}
    total = sum(t.nbytes for t in tensors.values())
    per_shard = sum(t.nbytes for t in main.values()) / shards
    files: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name in sorted(main, key=_layer_order):
        if filled > per_shard * len(files) and len(files) < shards:
            files.append({})
        files[-1][name] = main[name]
        filled += main[name].nbytes
    weight_map: dict[str, str] = {}
    named = {f"model-{i + 1:05d}-of-{len(files):05d}.safetensors": f for i, f in enumerate(files)}
    if mtp:
        named["model-mtp-layer.safetensors"] = mtp
    for old in folder.glob("model-*.safetensors"):
        if old.name not in named:
            old.unlink()
    for file, content in named.items():
        save_file(content, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(content, file))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=0) + "\n")
    return total


def _layer_order(name: str) -> tuple[int, str]:
    parts = name.split(".")
    if parts[1] == "layers":
        return int(parts[2]), name
    return (-1 if parts[1] == "word_embeddings" else 10_000), name


def load(folder: Path) -> TrainModel:
    """Read a checkpoint into a TrainModel in float32 on the CPU.

    Raises:
        ModelLoadError: a file is missing, or tensors are missing or left over.
    """
    from safetensors.torch import load_file

    config = load_model_config(folder)
    index_path = folder / "model.safetensors.index.json"
    try:
        weight_map = json.loads(index_path.read_text())["weight_map"]
        tensors: dict[str, Tensor] = {}
        for file in sorted(set(weight_map.values())):
            tensors.update(load_file(folder / file))
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(f"{folder}: the checkpoint cannot be read: {error}.") from None
    shared = [
        t.shape[0] for n, t in tensors.items() if n.endswith("shared_experts.gate_proj.weight")
    ]
    model = TrainModel(config, shared[0] if shared else 0)
    state: dict[str, Tensor] = {}
    for name in model.state_dict():
        names = _published_names(config, name)
        missing = [n for n in names if n not in tensors]
        if missing:
            raise ModelLoadError(f"{folder}: the tensor {missing[0]} is missing.")
        parts = [tensors.pop(n).float() for n in names]
        state[name] = parts[0] if len(parts) == 1 else torch.stack(parts)
    if tensors:
        raise ModelLoadError(f"{folder}: the tensor {min(tensors)} is not used.")
    model.load_state_dict(state)
    return model


def widen(state: dict[str, Tensor], model: TrainModel) -> dict[str, Tensor]:
    """Fit a state to a model with a larger vocabulary: new entries begin as the model drew them.

    Raises:
        ModelLoadError: anything else differs.
    """
    own = model.state_dict()
    fitted: dict[str, Tensor] = {}
    for name, target in own.items():
        value = state[name]
        is_grown = name in ("word_embeddings.weight", "lm_head.weight")
        is_grown = is_grown and value.shape[0] < target.shape[0]
        if is_grown and value.shape[1:] == target.shape[1:]:
            fitted[name] = torch.cat((value, target[value.shape[0] :].to(value)))
        elif value.shape == target.shape:
            fitted[name] = value
        else:
            raise ModelLoadError(
                f"{name} is {tuple(value.shape)} in the checkpoint and {tuple(target.shape)} in "
                "the model; only a larger vocabulary can be begun with."
            )
    return fitted
