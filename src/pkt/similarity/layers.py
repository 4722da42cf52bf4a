"""How alike every source layer is to every target layer, for a layer map."""

from __future__ import annotations

import logging

from torch import Generator, Tensor

from pkt.models.lm import LM
from pkt.similarity.grams import Grams
from pkt.similarity.measures import CKA
from pkt.similarity.positions import draw_positions
from pkt.tasks.base import Task

log = logging.getLogger(__name__)

POSITIONS = 1024
OUTPUTS = {"ffn": "down", "attention": "o"}
"""The output by which layers are compared: what the block writes to the residual stream."""


def layer_similarity(source: LM, target: LM, task: Task, style: str, positions: int = POSITIONS) -> dict[str, Tensor]:
    """Debiased linear CKA of block outputs on the examples to locate with: kind -> (source layers, target layers) float64.

    Positions are the same for every seed of a method. What a control arm's handle stands for is compared, not its values.
    Grams are kept in the handles' memos, so that a second call loads no model.

    Raises:
        DataError: the examples hold too few positions.
    """
    fixed = draw_positions((source, target), task.location, style, positions, Generator().manual_seed(0))
    for note in fixed.notes:
        log.info("layer similarity: %s", note)
    of_source, of_target = (Grams(lm, side) for lm, side in zip((source, target), fixed.sides, strict=True))
    for grams in (of_source, of_target):
        grams.prepare(list(OUTPUTS.values()))
    return {kind: CKA(of_source.stack(module), of_target.stack(module)) for kind, module in OUTPUTS.items()}


def layer_similarity_key(task: Task, positions: int = POSITIONS) -> list[object]:
    """What decides `layer_similarity` beside models and prompt style, as JSON values."""
    from pkt.similarity.grams import VERSION
    from pkt.tasks.base import fingerprint

    return [VERSION, positions, fingerprint(task.location)]
