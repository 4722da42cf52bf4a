"""Located blocks of the source: where in every matrix of every source layer the most sensitive block of the target's shape begins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pkt.align.lora import adapted
from pkt.align.source_start import SourceStartConfig
from pkt.errors import UnsupportedModelError
from pkt.extract.blocks import VERSION, Blocks, Corner, find_blocks, shapes
from pkt.extract.jaccard import Chance, block_jaccard, chance_of_blocks
from pkt.extract.layers import top_scores
from pkt.inject.delta import Key, key_name
from pkt.memo import remembered
from pkt.models.lm import LM
from pkt.stability.located import Located, Place
from pkt.stability.neurons import in_dtype
from pkt.tasks.base import Example, Task, fingerprint

if TYPE_CHECKING:
    from pkt.run import Run

LAYERS = "block"
"""Kind of the one layer map that all matrices share."""


class BlockLocations:
    """Blocks of a method with the options `SourceStartConfig`. Where they are drawn at random, layers alone are located."""

    what = "blocks"

    def __init__(self, run: Run) -> None:
        self.run = run
        self.cfg: SourceStartConfig = run.options
        self.is_drawn = self.cfg.blocks == "random"
        self.keys = adapted(run.target, self.cfg)
        self.shapes = {part: shape for (layer, part), shape in shapes(run.target, self.keys).items() if not layer}

    def on_examples(self, index: Sequence[int]) -> Located:
        examples = self.run.task.location
        return self._located(self.run.source, [examples[i] for i in index])

    def on_task(self, task: Task) -> Located:
        return self._located(self.run.source, task.location)

    def in_dtype(self, dtype: str) -> Located:
        try:
            return self._located(in_dtype(self.run.source, dtype), self.run.task.location)
        except UnsupportedModelError as e:
            raise UnsupportedModelError(f"{e}; or leave {dtype} out of analysis.dtypes") from e

    def draws(self, seed: int) -> None:
        """Not known here: a method draws blocks in the course of its own work."""

    def agreement(self, place: Place, one: Corner, other: Corner) -> float:
        return block_jaccard(one, other, self.shapes[place.kind])

    def chance(self, place: Place) -> Chance:
        rows, columns = self._matrix(place)
        if place.layer is None:  # embeddings keep their rows, whose first ones are taken
            rows = self.shapes[place.kind][0]
        return chance_of_blocks(self.shapes[place.kind], (rows, columns), self._step(place.kind))

    def sizes(self, place: Place) -> tuple[int, int]:
        block, matrix = self.shapes[place.kind], self._matrix(place)
        return block[0] * block[1], matrix[0] * matrix[1]

    def _matrix(self, place: Place) -> tuple[int, int]:
        rows, columns = self.run.source.shape(place.layer, place.kind)
        return rows, columns

    def _step(self, part: str) -> tuple[int, int]:
        """Whole heads begin where a head does."""
        if self.cfg.blocks != "coupled" or part not in ("q", "k", "v", "o"):
            return 1, 1
        d = self.run.source.dims
        head = (d.rows(part) if part != "o" else d.attention) // d.kv_heads
        return (1, head) if part == "o" else (head, 1)

    def _located(self, source: LM, examples: Sequence[Example]) -> Located:
        found = self._blocks(source, examples)
        chosen = {} if self.is_drawn else {Place("source", part, at): c for (at, part), c in found.corners.items()}
        return Located(chosen, {LAYERS: top_scores(found.layers, self.run.target.dims.layers, source.name)})

    def _blocks(self, source: LM, examples: Sequence[Example]) -> Blocks:
        """Layers and corners, kept in the memo."""
        target, style, coupled = self.run.target, self.run.style, self.cfg.blocks == "coupled"
        sizes = {part: list(shape) for part, shape in self.shapes.items()}
        asked = fingerprint(list(examples))
        parts = ["corners", VERSION, *source.identity, source.dtype, sizes, style, coupled, asked]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        path = source.memo / f"corners-{digest[:16]}.safetensors" if source.memo else None

        def make() -> dict[str, torch.Tensor]:
            at_once = self.cfg.layers_at_once
            found = find_blocks(source, target, self.keys, examples, style, coupled=coupled, layers_at_once=at_once)
            return {"layers": found.layers, **{key_name(key): torch.tensor(c) for key, c in found.corners.items()}}

        header = {"model": source.name, "weights": source.digest, "examples": str(len(examples)), "style": style}
        kept = remembered(path, header, make)
        every = ((at, part) for part in self.shapes for at in (None, *range(source.dims.layers)))
        corners: dict[Key, Corner] = {
            key: (int(kept[name][0]), int(kept[name][1])) for key in every if (name := key_name(key)) in kept
        }
        return Blocks(kept["layers"], corners)
