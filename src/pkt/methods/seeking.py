"""Seeking: source parameters as the start of a LoRA, then fine-tuning. Post-Align transfer of arXiv:2310.11451.

1. Sensitivity of every source weight on the extract split; layers and blocks of the largest sums (`extract/blocks.py`), or layers by
   another map (`extract/pairing.py`).
2. The blocks, which have the shapes of the target's matrices, are read from the source's files.
3. Each block's best approximation of rank r gives `B0 = U S`, `A0 = V^T` (`align/source_start.py`).
4. The target's matrix W becomes `W - B0 A0` with an adapter `B A` that starts at `B0 A0`: fine-tuned on the train split.
5. The delta is `B A - B0 A0`, of rank 2r, on the original target (`align/lora.py`).
"""

from __future__ import annotations

from torch import Generator

from pkt.align.lora import tune_lora
from pkt.align.source_start import (
    LocatedBlocks,
    SourceStartConfig,
    check_pair,
    locate_blocks,
    location_key,
    source_start,
)
from pkt.inject.changes import LowRank
from pkt.inject.delta import Delta, Key, key_name
from pkt.methods.base import fork, method
from pkt.models.lm import LM
from pkt.tasks.base import Task
from pkt.tasks.losses import encode_all


def requires(source: LM, target: LM, cfg: SourceStartConfig) -> None:
    """A source with at least as many layers as the target and every adapted matrix at least as large; a target that keeps them in
    matrices of their own (Phi-3 does so for `o` and `down` alone) with `rank` at most their smaller side. For adapters on the embeddings,
    which are left out where the target ties them, equal token maps and a source that does not tie them. With `blocks: coupled`, equal head
    sizes and queries per key."""
    check_pair(source, target, cfg)


def start(
    source: LM, target: LM, task: Task, cfg: SourceStartConfig, gen: Generator, *, style: str
) -> dict[Key, LowRank]:
    """The source's blocks, decomposed."""
    return _begin(source, target, task, cfg, gen, style)[1]


def _begin(
    source: LM, target: LM, task: Task, cfg: SourceStartConfig, gen: Generator, style: str
) -> tuple[LocatedBlocks, dict[Key, LowRank]]:
    starting = fork(gen)
    found = locate_blocks(source, target, task, cfg, style)
    return found, source_start(source, target, found, cfg, starting)


def without_source(source: LM, target: LM, task: Task, cfg: SourceStartConfig, gen: Generator, *, style: str) -> Delta:
    """The control: adapters with peft's own start, on the same examples in the same order."""
    _, training = fork(gen), fork(gen)
    examples = encode_all(task.split("train"), style, target, loss_on_prompt=cfg.loss_on_prompt)
    delta = tune_lora(target, examples, cfg, training)
    return Delta(delta.changes, delta.provenance | {"labels": len(examples)})


@method(
    config=SourceStartConfig,
    kind="post-align",
    paper="arXiv:2310.11451",
    requires=requires,
    splits=("extract", "train"),
    locate=locate_blocks,
    location=location_key,
    start=start,
    trains_copy=True,
    no_source=without_source,
    random_neurons={"blocks": "random"},
    learning_rate="lr",
)
def seeking(source: LM, target: LM, task: Task, cfg: SourceStartConfig, gen: Generator, *, style: str) -> Delta:
    """Start adapters at the source's most sensitive blocks, then fine-tune them."""
    found, begin = _begin(source, target, task, cfg, gen, style)
    examples = encode_all(task.split("train"), style, target, loss_on_prompt=cfg.loss_on_prompt)
    delta = tune_lora(target, examples, cfg, fork(gen), begin)
    provenance = {
        "labels": len(task.location) + len(examples),
        "blocks": {
            "layers": found.layers,
            "layer_scores": found.blocks.layers.tolist(),
            "corners": None
            if cfg.blocks == "random"
            else {
                key_name(key): corner
                for key, corner in found.blocks.corners.items()
                if key[0] is None or key[0] in found.layers
            },
            **found.described(),
        },
    }
    return Delta(delta.changes, delta.provenance | provenance)
