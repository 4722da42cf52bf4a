"""Query neurons: FFN neurons that write what the most valuable attention neurons read (arXiv:2312.12141, section 3.4).

1. An attention neuron j of layer l at the position p sends `o_jp`, the attention weight of p times p's entry of the value vector. Its
   score is `s = lp(x + o_jp u_j) - lp(x)`, as in `attribution` but for each position by itself.
2. The `values` best (l, j, p) of the model are the value neurons of the example.
3. An FFN neuron k of a layer below scores, summed over the value neurons, `s * <m_kp w_k, g_l * v_j>`: its output at the value
   neuron's own position, against the neuron's row `v_j` of `v_proj` behind the weight `g_l` of the norm that feeds it.

A norm between a block and the residual stream keeps its scale of the unedited run, as in `attribution`: at the last position for what
attention sends, at the FFN's own position for its output.

Norms keep no scale here, so a score has no unit that compares models. An FFN layer's score is the sum of its neurons'. FFNs with no value
neuron above them, always that of the last layer, score zero, and among zeros the lower index is chosen first. The attention kind has the
scores of `logprob_gain`.

Step 2 without scoring every position: a score is concave in `o_jp`, so its tangent at zero is an upper bound, and costs two matrix
products a layer. Candidates are scored in the order of their bounds until the worst of the best is above all bounds that are left.

T tokens, H heads, L layers, N neurons of a layer, D width, P positions of value neurons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from pkt.config import Section
from pkt.errors import UnsupportedModelError
from pkt.extract.attribution import attribute, lens_of, out_norms, rms_scale, values_of
from pkt.extract.attribution import logprob_gain as logprob_gain_locator
from pkt.extract.logprob_gain import Lens
from pkt.extract.scores import Attribution, Locator, Work, encode_answers
from pkt.models.families import KINDS
from pkt.models.hooks import eager_attention, record
from pkt.models.lm import LM
from pkt.models.parts import gain, part_weight
from pkt.progress import track
from pkt.tasks.base import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class QueryNeuronsConfig(Section):
    """How query neurons are found."""

    values: int = Field(
        default=30,
        ge=1,
        description="value attention neurons, each at its own position, that queries are weighed against",
    )


@dataclass(frozen=True)
class ValueNeuron:
    """An attention neuron at one position, with its score in nats."""

    layer: int
    neuron: int
    position: int
    score: float


@dataclass(frozen=True)
class _Seen:
    """What one example shows: float32 on the device of the unembedding."""

    scale: Tensor  # () 1/rms of the last layer's output
    before: Tensor  # (L, D) residual stream before each layer, last position
    sent: list[Tensor]  # for every layer (T, N) what every position sends into `o_proj`, last query
    ffn: list[Tensor]  # for every layer (T, N) input of `down_proj` at every position


def requires(lm: LM) -> None:
    """Raise UnsupportedModelError if the model caps its logits, behind which a tangent bounds nothing."""
    if lm.logit_cap is not None:
        raise UnsupportedModelError(
            f"{lm.name}: query_neurons bounds scores by their tangents, which needs logits without a soft cap, but "
            f"{lm.config.model_type} caps them at {lm.logit_cap:g}; use another method.locator"
        )


def _score(lm: LM, examples: Sequence[Example], style: str, cfg: QueryNeuronsConfig, memory: int) -> Attribution:
    requires(lm)
    ids = encode_answers(lm, examples, style)
    with lm.for_location() as model, torch.no_grad():
        gains = attribute(lm, examples, style, per_example=True, memory=memory)
        lens = lens_of(model, lm, memory // 2)
        found = []
        for i in track(range(len(ids)), f"query neurons of {lm.name}"):
            seen = _visit(model, lm, ids[i])
            found.append(_queries(model, lm, seen, value_neurons(model, lm, lens, seen, ids[i][-1], cfg.values)))
    ffn_ELN = torch.stack(found)
    return Attribution(
        {"ffn": ffn_ELN.sum(-1), "attention": gains.layers["attention"]},
        {"ffn": ffn_ELN, "attention": gains.neurons["attention"]},
    )


def _visit(model: PreTrainedModel, lm: LM, ids: list[int]) -> _Seen:
    """Run an example with its attention weights."""
    family, dims, device = lm.family, lm.dims, lm.torch_device
    at = [family.layer.format(i=i) for i in range(dims.layers)]
    down, v, attention = ([family.module(p, i) for i in range(dims.layers)] for p in ("down", "v", "attention"))
    after = {kind: out_norms(lm, kind) for kind in KINDS}
    with (
        eager_attention(model),
        _last_query(model, attention) as weights,
        record(model, [*at, *down, *after["attention"], *after["ffn"], family.final_norm], v) as kept,
    ):
        model.get_submodule(family.decoder)(torch.tensor([ids[:-1]], device=device), use_cache=False)
        final_D = kept[f"{family.final_norm}:in"][0, -1].float().to(device)

        def written(act_TN: Tensor, kind: str, layer: int, positions: slice) -> Tensor:
            """Activations times the scale of a norm behind their block, at its value in this run."""
            if not after[kind]:
                return act_TN
            return act_TN * rms_scale(kept[f"{after[kind][layer]}:in"][0, positions].float().to(device), lm)

        sent = []
        for layer, (path, v_path) in enumerate(zip(attention, v, strict=True)):
            value = kept[f"{v_path}:out"][0][:, family.rows("v", dims)].float().to(device)
            value_THd = value.unflatten(-1, (dims.kv_heads, dims.head_dim))
            value_THd = value_THd.repeat_interleave(dims.heads // dims.kv_heads, dim=1)
            sent_TN = (value_THd * weights[path].float().to(device).T[..., None]).flatten(1)
            sent.append(written(sent_TN, "attention", layer, slice(-1, None)))
        return _Seen(
            scale=torch.rsqrt(final_D.pow(2).mean() + dims.norm_eps),
            before=torch.stack([kept[f"{path}:in"][0, -1].float().to(device) for path in at]),
            sent=sent,
            ffn=[
                written(kept[f"{path}:in"][0].float().to(device), "ffn", i, slice(None)) for i, path in enumerate(down)
            ],
        )


@contextmanager
def _last_query(model: PreTrainedModel, paths: list[str]) -> Iterator[dict[str, Tensor]]:
    """Attention weights of the last position, (H, T) by module, of every forward pass; the rest is let go at once."""
    kept: dict[str, Tensor] = {}

    def keep(path: str) -> None:
        def hook(_module: nn.Module, _args: tuple, result: tuple[Tensor, Tensor]) -> None:
            kept[path] = result[1][0, :, -1].detach().clone()

        handles.append(model.get_submodule(path).register_forward_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for path in paths:
            keep(path)
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def value_neurons(
    model: PreTrainedModel, lm: LM, lens: Lens, seen: _Seen, answer: int, count: int
) -> list[ValueNeuron]:
    """The attention neurons that help the answer most, each at its own position, best first; equal ones in order of place."""
    answer_1 = torch.tensor([answer], device=seen.scale.device)
    gradient_LD = lens.gradient(seen.before * seen.scale, answer_1.expand(lm.dims.layers))
    value_DN = [values_of(model, lm, "attention", i) for i in range(lm.dims.layers)]
    bounds = [
        (seen.scale * sent_TN * (gradient_D @ w_DN.float())).flatten()
        for sent_TN, gradient_D, w_DN in zip(seen.sent, gradient_LD, value_DN, strict=True)
    ]
    total, tried = sum(map(len, bounds)), 4 * count
    while True:
        candidates, limit = _highest(bounds, tried)
        found: list[ValueNeuron] = []
        for layer, index in enumerate(candidates):
            position, neuron = index // lm.dims.attention, index % lm.dims.attention
            score_1N = lens.gain(
                seen.before[layer : layer + 1],
                seen.sent[layer].flatten()[index][None],
                value_DN[layer][:, neuron],
                seen.scale[None],
                answer_1,
            )
            found += map(ValueNeuron, [layer] * len(index), neuron.tolist(), position.tolist(), score_1N[0].tolist())
        best = sorted(found, key=lambda v: (-v.score, v.layer, v.neuron, v.position))[:count]
        if tried >= total or best[-1].score >= limit:
            return best
        tried *= 4


def _highest(bounds: list[Tensor], count: int) -> tuple[list[Tensor], float]:
    """The places, per layer, of the `count` highest bounds of all layers, and a bound of all that are left."""
    tops = [bound.topk(min(count, len(bound))) for bound in bounds]
    ordered = torch.cat([top.values for top in tops]).sort(descending=True).values
    if count >= sum(map(len, bounds)):
        return [top.indices for top in tops], -torch.inf
    least = float(ordered[count - 1])
    return [top.indices[top.values >= least] for top in tops], least


def _queries(model: PreTrainedModel, lm: LM, seen: _Seen, values: list[ValueNeuron]) -> Tensor:
    """Scores of all FFN neurons, (L, N)."""
    score_LN = torch.zeros(lm.dims.layers, lm.dims.ffn)
    positions = sorted({v.position for v in values})
    wanted_PD = torch.zeros(len(positions), lm.dims.width, device=seen.scale.device)
    for layer in range(lm.dims.layers - 2, -1, -1):  # the value neurons above gather on the way down
        above = [v for v in values if v.layer == layer + 1]
        if above:
            v_MD = part_weight(model, lm, layer + 1, "v").float()
            norm_D = gain(model, lm, layer + 1, "input_norm")
            for v in above:
                wanted_PD[positions.index(v.position)] += v.score * norm_D * v_MD[lm.dims.v_row(v.neuron)]
        value_DN = values_of(model, lm, "ffn", layer).float()
        score_LN[layer] = (seen.ffn[layer][positions] * (wanted_PD @ value_DN)).sum(0).cpu()
    return score_LN


def _flop(lm: LM, work: Work, _cfg: QueryNeuronsConfig) -> float:
    gains = logprob_gain_locator.flop(lm, work, logprob_gain_locator.config())
    return gains + 2.0 * work.examples * lm.parameters() * (work.tokens + 2)


query_neurons = Locator(
    name="query_neurons",
    paper="arXiv:2312.12141",
    version=1,
    score=_score,
    encode=encode_answers,
    requires=requires,
    flop=_flop,
    config=QueryNeuronsConfig,
    section="query_neurons",
)
"""What FFN neurons write to the most valuable attention neurons; attention by `logprob_gain`."""
