"""One Gram per layer and module of a model at fixed positions: all that the measures of similarity read.

1. The model reads each text once and by itself. Hooks give the outputs of `up`, `down`, `v` and `o` (those of the part, also
   where parts share a matrix) and the residual stream after the layer, at the text's positions.
2. Features of as many layers as `HELD` bytes hold are kept at a time, one layer at least; the model reads the texts again for
   the next ones. A layer takes 4 P bytes for each of its features.
3. Features are centred over positions and multiplied in float64, X X', before anything is rounded: a mean far from 0, as
   residual streams have, would cost the digits that count. No measure here depends on what centring takes away.
4. Each Gram is a file of float32 in the memo of the handle; without a memo they stay in memory, 4 P^2 bytes each.

So the peak is one model, `HELD` bytes of features, and one module's Grams of all layers where they are read.

P positions, D features, L layers.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pkt.errors import UnsupportedModelError
from pkt.memo import keep, remembered
from pkt.memo_costs import making
from pkt.models.controls import RandomSource
from pkt.models.families import KINDS, Dims
from pkt.models.hooks import record
from pkt.models.lm import LM
from pkt.progress import track
from pkt.similarity.positions import Side

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

RESIDUAL = "residual"
MODULES = (*KINDS["ffn"], *KINDS["attention"], RESIDUAL)
"""Where models are looked at: outputs of linear maps, and the residual stream after a layer."""
HELD = 1 << 30
"""Bytes of features that are held at a time."""
VERSION = 1
"""Of the Grams: raise it when they change for the same inputs."""
Place = tuple[int, str]
"""Layer and module."""


def num_features(dims: Dims, module: str) -> int:
    """Width of a module's output."""
    return dims.rows(module) if module in ("up", "v") else dims.width


def gram(x_PD: Tensor) -> Tensor:
    """Inner products of positions once the features are centred, (P, P) float32."""
    centred_PD = x_PD.double()
    centred_PD -= centred_PD.mean(0)
    return (centred_PD @ centred_PD.T).float()


class Untrained(RandomSource):
    """A model of the source's config with new weights, which is looked into like the source."""

    @property
    def identity(self) -> list[str]:
        return [*self.real.identity, f"initialised {self.seed}"]

    def for_location(self) -> AbstractContextManager[PreTrainedModel]:
        return self.initialised()


@dataclass(frozen=True)
class Grams:
    """The Grams of one model at the positions of one side. What is not there yet is recorded when it is asked for."""

    lm: LM
    side: Side
    held: int = HELD
    _kept: dict[Place, Tensor] = field(default_factory=dict, repr=False)
    """The Grams of a handle without a memo."""

    def stack(self, module: str) -> Tensor:
        """Of all layers, (L, P, P) float32 on the CPU.

        Raises:
            UnsupportedModelError: an output is not finite.
        """
        places = [(layer, module) for layer in range(self.lm.dims.layers)]
        self.prepare([module])
        if self.lm.memo is None:
            return torch.stack([self._kept[place] for place in places])
        return torch.stack([self._read(place) for place in places])

    def prepare(self, modules: Sequence[str]) -> None:
        """Record what is missing of some modules, the model in memory meanwhile."""
        missing = [
            (layer, module)
            for layer in range(self.lm.dims.layers)
            for module in modules
            if not self._is_there(layer, module)
        ]
        if not missing:
            return
        with nullcontext() if self.lm.memo is None else making(*(self._file(*place) for place in missing)):
            for place, found_PP in self._record(missing):
                self._keep(place, found_PP)

    def _is_there(self, layer: int, module: str) -> bool:
        return (layer, module) in self._kept if self.lm.memo is None else self._file(layer, module).is_file()

    def _keep(self, place: Place, found_PP: Tensor) -> None:
        if self.lm.memo is None:
            self._kept[place] = found_PP
        else:
            keep(self._file(*place), self._header(*place), {"gram": found_PP})

    def _read(self, place: Place) -> Tensor:
        """One Gram from its file; recorded anew where the file is damaged."""

        def make() -> dict[str, Tensor]:
            return {"gram": dict(self._record([place]))[place]}

        return remembered(self._file(*place), self._header(*place), make)["gram"]

    def _file(self, layer: int, module: str) -> Path:
        assert self.lm.memo is not None
        return self.lm.memo / f"gram-{self._key}-{module}-{layer}.safetensors"

    def _header(self, layer: int, module: str) -> dict[str, str]:
        return {"model": self.lm.name, "weights": self.lm.digest, "layer": str(layer), "module": module}

    @property
    def _key(self) -> str:
        parts = [VERSION, *self.lm.identity, self.lm.dtype, self.side.ids, self.side.at]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def _record(self, places: Sequence[Place]) -> Iterator[tuple[Place, Tensor]]:
        """Grams of some places, one after the other."""
        num = sum(map(len, self.side.at))
        with self.lm.for_location() as model, torch.no_grad():
            for group in _groups(places, self.lm.dims, num, self.held):
                found = self._features(model, group)
                for place in group:
                    x_PD = found.pop(place)
                    if not x_PD.isfinite().all():
                        raise UnsupportedModelError(
                            f"{self.lm.name}: activations are not finite in {self.lm.dtype}; set dtype=float32 or "
                            f"dtype=bfloat16 in the recipe"
                        )
                    yield place, gram(x_PD)

    def _features(self, model: torch.nn.Module, places: Sequence[Place]) -> dict[Place, Tensor]:
        """Outputs at the positions, (P, D) float32 on the CPU."""
        family, dims = self.lm.family, self.lm.dims
        paths = {
            (layer, module): family.layer.format(i=layer) if module == RESIDUAL else family.path(layer, module)
            for layer, module in places
        }
        num = sum(map(len, self.side.at))
        found = {place: torch.empty(num, num_features(dims, place[1])) for place in places}
        done = 0
        with record(model, (), sorted(set(paths.values()))) as kept:
            for ids, at in zip(track(self.side.ids, f"outputs of {self.lm.name}"), self.side.at, strict=True):
                inputs = torch.tensor([ids], device=self.lm.torch_device)
                model.get_submodule(family.decoder)(inputs, use_cache=False)
                for place, path in paths.items():
                    rows = slice(None) if place[1] == RESIDUAL else family.rows(place[1], dims)
                    found[place][done : done + len(at)] = kept[f"{path}:out"][0, at][:, rows].float().cpu()
                done += len(at)
        return found


def _groups(places: Sequence[Place], dims: Dims, num: int, held: int) -> Iterator[list[Place]]:
    """Places of whole layers whose features together take `held` bytes at most, one layer at least."""
    group: list[Place] = []
    size = 0
    for layer in sorted({layer for layer, _ in places}):
        of_layer = [place for place in places if place[0] == layer]
        more = sum(4 * num * num_features(dims, module) for _, module in of_layer)
        if group and size + more > held:
            yield group
            group, size = [], 0
        group += of_layer
        size += more
    yield group
