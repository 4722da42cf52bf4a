"""Counting the floating-point operations that were really done, whatever did them: a model, its hooks, a backward pass.

Inside `counted()` the kernels of matrix products and attention stand behind ones that count and call them, so the results are
the same bytes. A multiplication and an addition are two operations; recomputed activations count each time; attention counts
whole, also where a causal mask lets its kernel skip half. Not counted: what grows no faster than the tensors themselves
(norms, activations, sums, the optimizer), and decompositions.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.library import Library, get_kernel
from torch.utils.flop_counter import flop_registry

Formula = Callable[..., int]
"""The arguments of an operation, and its result as `out_val`, to the number of operations."""
aten = torch.ops.aten


@dataclass
class Count:
    """Operations so far."""

    flop: int = 0


@contextmanager
def counted() -> Iterator[Count]:
    """Count what this process does inside the block, backward passes included. Blocks may be nested."""
    count, inside = Count(), threading.local()
    library = Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
            for key in ("CPU", *(["CUDA"] if torch.cuda.is_available() else [])):
                for operation, formula in _operations(key):
                    kernel = get_kernel(operation, key).call_boxed
                    counting = partial(_call, kernel, formula, count, inside)
                    library.impl(operation, counting, key, with_keyset=True)
        yield count
    finally:
        library._destroy()


def _call(kernel: Any, formula: Formula, count: Count, inside: Any, keys: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a kernel and count it; what it is made of itself is not counted again."""
    if getattr(inside, "kernel", False):
        return kernel(keys, *args, **kwargs)
    inside.kernel = True
    try:
        out = kernel(keys, *args, **kwargs)
    finally:
        inside.kernel = False
    count.flop += formula(*args, **kwargs, out_val=out)
    return out


def _operations(key: str) -> Iterator[tuple[Any, Formula]]:
    """The operations that have a kernel of their own on a kind of device."""
    for packet, formula in _FORMULAS.items():
        for overload in packet.overloads():
            operation = getattr(packet, overload)
            if operation.has_kernel_for_dispatch_key(getattr(torch._C.DispatchKey, key)):
                yield operation, formula


def _product(left: int) -> Formula:
    """Of a matrix product: two operations per entry of the result and per dimension summed over, the last of argument `left`."""

    def formula(*args: Any, out_val: Any, **kwargs: Any) -> int:
        return 2 * int(out_val.numel()) * int(args[left].shape[-1])

    return formula


def _summed_product(total: Any, left: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Of the sum of a batch of products."""
    return 2 * int(out_val.numel()) * int(left.shape[-1]) * int(left.shape[0])


_PRODUCTS = {
    _product(0): ("mm", "bmm", "mv", "dot", "vdot"),
    _product(1): ("addmm", "addmm_", "baddbmm", "baddbmm_", "addmv", "addmv_"),
    _summed_product: ("addbmm", "addbmm_"),
}
_ATTENTION = {
    "_scaled_dot_product_flash_attention_for_cpu": "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "_scaled_dot_product_flash_attention_backward",
    **{
        name: name
        for kind in ("flash", "efficient", "cudnn")
        for name in (f"_scaled_dot_product_{kind}_attention", f"_scaled_dot_product_{kind}_attention_backward")
    },
    **{
        f"_{kind}_attention_{way}": f"_{kind}_attention_{way}"
        for kind in ("flash", "efficient")
        for way in ("forward", "backward")
    },
}
"""Attention kernels, and the one whose formula in torch's table fits them."""
_FORMULAS: dict[Any, Formula] = {
    **{getattr(aten, name): formula for formula, names in _PRODUCTS.items() for name in names},
    **{getattr(aten, name): flop_registry[getattr(aten, known)] for name, known in _ATTENTION.items()},
}
