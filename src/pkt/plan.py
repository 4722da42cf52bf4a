"""What a run would do, from headers alone: layers, shapes, what moves, memory and time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from pkt.models.families import KINDS, PARTS
from pkt.models.lm import LM
from pkt.run import Run

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
STORED = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8}


@dataclass(frozen=True)
class Plan:
    """Rows for the tables that `pkt plan` prints."""

    models: list[dict[str, Any]]
    moved: list[dict[str, Any]]
    costs: list[dict[str, Any]]
    notes: list[str]


def plan(run: Run) -> Plan:
    """Estimate a run. Reads configs, safetensors headers and the task's data; no weights."""
    run.method.requires(run.source, run.target, run.options)
    source, target = run.source, run.target
    models = [_model_row(role, lm) for role, lm in (("source", source), ("target", target))]
    moved, lines = _moved(run)
    costs, notes = _costs(run, lines)
    return Plan(models, moved, costs, notes)


def _model_row(role: str, lm: LM) -> dict[str, Any]:
    d = lm.dims
    return {
        "model": f"{role} {lm.name}",
        "family": lm.config.model_type,
        "parameters": f"{lm.parameters() / 1e6:,.1f} M",
        "layers": d.layers,
        "width": d.width,
        "FFN": d.ffn,
        "heads (kv)": f"{d.heads} ({d.kv_heads})",
        "vocabulary": d.vocab,
    }


def _moved(run: Run) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Lines per layer and module type, if the method works at a transfer rate."""
    rate = getattr(run.options, "injection_rate", None) or getattr(run.options, "transfer_rate", None)
    if rate is None:
        return [], {}
    from pkt.extract.location import counts

    num = counts(run.target.dims, rate)
    rows, lines = [], {}
    for kind, parts in KINDS.items():
        for part in parts:
            size = _size(run.target, kind, part)
            lines[part] = min(num[kind], size)
            rows.append(
                {
                    "part": f"{part}_proj",
                    "lines": f"{lines[part]} {'rows' if part in ('up', 'v') else 'columns'} of {size} in each layer",
                    "layers": f"{run.target.dims.layers} of the source's {run.source.dims.layers}, highest {kind} scores",
                    "width": f"{run.source.dims.width} -> {run.target.dims.width}",
                }
            )
    return rows, lines


def _size(lm: LM, kind: str, part: str) -> int:
    return lm.dims.kv_heads * lm.dims.head_dim if part == "v" else lm.dims.neurons(kind)


def _costs(run: Run, lines: dict[str, int]) -> tuple[list[dict[str, Any]], list[str]]:
    source, target, options = run.source, run.target, run.options
    lengths = {name: _mean_tokens(run, name) for name in ("extract", "align", "test")}
    speed = measured_flops(target.torch_device)
    extract = len(run.task.split("extract"))
    rows = []
    for role, lm in (("source", source), ("target", target)):
        d = lm.dims
        neurons = d.layers * (d.ffn + d.attention)
        flop = (
            2.0 * neurons * d.width * d.vocab
            + 12.0 * extract * neurons * d.vocab
            + 2.0 * extract * lm.parameters() * lengths["extract"]
        )
        rows.append(
            _row(f"locate in the {role}", flop, _weights(run, lm) + (getattr(options, "memory_mib", 0) << 20), speed)
        )
    if lines:
        d, hidden = target.dims, options.hidden or source.dims.width
        entries = d.layers * sum(lines.values())
        hyper = len(PARTS) * hidden * (source.dims.width + d.width)
        batch = 1 + min(15, len(run.task.split("align")))
        tokens = batch * lengths["align"]
        step = 6.0 * entries * hidden * (source.dims.width + d.width) / 1 + 4.0 * target.parameters() * tokens
        widest = options.micro_batch * lengths["align"] * d.layers * (8 * d.width + 3 * d.ffn) * 4
        activations = widest / (d.layers if options.gradient_checkpointing else 1)
        memory = (
            _weights(run, target) + 16 * hyper + 4 * entries * (source.dims.width + hidden + 2 * d.width) + activations
        )
        rows.append(_row(f"align, {options.steps} steps", step * options.steps, memory, speed))
    items = len(run.task.split("test"))
    items = min(items, (run.recipe.evaluate.limit or items) * max(1, len({e.tier for e in run.task.split("test")})))
    new = 1 if run.task.format.ranks else run.task.format.max_new_tokens
    for arm in run.recipe.evaluate.arms:
        lm = source if arm == "source" else target
        rows.append(
            _row(
                f"evaluate {arm}, {items} items",
                2.0 * lm.parameters() * items * (lengths["test"] + new),
                _weights(run, lm),
                speed,
            )
        )
    notes = [
        f"Time: floating-point operations over {speed / 1e9:,.0f} GFLOP/s, measured now with one matrix product; expect a factor of "
        f"2 either way, more for small models.",
        "Memory: weights and the largest arrays, without the 0.5 GiB that Python and torch take. Source and target are "
        + ("in memory together." if run.method.together else "never together in memory."),
    ]
    return rows, notes


def _row(stage: str, flop: float, memory: float, speed: float) -> dict[str, Any]:
    return {
        "stage": stage,
        "TFLOP": f"{flop / 1e12:,.3g}",
        "time": _duration(flop / speed),
        "memory": f"{memory / 2**30:,.2f} GiB",
    }


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "under 1 s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _weights(run: Run, lm: LM) -> float:
    """Bytes of the weights in memory."""
    if run.recipe.dtype in BYTES:
        return lm.parameters() * BYTES[run.recipe.dtype]
    return sum(math.prod(shape) * STORED.get(dtype, 2) for shape, dtype in lm.checkpoint.headers().values())


def _mean_tokens(run: Run, split: str) -> float:
    examples = run.task.split(split)[:50]
    texts = [e.prompt + "\n" + e.response for e in examples]
    return sum(len(ids) for ids in run.target.tokenizer(texts)["input_ids"]) / max(1, len(texts))


def measured_flops(device: str) -> float:
    """Floating-point operations a second of a float32 matrix product on a device."""
    import torch

    a = torch.randn(1024, 1024, device=device)
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        float((a @ a).sum())
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best
