"""Applying a `Delta` to a model: through hooks, differentiable and undone on exit, or for good in its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pkt.errors import ShapeError, UnsupportedModelError
from pkt.inject.changes import Change, Within, within
from pkt.inject.delta import Delta
from pkt.models.families import dims_of, family_of


@contextmanager
def injected(model: Any, delta: Delta) -> Iterator[Any]:
    """Run `model` as if `delta` were in its weights.

    Gradients flow into the delta's values. Keep the block open until the backward pass is over: with gradient
    checkpointing the forward pass runs again then. A module that is no linear map (an embedding, a norm), or that is tied to
    the embedding, has its weight replaced until the block ends, which rounds the sum to the weight's dtype and for which the
    delta's values must need no gradient.
    """
    handles, replaced, embedding = [], [], model.get_input_embeddings().weight
    try:
        for module, weight, change in _parameters(model, delta):
            if isinstance(module, nn.Linear) and weight is module.weight and weight is not embedding:
                handles.append(module.register_forward_hook(_hook(change)))
                continue
            if change.entries().requires_grad:
                raise UnsupportedModelError(
                    f"{type(module).__name__}: no gradient flows through a change of anything but a linear map's weight"
                )
            replaced.append((weight, weight.data))
            weight.data = _changed(weight.data, change)
        yield model
    finally:
        for handle in handles:
            handle.remove()
        for weight, before in reversed(replaced):
            weight.data = before


def _changed(weight: Tensor, change: Change | Within) -> Tensor:
    copy = weight.clone()
    change.add_(copy)
    return copy


def _hook(change: Change | Within) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
    def hook(_module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        added, channels = change.output(args[0].to(output.device))
        return output + added if channels is None else output.index_add(-1, channels, added)

    return hook


@torch.no_grad()
def write_(model: nn.Module, delta: Delta) -> None:
    """Add `delta` to the weights of `model` in place, rounding once to their dtype."""
    for _, parameter, change in _parameters(model, delta):
        weight = parameter.data
        if weight.is_meta:
            raise UnsupportedModelError(
                "weights that this delta changes are offloaded: export the delta, or load the model without offload"
            )
        change.add_(weight)


def _parameters(model: Any, delta: Delta) -> list[tuple[Any, nn.Parameter, Change | Within]]:
    """The parameters that a delta changes, with their modules.

    Raises:
        ShapeError: the model lacks one, or a change does not fit.
    """
    family = family_of(model.config, getattr(model, "name_or_path", "") or "this model")
    dims, found = dims_of(model.config), []
    for (layer, part), change in delta.changes.items():
        name = family.tensor(layer, part)
        try:
            module: Any = model.get_submodule(family.path(layer, part))
            weight = getattr(module, name.rpartition(".")[2])
        except AttributeError as e:
            raise ShapeError(f"this delta changes {name}, which the model does not have") from e
        rows = family.rows(part, dims)
        if weight is None or not change.fits([len(range(len(weight))[rows]), *weight.shape[1:]]):
            shape = "none" if weight is None else list(weight.shape)
            raise ShapeError(
                f"this delta does not fit {part} in {name} of shape {shape}; use the target it was made for"
            )
        found.append((module, weight, within(change, rows)))
    return found
