"""Reading a loaded stock model: what its modules read and write, through hooks that are removed on exit, and their weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def record(
    model: nn.Module, inputs: Iterable[str] = (), outputs: Iterable[str] = (), *, detach: bool = True
) -> Iterator[dict[str, Tensor]]:
    """Keep the last call's input or output of named modules.

    Args:
        inputs: module paths whose first argument is kept, under the key `path:in`.
        outputs: module paths whose result is kept (the first item of a tuple), under `path:out`.
        detach: cut what is kept from the graph; else gradients flow through it.

    Yields: a dict that every forward pass fills anew.
    """
    kept: dict[str, Tensor] = {}
    handles = []

    def keep_input(path: str) -> None:
        def hook(_module: nn.Module, args: tuple) -> None:
            kept[f"{path}:in"] = args[0].detach() if detach else args[0]

        handles.append(model.get_submodule(path).register_forward_pre_hook(hook))

    def keep_output(path: str) -> None:
        def hook(_module: nn.Module, _args: tuple, result: Tensor | tuple) -> None:
            state = result[0] if isinstance(result, tuple) else result
            kept[f"{path}:out"] = state.detach() if detach else state

        handles.append(model.get_submodule(path).register_forward_hook(hook))

    try:
        for path in inputs:
            keep_input(path)
        for path in outputs:
            keep_output(path)
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def eager_attention(model: PreTrainedModel, wanted: bool = True) -> Iterator[None]:
    """Attention weights are returned by the eager implementation only."""
    before = model.config._attn_implementation
    if wanted:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if wanted:
            model.set_attn_implementation(before)


def weight_of(model: PreTrainedModel, path: str, device: str) -> Tensor:
    """A module's weight on `device`, fetched from where accelerate keeps it if the module is offloaded."""
    module: Any = model.get_submodule(path)
    if module.weight.device.type != "meta":
        return module.weight.to(device)
    from accelerate.utils import align_module_device

    with align_module_device(module):
        return module.weight.to(device, copy=True)
