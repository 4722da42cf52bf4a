"""Sensitivity: how much the loss of an example would change if a weight were gone, to first order, `|w dL/dw|`.

`each_sensitivity` streams it, one parameter of one example at a time, so that no more than one parameter's gradient is in memory
beside the model and the activations (arXiv:2310.11451, section 3.1). The locator sums it over what belongs to a neuron or a layer:

1. FFN neuron: its rows of `gate_proj` and `up_proj` and its column of `down_proj`
2. attention neuron: its column of `o_proj` and its row of `v_proj`, which the heads of a group share
3. layer: all of `q_proj`, `k_proj`, `v_proj` and `o_proj` (attention), of `gate_proj`, `up_proj` and `down_proj` (FFN)

Weights alone count, not biases.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pkt.config import Section
from pkt.errors import UnsupportedModelError
from pkt.extract.scores import Attribution, Locator, Work
from pkt.models.determinism import deterministic
from pkt.models.families import KINDS
from pkt.models.lm import LM
from pkt.progress import track
from pkt.tasks.base import Example
from pkt.tasks.losses import Labelled, encode_all, example_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Consume = Callable[[int, str, Tensor], None]
TENSORS = {"ffn": ("gate", "up", "down"), "attention": ("q", "k", "v", "o")}
"""The matrices of a layer, by kind."""


def each_sensitivity(
    lm: LM, examples: Sequence[Example], style: str, consume: Consume, names: Container[str] | None = None
) -> None:
    """Call `consume(number of the example, parameter's name, |w * dL/dw|)` for every parameter and example.

    `L` is the mean cross-entropy of the example's response tokens, in nats. The products are float32, of the parameter's shape and on
    its device, whatever the dtype of the model; they belong to `consume`, and each is let go as soon as that returns. Above the model,
    at most one example's activations, one parameter's gradient and its product are in memory. Parameters of an example come
    from the last layer to the first, in no order that is promised. Tied weights are one parameter, under the embedding's name.

    Args:
        names: parameters to give, as in `model.named_parameters()`; None means all.

    Raises:
        DataError: an example has no token to score, or is longer than the context.
        UnsupportedModelError: the weights are offloaded, or a loss or a product is not finite.
    """
    encoded = encode_all(examples, style, lm, loss_on_prompt=False)
    with lm.for_location() as model, deterministic():
        for number in track(range(len(encoded)), f"sensitivity of {lm.name}"):
            example = encoded[number]

            def give(name: str, weight: Tensor, number: int = number, id: str = example.id) -> None:
                assert weight.grad is not None
                product, weight.grad = weight.grad.float(), None
                product.mul_(weight.detach()).abs_()
                if not product.isfinite().all():
                    raise _not_finite(lm, model, f"the gradient of {name} on example {id}")
                consume(number, name, product)

            with _gradients(model, lm, give, names):
                loss = example_losses(model, lm, [example]).sum()
                if not loss.isfinite():
                    raise _not_finite(lm, model, f"the loss of example {example.id}")
                loss.backward()


@contextmanager
def _gradients(
    model: PreTrainedModel, lm: LM, give: Callable[[str, Tensor], None], names: Container[str] | None
) -> Iterator[None]:
    """Hand each parameter to `give` as soon as its gradient is whole. Afterwards the model is as it was, errors or not."""
    wanted = [(name, p) for name, p in model.named_parameters() if names is None or name in names]
    if any(p.device.type == "meta" for _, p in wanted):
        raise UnsupportedModelError(
            f"{lm.name}: gradients need the weights in memory, but some are offloaded; use --device cpu or --device balanced"
        )
    before = [(p, p.requires_grad) for p in model.parameters()]
    handles = []
    try:
        for p, _ in before:
            p.requires_grad_(False)
        for name, p in wanted:
            p.requires_grad_(True)
            handles.append(p.register_post_accumulate_grad_hook(lambda p, name=name: give(name, p)))
        with torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for p, trainable in before:
            p.requires_grad_(trainable).grad = None


def _not_finite(lm: LM, model: PreTrainedModel, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{lm.name}: {what} is not finite in {model.dtype}; set dtype=float32 or dtype=bfloat16 in the recipe"
    )


def _encode(lm: LM, examples: Sequence[Example], style: str) -> list[Labelled]:
    return encode_all(examples, style, lm, loss_on_prompt=False)


def _score(lm: LM, examples: Sequence[Example], style: str, _cfg: Section, _memory: int) -> Attribution:
    d = lm.dims
    layers = {kind: torch.zeros(len(examples), d.layers) for kind in KINDS}
    neurons = {kind: torch.zeros(len(examples), d.layers, d.neurons(kind)) for kind in KINDS}
    rows = torch.tensor([d.v_row(j) for j in range(d.attention)])
    at: dict[str, list[tuple[str, str, int]]] = {}  # parts may share a matrix
    for kind, parts in TENSORS.items():
        for part in parts:
            for layer in range(d.layers):
                at.setdefault(lm.family.tensor(layer, part), []).append((kind, part, layer))

    def add(example: int, name: str, of_tensor: Tensor) -> None:
        for kind, part, layer in at[name]:
            s = of_tensor[lm.family.rows(part, d)]
            layers[kind][example, layer] += s.sum().cpu()
            if part in ("gate", "up"):
                neurons[kind][example, layer] += s.sum(1).cpu()
            elif part == "v":
                neurons[kind][example, layer] += s.sum(1).cpu()[rows]
            elif part in ("down", "o"):
                neurons[kind][example, layer] += s.sum(0).cpu()

    each_sensitivity(lm, examples, style, add, at)
    return Attribution(layers, neurons)


def _flop(lm: LM, work: Work, _cfg: Section) -> float:
    return 6.0 * lm.parameters() * work.examples * work.tokens


sensitivity = Locator(
    name="sensitivity",
    paper="arXiv:2310.11451",
    version=1,
    score=_score,
    encode=_encode,
    flop=_flop,
)
"""Sums of `|w dL/dw|` over a neuron's weights, in nats."""
