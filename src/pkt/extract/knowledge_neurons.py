"""Knowledge neurons: integrated gradients of the answer's probability along a layer's activations (arXiv:2104.08696).

For a prompt, let `a` be the input of `down_proj` (FFN) or `o_proj` (attention) of one layer at the last position, and `P(a')` the
probability of the answer's token, softmax of the model's own logits, in a forward pass where `a'` stands there instead.

1. attribution of neuron j:  a_j / n * sum_{k=1..n} dP/da_j (k/n a), a right Riemann sum with n = `steps`; one layer at a time
2. per prompt: neurons above `threshold` times the largest attribution of their kind in the model
3. per fact, an example with its paraphrases: neurons that step 2 keeps in at least a share `share` of the prompts (`refined`)

A fact's scores are the means over its prompts. A layer's score is the sum of its neurons', which is, but for the Riemann sum, what the
answer's probability loses when the layer's activations at the last position go to zero.

Only the last position changes, so the prompt before it runs once. Then the last token stands n times, once for every step, layer and
kind, at the same place in one sequence: each copy attends to the prompt and to itself alone, and its gradient is its own.

L layers, N neurons of a layer, P tokens before the last, R copies, J prompts, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from pkt.config import Section
from pkt.errors import UnsupportedModelError
from pkt.extract.scores import Attribution, Locator, Work, encode_answers
from pkt.models.determinism import deterministic
from pkt.models.families import KINDS
from pkt.models.lm import LM
from pkt.models.parts import logits
from pkt.progress import track
from pkt.tasks.base import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class KnowledgeNeuronsConfig(Section):
    """How knowledge neurons are found."""

    steps: int = Field(default=20, ge=1, description="steps of the Riemann sum")
    threshold: float = Field(
        default=0.3,
        ge=0,
        lt=1,
        description="share of a prompt's largest attribution, for each kind, above which a neuron is kept",
    )
    share: float = Field(
        default=0.5, gt=0, le=1, description="share of a fact's prompts that must keep a neuron for it to be refined"
    )


def _encode(lm: LM, examples: Sequence[Example], style: str) -> list[list[list[int]]]:
    """Of every example, its token ids and those of its other wordings."""
    return [encode_answers(lm, [example, *example.wordings], style) for example in examples]


def _score(lm: LM, examples: Sequence[Example], style: str, cfg: KnowledgeNeuronsConfig, memory: int) -> Attribution:
    facts = _encode(lm, examples, style)
    neurons: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    kept: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    with lm.for_location() as model, deterministic():
        for i in track(range(len(facts)), f"knowledge neurons of {lm.name}"):
            found = [integrated_gradients(model, lm, ids, cfg.steps, memory) for ids in facts[i]]
            for kind in KINDS:
                of_prompts_JLN = torch.stack([f[kind] for f in found])
                neurons[kind].append(of_prompts_JLN.mean(0))
                kept[kind].append(refined(of_prompts_JLN, cfg))
    by_neuron = {kind: torch.stack(t) for kind, t in neurons.items()}
    return Attribution(
        {kind: t.sum(-1) for kind, t in by_neuron.items()},
        by_neuron,
        {kind: torch.stack(t) for kind, t in kept.items()},
    )


def refined(scores_JLN: Tensor, cfg: KnowledgeNeuronsConfig) -> Tensor:
    """The knowledge neurons of a fact by its attributions on each prompt, (L, N) bool. A neuron that hinders is none."""
    largest_J = scores_JLN.amax((1, 2)).clamp(min=0)
    strong_JLN = scores_JLN > cfg.threshold * largest_J[:, None, None]
    return strong_JLN.sum(0) >= cfg.share * len(scores_JLN)


def integrated_gradients(
    model: PreTrainedModel, lm: LM, ids: list[int], steps: int, memory: int = 256 << 20
) -> dict[str, Tensor]:
    """Attributions of all neurons for one prompt: kind -> (L, N) float32, in probability.

    Args:
        ids: the prompt with the answer's token at the end. memory: bytes for the copies, of which at least one runs at a time.

    Raises:
        UnsupportedModelError: a gradient is not finite.
    """
    prefix = _prefix(model, lm, ids[:-2])
    copies = [
        (layer, kind, k / steps) for layer in range(lm.dims.layers) for kind in KINDS for k in range(1, steps + 1)
    ]
    size = max(1, memory // _bytes_of_copy(model, lm))
    total = {kind: torch.zeros(lm.dims.layers, lm.dims.neurons(kind)) for kind in KINDS}
    for start in range(0, len(copies), size):
        for scaled, gradient_RN in _gradients(model, lm, prefix, ids, copies[start : start + size]):
            total[scaled.kind][scaled.layer] += (scaled.activation * gradient_RN.float().sum(0)).cpu() / steps
    if not all(t.isfinite().all() for t in total.values()):
        raise UnsupportedModelError(
            f"{lm.name}: gradients of the answer's probability are not finite in {model.dtype}; set dtype=float32 or dtype=bfloat16 "
            f"in the recipe"
        )
    return total


@dataclass
class _Scaled:
    """The copies in which one kind of one layer is scaled."""

    layer: int
    kind: str
    rows: list[int] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    leaf: Tensor = field(init=False)  # (R, N) the scaled activations
    activation: Tensor = field(init=False)  # (N,) float32, as it is

    def hook(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Put the scaled activations, leaves of the graph, in the place of the copies' own."""
        own_RN = args[0][0].detach()
        rows = torch.tensor(self.rows, device=own_RN.device)
        factor_R = torch.tensor(self.factors, device=own_RN.device)
        self.activation = own_RN[rows[0]].float()
        self.leaf = (own_RN[rows].float() * factor_R[:, None]).to(own_RN.dtype).requires_grad_()
        return (args[0].index_copy(1, rows, self.leaf[None]), *args[1:])


