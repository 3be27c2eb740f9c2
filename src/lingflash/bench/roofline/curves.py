"""`ling bench curves`: the announcement's two curves, as rooflines of four models and measured.

    decode    tokens/s of a batch against output length, averaged over the output
    prefill   tokens/s against the prompt's length

A measured decode step stands at the context it had; the roofline's average over an output of N
tokens is that at the context prompt + N / 2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lingflash.bench.roofline.shapes import DEVICES, SHAPES, decode_rate, prefill_rate
from lingflash.core.errors import ConfigError
from lingflash.records.page import Chart, Html, Line, page, table
from lingflash.records.record import SCHEMA, Record, require

BASE, OURS = "GLM-4.5-Air", "Ling-2.6-flash"
# What the announcement says in words, at 65,536 tokens, on 4 x H20-3e, TP=4, batch 32: times GLM.
ANNOUNCED = {
    "decode": {OURS: 4.38, "Nemotron-3-Super": 3.37, "Qwen3.5-122B-A10B": 1.90},
    "prefill": {OURS: 4.68, "Nemotron-3-Super": 2.12},
}
ANNOUNCED_AT = 65_536
_COLORS = {name: number for number, name in enumerate((OURS, BASE, *(
    name for name in SHAPES if name not in (OURS, BASE)
)))}  # fmt: skip
# A model that vLLM ran; ours may stand beside it.
_IN_VLLM = " in vLLM"
_COLORS[OURS + _IN_VLLM] = len(_COLORS)
_FORMATS = {"fp8": 1, "bf16": 2}


def run_curves(
    *,
    roofline: bool,
    measure: bool,
    lengths: Sequence[int],
    batch: int,
    prompt_len: int,
    ranks: int,
    device: str,
    format_name: str,
    layers: int | None,
    repeats: int,
    vllm_python: str | None,
    beside: Sequence[Path],
    html: Path | None,
    out: Path | None,
    allow_dirty: bool,
    commit: str | None,
) -> Record:
    """Compute or measure, write the record, and the page of both.

    Raises:
        ConfigError: a value is out of range, a record cannot be read, or there is no GPU.
    """
    require(roofline != measure, "--roofline or --measure", "both or none", "one of them")
    require(format_name in _FORMATS, "--format", format_name, ", ".join(_FORMATS))
    require(device in DEVICES, "--device", device, ", ".join(DEVICES))
    require(1 <= batch <= 256, "--batch", batch, "1 to 256")
    require(ranks in (1, 2, 4), "--ranks", ranks, "1, 2 or 4")
    require(prompt_len >= 1, "--prompt-len", prompt_len, "1 or more")
    require(repeats >= 1, "--repeats", repeats, "1 or more")
    require(bool(lengths) and min(lengths) >= 1, "--length", list(lengths), "1 or more")
    lengths = sorted(set(lengths))
    others = [_read(path) for path in beside]
    record = Record("curves", out, allow_dirty, commit=commit)
    record.settings = {
        "kind": "roofline" if roofline else "measured", "format": format_name, "batch": batch,
        "ranks": ranks, "lengths": lengths,
    }  # fmt: skip
    if roofline:
        record.settings |= {"device": DEVICES[device].name, "prompt_len": prompt_len}
        _compute(record, lengths, batch, prompt_len, ranks, device, _FORMATS[format_name])
    else:
        # Not at the top: it needs torch, and a roofline does not.
        from lingflash.bench.on_gpu.peer_configs import MODELS
        from lingflash.bench.on_gpu.peers import measure_peers
        from lingflash.bench.on_gpu.rank_slice import measure_slice

        record.settings |= {"model": OURS}
        measure_slice(
            record, layers=layers, format_name=format_name, batch=batch, lengths=lengths,
            repeats=repeats, ranks=ranks,
        )  # fmt: skip
        record.notes += [
            f"one of {ranks} ranks' share of every layer on one GPU, random weights; the sums "
            "between ranks are not in it",
            "one engine step after another as a CUDA graph, tokens sampled on the device; distinct "
            "random prompts",
        ]
        measure_peers(
            record, python=vllm_python, models=MODELS, format_name=format_name, batch=batch,
            lengths=lengths, repeats=repeats, ranks=ranks,
        )  # fmt: skip
    record.finish()
    if html is not None:
        write_page(html, [record.as_dict(), *others])
    return record


def _compute(
    record: Record, lengths: Sequence[int], batch: int, prompt_len: int, ranks: int, device: str,
    weight_bytes: int,
) -> None:  # fmt: skip
    gpu = DEVICES[device]
    for name, shape in SHAPES.items():
        for length in lengths:
            rate = decode_rate(
                shape, gpu, batch=batch, output=length, prompt=prompt_len,
                weight_bytes=weight_bytes, ranks=ranks,
            )  # fmt: skip
            record.add(f"decode {name} {length}", "tokens/s", [rate])
        for length in lengths:
            rate = prefill_rate(shape, gpu, length=length, weight_bytes=weight_bytes, ranks=ranks)
            record.add(f"prefill {name} {length}", "tokens/s", [rate])
        record.derived[name] = {
            "weights_b": round(shape.total * 1e-9, 1),
            "active_b": round(shape.active * 1e-9, 1),
            "kv_bytes_per_token": shape.kv_bytes,
            "state_mb": round(shape.state_bytes * 1e-6, 1),
        }
    record.notes += [
        "computed, not measured: bytes of a step over the rate of memory, operations of a prompt "
        "over those of the products; bench/roofline/shapes.py says what is left out",
        "FP8: weights of one byte without scales, head, cache and attention in BF16, states in "
        "float32",
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        ok = data["schema"] == SCHEMA and data["case"] == "curves"
    except (OSError, ValueError, KeyError, TypeError):
        ok, data = False, {}
    require(ok, "--beside", path, "a record of `ling bench curves`")
    return {**data, "file": path.name}


def rates(
    records: Sequence[Mapping[str, Any]], phase: str, kind: str
) -> dict[str, dict[int, float]]:
    """Tokens per second of each model at each length, from records of one kind."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        settings = record["settings"]
        if settings["kind"] != kind:
            continue
        for name, series in record["results"].items():
            words = name.split()
            if words[0] != phase:
                continue
            model = settings["model"] if len(words) == 2 else words[1]
            model += _IN_VLLM if "vllm" in words else ""
            found.setdefault(model, {})[int(words[-1].lstrip("c"))] = series["median"]
    return found


