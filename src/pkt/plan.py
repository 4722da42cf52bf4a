"""What a run would do, from headers alone: layers, shapes, what moves, memory and time."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from typing import Any

from pkt.align.finetune import FinetuneConfig
from pkt.align.lora import LoraConfig
from pkt.evaluation.harness import draw
from pkt.extract.scores import Work
from pkt.models.families import KINDS, PARTS
from pkt.models.lm import LM
from pkt.protocols import protocol_of
from pkt.run import Run
from pkt.tasks.base import UNLABELLED

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
    costs, notes = _costs(run)
    return Plan(models, _moved(run), costs, notes)


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


def _moved(run: Run) -> list[dict[str, Any]]:
    """What is injected per layer and module type, if the method works at a transfer rate."""
    rate = getattr(run.options, "injection_rate", None) or getattr(run.options, "transfer_rate", None)
    if rate is None:
        return []
    from pkt.extract.location import counts

    num = counts(run.target.dims, rate)
    rows = []
    for kind, parts in KINDS.items():
        for part in parts:
            size = _size(run.target, kind, part)
            rows.append(
                {
                    "part": f"{part}_proj",
                    "lines": f"{min(num[kind], size)} {'rows' if part in ('up', 'v') else 'columns'} of {size} in each layer",
                    "layers": f"{run.target.dims.layers} of the source's {run.source.dims.layers}, {_paired_by(run, kind)}",
                    "width": f"{run.source.dims.width} -> {run.target.dims.width}",
                }
            )
    return rows


def _paired_by(run: Run, kind: str) -> str:
    """How source layers are chosen, in a few words."""
    words = {
        "top_scores": f"highest {kind} scores",
        "depth": "of equal relative depth",
        "similarity": f"with outputs of {'down' if kind == 'ffn' else 'o'}_proj most alike",
    }
    return words[run.options.layer_map]


def _layer_map_notes(run: Run) -> list[str]:
    """The layer map, where the method has one: which pairs it makes, as far as that is known without weights."""
    from pkt.extract.layers import LAYER_MAPS, depth
    from pkt.extract.pairing import LayerMapOptions, compares

    source, target, options = run.source, run.target, run.options
    if not isinstance(options, LayerMapOptions):
        return []
    name = options.layer_map
    if name == "depth" or source.dims.layers == target.dims.layers:
        pairs = ", ".join(map(str, depth(source.dims.layers, target.dims.layers, source.name)))
        return [f"Layer map {name}: target layers 0 to {target.dims.layers - 1} take source layers {pairs}."]
    needs = "both models have read the extract split's texts" if compares(source, target, options) else "location"
    return [f"Layer map {name}: {LAYER_MAPS[name]}; known after {needs}."]


def _size(lm: LM, kind: str, part: str) -> int:
    return lm.dims.kv_heads * lm.dims.head_dim if part == "v" else lm.dims.neurons(kind)


def _costs(run: Run) -> tuple[list[dict[str, Any]], list[str]]:
    source, target, options = run.source, run.target, run.options
    lengths = {name: _mean_tokens(run, name) for name in (*run.method.splits, "test")}
    speed = measured_flops(target.torch_device)
    rows = _location_rows(run, lengths, speed) + _similarity_rows(run, lengths, speed)
    if getattr(options, "alignment", None) == "activations":
        rows += _states_rows(run, lengths["align"], speed)
    if hasattr(options, "hidden"):  # a hypernetwork is trained
        rows.append(_align_row(run, lengths["align"], speed))
    if run.method.preparation_key(run.task, options) is not None:
        rows.append(_answers_row(run, lengths.get("train", lengths["test"]), speed))
    if isinstance(options, FinetuneConfig):
        rows.append(_finetune_row(run, lengths["train"], speed))
    items = len(draw(run.task.split("test"), run.recipe.evaluate.limit, run.recipe.scoring_seed))
    protocol = protocol_of(run.recipe, run.task)
    new = 1 if run.task.format.ranks else run.task.format.max_new_tokens
    read = (lengths["test"] * (1 + protocol.shots) + new) * protocol.samples
    for arm in run.recipe.evaluate.arms:
        lm = source if arm == "source" else target
        rows.append(
            _row(
                f"evaluate {arm}, {items} items",
                2.0 * lm.parameters() * items * read,
                _weights(run, lm),
                speed,
            )
        )
    notes = [
        *_layer_map_notes(run),
        f"Time: floating-point operations over {speed / 1e9:,.0f} GFLOP/s, measured now with one matrix product; expect a factor of "
        f"2 either way, more for small models.",
        "Memory: weights and the largest arrays, without the 0.5 GiB that Python and torch take. Source and target are "
        + ("in memory together." if run.method.together else "never together in memory."),
    ]
    return rows, notes


def _location_rows(run: Run, lengths: dict[str, float], speed: float) -> list[dict[str, Any]]:
    """The locator in both models; gradients of the source where its weights are scored."""
    if run.method.locate is None:
        return []
    from pkt.extract.locators import LocatorOptions, examples_for, locator_of, options_of

    options, tokens = run.options, lengths["extract"]
    if not isinstance(options, LocatorOptions):
        layers, num = run.source.dims.layers, run.source.parameters()
        at_once = min(layers, getattr(options, "layers_at_once", 0) or layers)
        passes = math.ceil(layers / at_once)
        # each goes forward, and back to its lowest layer; together they make every weight's gradient once
        flop = 3.0 * (1 + passes) * num * tokens * len(run.task.location)
        held = _weights(run, run.source) + 4.0 * num * at_once / layers
        return [_row("locate in the source", flop, held, speed)]
    locator = locator_of(options)
    examples = examples_for(run.task, locator)
    work = Work(len(examples), sum(1 + len(e.wordings) for e in examples), tokens)
    return [
        _row(
            f"locate in the {role}",
            locator.flop(lm, work, options_of(locator, options)),
            _weights(run, lm) + (options.memory_mib << 20),
            speed,
        )
        for role, lm in (("source", run.source), ("target", run.target))
    ]


def _similarity_rows(run: Run, lengths: dict[str, float], speed: float) -> list[dict[str, Any]]:
    """Recording the outputs by which layers are paired, where the layer map compares them, and their products."""
    from pkt.extract.pairing import LayerMapOptions, compares
    from pkt.similarity.layers import OUTPUTS, POSITIONS

    source, target = run.source, run.target
    if not isinstance(run.options, LayerMapOptions) or not compares(source, target, run.options):
        return []
    rows, tokens = [], lengths["extract"] * len(run.task.location)
    num = min(tokens, POSITIONS)
    for role, lm in (("source", source), ("target", target)):
        outputs = len(OUTPUTS) * lm.dims.layers
        flop = 2.0 * lm.parameters() * tokens + 2.0 * outputs * lm.dims.width * num**2
        rows.append(
            _row(f"compare layers, the {role}", flop, _weights(run, lm) + 4.0 * num * outputs * lm.dims.width, speed)
        )
    return rows


def _answers_row(run: Run, tokens: float, speed: float) -> dict[str, Any]:
    """The source's answers, as long as a training example at most; a method that asks for logits needs none to labelled prompts."""
    labelled = 0 if run.method.together else len(run.task.split("train"))
    prompts = labelled + getattr(run.options, UNLABELLED, 0)
    flop = 2.0 * run.source.parameters() * tokens * prompts
    return _row(f"answers of the source to {prompts} prompts", flop, _weights(run, run.source), speed)