def _gradients(
    model: PreTrainedModel, lm: LM, prefix: Any, ids: list[int], copies: list[tuple[int, str, float]]
) -> list[tuple[_Scaled, Tensor]]:
    """Gradients of the answer's probability in the scaled activations of the copies: one (R, N) for every layer and kind."""
    groups: dict[tuple[int, str], _Scaled] = {}
    for row, (layer, kind, factor) in enumerate(copies):
        group = groups.setdefault((layer, kind), _Scaled(layer, kind))
        group.rows.append(row)
        group.factors.append(factor)
    with torch.enable_grad(), _hooked(model, lm, list(groups.values())):
        hidden_RD = model.get_submodule(lm.family.decoder)(
            input_ids=torch.full((1, len(copies)), ids[-2], device=lm.torch_device),
            position_ids=torch.full((1, len(copies)), len(ids) - 2, device=lm.torch_device),
            attention_mask=_mask(model, lm, len(ids) - 2, len(copies)),
            past_key_values=_copied(prefix),
            use_cache=True,
        )[0][0]
        logits_RV = logits(model, lm, hidden_RD)
        probability = logits_RV.softmax(-1)[:, ids[-1]].sum()
    found = torch.autograd.grad(probability, [group.leaf for group in groups.values()])
    return list(zip(groups.values(), found, strict=True))


@contextmanager
def _hooked(model: PreTrainedModel, lm: LM, groups: list[_Scaled]) -> Iterator[None]:
    handles = [
        model.get_submodule(lm.family.module(KINDS[g.kind][1], g.layer)).register_forward_pre_hook(g.hook)
        for g in groups
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _prefix(model: PreTrainedModel, lm: LM, ids: list[int]) -> Any:
    """Keys and values of the tokens before the last."""
    from transformers import DynamicCache

    cache = DynamicCache()  # without a config: a sliding window must not drop what the mask below leaves to see
    if ids:
        with torch.no_grad():
            decoder = model.get_submodule(lm.family.decoder)
            decoder(torch.tensor([ids], device=lm.torch_device), past_key_values=cache, use_cache=True)
    return cache


def _copied(cache: Any) -> Any:
    """A cache of the same tensors: a forward pass adds to it, and the first one stays as it was."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


def _mask(model: PreTrainedModel, lm: LM, num_before: int, num_copies: int) -> Tensor | dict[str, Tensor]:
    """Additive attention mask (1, 1, R, P + R): every copy sees the prompt, as far as its window reaches, and itself."""
    window = getattr(lm.config, "sliding_window", None)
    types = set(getattr(lm.config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])

    def mask(kind: str) -> Tensor:
        sees = torch.ones(num_copies, num_before, dtype=torch.bool)
        if kind == "sliding_attention" and window:
            sees[:, : max(0, num_before - window + 1)] = False
        seen = torch.cat([sees, torch.eye(num_copies, dtype=torch.bool)], dim=1)
        hidden = torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)
        return hidden[None, None].to(lm.torch_device)

    masks = {kind: mask(kind) for kind in types}
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _bytes_of_copy(model: PreTrainedModel, lm: LM) -> int:
    """What one copy holds until its gradient is known: activations of all layers, logits."""
    d = lm.dims
    return d.layers * (4 * d.ffn + 4 * d.attention + 8 * d.width) * model.dtype.itemsize + 12 * d.vocab


def _flop(lm: LM, work: Work, cfg: KnowledgeNeuronsConfig) -> float:
    copies = len(KINDS) * lm.dims.layers * cfg.steps
    return 2.0 * lm.parameters() * work.prompts * (work.tokens + 2 * copies)


knowledge_neurons = Locator(
    name="knowledge_neurons",
    paper="arXiv:2104.08696",
    version=1,
    score=_score,
    encode=_encode,
    flop=_flop,
    config=KnowledgeNeuronsConfig,
    section="knowledge_neurons",
    paraphrases=True,
)
"""Integrated gradients of the answer's probability, means over a fact's prompts, in probability."""