def _points(by_model: Mapping[str, dict[int, float]], model: str) -> dict[int, float]:
    """Of our engine where it ran the model, else of vLLM."""
    return by_model.get(model) or by_model.get(model + _IN_VLLM, {})


def charts(records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Rates, and times GLM-4.5-Air, of both phases; the kinds of lines stay apart."""
    found = []
    for phase, x_name in (("decode", "output length, tokens"), ("prefill", "prompt, tokens")):
        absolute, relative = [], []
        for kind in ("measured", "roofline"):
            by_model = rates(records, phase, kind)
            for model, points in by_model.items():
                color = _COLORS.get(model, _COLORS[model.removesuffix(_IN_VLLM)])
                line = Line(model, kind, color, sorted(points.items()))
                absolute.append(line)
                base = _points(by_model, BASE)
                both = [(x, y / base[x]) for x, y in sorted(points.items()) if x in base]
                if both:
                    relative.append(Line(model, kind, color, both))
        relative += [
            Line(model, "announced", _COLORS[model], [(ANNOUNCED_AT, times)])
            for model, times in ANNOUNCED[phase].items()
        ]
        if absolute:
            found.append(
                Chart(title=f"{phase.title()}: tokens per second", x_name=x_name,
                      y_name="tokens/s", lines=absolute)
            )  # fmt: skip
        found.append(
            Chart(title=f"{phase.title()}: times {BASE}", x_name=x_name,
                  y_name=f"times {BASE}", lines=relative)
        )  # fmt: skip
    return found


def compared(records: Sequence[Mapping[str, Any]]) -> str:
    """A table: announced, roofline and measured, at the announcement's length."""
    rows = []
    for phase, announced in ANNOUNCED.items():
        for model in (*SHAPES, OURS + _IN_VLLM):
            row: list[str | Html] = [phase, model]
            said = announced.get(model)
            row.append("1.00x" if model == BASE else "-" if said is None else f"{said:.2f}x")
            for kind in ("roofline", "measured"):
                by_model = rates(records, phase, kind)
                here = _points(by_model, model).get(ANNOUNCED_AT)
                base = _points(by_model, BASE).get(ANNOUNCED_AT)
                none = Html('<span class="no">not measured</span>')
                row.append(f"{here:,.0f}" if here else none if kind == "measured" else "-")
                row.append(f"{here / base:.2f}x" if here and base else "-")
            rows.append(row)
    head = ["phase", "model", "announced", "roofline tokens/s", "times GLM", "measured tokens/s",
            "times GLM"]  # fmt: skip
    return table(head, rows, numbers=5)


def described(record: Mapping[str, Any]) -> str:
    """A paragraph: what made a record."""
    gpu = record["settings"].get("gpu")
    where = record["settings"].get("device") or (gpu["name"] if gpu else "?")
    kind = record["settings"]["kind"]
    notes = "; ".join(map(escape, record["notes"]))
    made = f"commit {record['commit'][:12]}, {record['date']}"
    return (
        f"<p>{kind.title()}: {record['settings']['ranks']} ranks of {where}, "
        f"{record['settings']['format'].upper()}, batch {record['settings']['batch']}. {notes}.<br>"
        f"<code>{escape(record['command'])}</code> <span class='dim'>{made}</span></p>"
    )


def write_page(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """One HTML page, and beside it an SVG of each chart.

    Raises:
        ConfigError: it cannot be written.
    """
    drawn = charts(records)
    body = [
        "<p>Solid lines with dots were measured, dashed lines are rooflines, which were computed, "
        "and diamonds are what the announcement says. They are never joined.</p>",
        f"<h2>At {ANNOUNCED_AT:,} tokens</h2>",
        compared(records),
        *(chart.figure() for chart in drawn),
        *map(described, records),
    ]
    try:
        path.write_text(page("Decode and prefill of four models", body), encoding="utf-8")
        for chart in drawn:
            name = chart.title.split(":")[0].lower() + ("-ratio" if "times" in chart.title else "")
            path.with_name(f"{path.stem}-{name}.svg").write_text(
                chart.svg(alone=True) + "\n", encoding="utf-8"
            )
    except OSError as error:
        raise ConfigError(f"--html is {path}; it cannot be written: {error}.") from None
    print(f"written to {path}")