def _finetune_row(run: Run, tokens: float, speed: float) -> dict[str, Any]:
    """Fine-tuning: forward and backward, with gradients of all weights or of adapters alone."""
    target, options = run.target, run.options
    examples, num = len(run.task.split("train")) + getattr(options, UNLABELLED, 0), target.parameters()
    steps = options.epochs * math.ceil(examples / options.batch_size)
    d, micro = target.dims, min(options.micro_batch, options.batch_size)
    layers = 1 if options.gradient_checkpointing else d.layers
    widest = micro * tokens * (layers * (8 * d.width + 3 * d.ffn) + d.vocab) * 4
    adapters = isinstance(options, LoraConfig)
    trained = 2 * options.rank * d.layers * 7 * d.width if adapters else num
    weights = _weights(run, target) if adapters else 4.0 * num
    flop = (4.0 if adapters else 6.0) * num * tokens * examples * options.epochs
    if run.method.together:  # the source reads everything too, and the target's own samples
        flop += 2.0 * run.source.parameters() * tokens * examples * options.epochs
        weights += _weights(run, run.source)
    return _row(f"fine-tune, {steps} steps", flop, weights + 12.0 * trained + widest, speed)


def _states_rows(run: Run, length: float, speed: float) -> list[dict[str, Any]]:
    """Recording both models' states on the prompts, of which there are at most as many tokens as in the examples."""
    rows, texts = [], len(run.task.split("align")) + getattr(run.options, UNLABELLED, 0)
    for role, lm in (("source", run.source), ("target", run.target)):
        states = 4.0 * texts * length * lm.dims.layers * lm.dims.width
        flop = 2.0 * lm.parameters() * texts * length
        rows.append(_row(f"states of the {role}", flop, _weights(run, lm) + states, speed))
    return rows


def _align_row(run: Run, length: float, speed: float) -> dict[str, Any]:
    """Training the hypernetwork; without passes through the target where only moments of weights count."""
    from pkt.extract.location import counts

    source, target, options = run.source, run.target, run.options
    d, hidden = target.dims, options.hidden or source.dims.width
    num = counts(d, options.transfer_rate)
    lines = d.layers * sum(num[kind] * len(parts) for kind, parts in KINDS.items())
    widths = [source.dims.width, *[hidden] * (options.depth - 1), d.width]
    weights = sum(one * two for one, two in itertools.pairwise(widths))
    step = 6.0 * lines * weights
    memory = 16.0 * len(PARTS) * weights + 4 * lines * (sum(widths) + d.width)
    if getattr(options, "alignment", "language") != "moments":
        batch = 1 + min(15, len(run.task.split("align")))
        # every token goes through the frozen weights and through the delta, which has gradients of its own
        step += (4.0 * target.parameters() + 6.0 * lines * d.width) * batch * length
        widest = options.micro_batch * length * d.layers * (8 * d.width + 3 * d.ffn) * 4
        memory += _weights(run, target) + widest / (d.layers if options.gradient_checkpointing else 1)
    return _row(f"align, {options.steps} steps", step * options.steps, memory, speed)


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
    return sum(math.prod(shape) * STORED.get(dtype, 2) for shape, dtype in lm.checkpoint.headers.values())


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
