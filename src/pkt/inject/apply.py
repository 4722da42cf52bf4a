"""Applying a `Delta` to a model: through hooks, differentiable and undone on exit, or for good in its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pkt.errors import ShapeError, UnsupportedModelError
from pkt.inject.delta import Change, Delta, Key
from pkt.models.families import family_of


@contextmanager
def injected(model: nn.Module, delta: Delta) -> Iterator[nn.Module]:
    """Run `model` as if `delta` were in its weights.

    Gradients flow into the delta's values. Keep the block open until the backward pass is over: with gradient
    checkpointing the forward pass runs again then. A module that is no linear map (an embedding, a norm) has its weight
    replaced until the block ends, for which the delta's values must need no gradient.
    """
    handles, replaced = [], []
    try:
        for module, change in [_module(model, key, change) for key, change in delta.changes.items()]:
            if isinstance(module, nn.Linear):
                handles.append(module.register_forward_hook(_hook(change)))
                continue
            if change.entries().requires_grad:
                raise UnsupportedModelError(
                    f"{type(module).__name__} is no linear map: no gradient flows through its change"
                )
            replaced.append((module, module.weight.data))
            module.weight.data = _changed(module.weight.data, change)
        yield model
    finally:
        for handle in handles:
            handle.remove()
        for module, weight in replaced:
            module.weight.data = weight


def _changed(weight: Tensor, change: Change) -> Tensor:
    copy = weight.clone()
    change.add_(copy)
    return copy


def _hook(change: Change) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
    def hook(_module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        added, channels = change.output(args[0].to(output.device))
        return output + added if channels is None else output.index_add(-1, channels, added)

    return hook


@torch.no_grad()
def write_(model: nn.Module, delta: Delta) -> None:
    """Add `delta` to the weights of `model` in place, rounding once to their dtype."""
    for key, change in delta.changes.items():
        weight = _module(model, key, change)[0].weight.data
        if weight.is_meta:
            raise UnsupportedModelError(
                f"the weights of {key} are offloaded: export the delta, or load the model without offload"
            )
        change.add_(weight)


def _module(model: Any, key: Key, change: Change) -> tuple[Any, Change]:
    layer, part = key
    family = family_of(model.config, getattr(model, "name_or_path", "") or "this model")
    path = getattr(family, part) if layer is None else family.module(part, layer)
    try:
        module: Any = model.get_submodule(path)
    except AttributeError as e:
        raise ShapeError(f"this delta changes {path}, which the model does not have") from e
    if not change.fits(list(module.weight.shape)):
        raise ShapeError(
            f"this delta does not fit {path} of shape {list(module.weight.shape)}; use the target it was made for"
        )
    return module, change
