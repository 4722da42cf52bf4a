"""A model's residual stream at every position of some texts, kept in the memo of its handle.

P positions of all texts, one text after the other; D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pkt.errors import ShapeError, UnsupportedModelError
from pkt.memo import remembered
from pkt.models.hooks import record
from pkt.progress import track

if TYPE_CHECKING:
    from pkt.models.lm import LM

VERSION = 1
"""Of the states: raise it when they change for the same inputs."""


def residuals(lm: LM, ids: Sequence[Sequence[int]], layers: Sequence[int]) -> dict[int, Tensor]:
    """The residual stream after some layers: layer -> (P, D) float32 on the CPU.

    A layer takes 4 P D bytes. With a memo all layers are recorded at once and written there, so that the model is loaded once
    for all who ask; without one, only those asked for.

    Args:
        ids: token ids of each text, with no text empty.

    Raises:
        ShapeError: the model has no such layer.
        UnsupportedModelError: a state is not finite.
    """
    outside = [layer for layer in layers if not 0 <= layer < lm.dims.layers]
    if outside:
        raise ShapeError(f"{lm.name} has {lm.dims.layers} layers, asked for layer {outside[0]}; count from 0")
    if lm.memo is None:
        return _record(lm, ids, layers) if layers else {}
    path = lm.memo / f"residuals-{_key(lm, ids)[:16]}.safetensors"
    header = {"model": lm.name, "weights": lm.digest, "texts": str(len(ids))}

    def make() -> dict[str, Tensor]:
        return {str(layer): state_PD for layer, state_PD in _record(lm, ids, range(lm.dims.layers)).items()}

    found = remembered(path, header, make, [str(layer) for layer in layers])
    return {layer: found[str(layer)] for layer in layers}


def _record(lm: LM, ids: Sequence[Sequence[int]], layers: Sequence[int]) -> dict[int, Tensor]:
    paths = {layer: lm.family.layer.format(i=layer) for layer in layers}
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    with lm.loaded() as model, torch.no_grad(), record(model, (), paths.values()) as kept:
        for text in track(ids, f"states of {lm.name}"):
            model.get_submodule(lm.family.decoder)(torch.tensor([list(text)], device=lm.torch_device), use_cache=False)
            for layer, path in paths.items():
                found[layer].append(kept[f"{path}:out"][0].float().cpu())
    states = {layer: torch.cat(parts) for layer, parts in found.items()}
    if not all(state_PD.isfinite().all() for state_PD in states.values()):
        raise UnsupportedModelError(
            f"{lm.name}: activations are not finite in {lm.dtype}; set dtype=float32 or dtype=bfloat16 in the recipe"
        )
    return states


def _key(lm: LM, ids: Sequence[Sequence[int]]) -> str:
    parts = [VERSION, *lm.identity, lm.dtype, [list(text) for text in ids]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
