"""Attribution of a model's layers and neurons on a split, as METHODS defines it (arXiv:2312.12141, arXiv:2505.14436).

For every example the model predicts the last answer token `y` from the position before it. There we record, per layer,
the residual stream `x` before the layer, the attention output `a`, the FFN output `f`, the input `o` of `o_proj` and the
input `m` of `down_proj`; and once the final norm's scale. Then, with `lp` of `logprob_gain.Lens` and `r = x + a`:

1. layers:    attention lp(x + a) - lp(x),              FFN lp(r + f) - lp(r)
2. neurons:   attention lp(x + o_j u_j) - lp(x),        FFN lp(r + m_k w_k) - lp(r)

where `u_j` is column j of `o_proj` and `w_k` column k of `down_proj`. All in float32, in nats.

Where a norm stands between a block and the residual stream (Gemma 2 and 3), `a` and `f` are what comes out of it, and its scale too is
held at its value in the unedited run: with its gain g' and scale s', neuron k writes `m_k s' g' w_k`, and the writes of all neurons and the
block's bias add up to `f`.

E examples, L layers, N neurons of a layer, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from pkt.config import Section
from pkt.errors import UnsupportedModelError
from pkt.extract.logprob_gain import Lens
from pkt.extract.scores import Attribution, Locator, Work, encode_answers, locate
from pkt.models.families import KINDS, OUT_NORMS
from pkt.models.hooks import eager_attention, record
from pkt.models.lm import LM
from pkt.models.parts import gain, part_weight
from pkt.progress import track
from pkt.tasks.base import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Attribution", "AttributionConfig", "attribute", "logprob_gain"]


class AttributionConfig(Section):
    """How neurons are scored."""

    scale: Literal["exact", "released"] = Field(
        default="exact",
        description="final norm in the lens: `exact` 1/rms; `released` 1/sqrt(standard deviation), a defect of the published "
        "code kept for audits",
    )
    positions: Literal["all", "last"] = Field(
        default="all",
        description="attended positions that count for attention neurons: `all`, or `last`, the last key position alone, as in "
        "the published code",
    )


@dataclass(frozen=True)
class _Site:
    """What one example shows at its last position: float32 vectors on the device of the unembedding."""

    answer: int
    scale: Tensor
    before: dict[str, Tensor]  # kind -> (L, D) residual stream before the write: x, r
    write: dict[str, Tensor]  # kind -> (L, D) the whole write: a, f
    act: dict[
        str, Tensor
    ]  # kind -> (L, N) what multiplies the neurons' values: o, m, times the scale of a norm behind them


def attribute(
    lm: LM,
    examples: Sequence[Example],
    style: str,
    cfg: AttributionConfig | None = None,
    *,
    per_example: bool = False,
    memory: int = 256 << 20,
) -> Attribution:
    """Score all layers and neurons of `lm` on `examples`.

    Args:
        style: prompt style.
        per_example: keep the examples apart, else sum over them.
        memory: bytes to work in, above the model and the result, whatever the vocabulary, width and depth are; at least
            one example's activations are held.

    Raises:
        DataError: an example has no scorable token or is longer than the context.
    """
    return locate(logprob_gain, lm, examples, style, cfg, per_example=per_example, memory=memory)


def _attribute(lm: LM, examples: Sequence[Example], style: str, cfg: AttributionConfig, memory: int) -> Attribution:
    ids = encode_answers(lm, examples, style)
    with lm.for_location() as model, torch.no_grad():
        lens = lens_of(model, lm, memory // 2)
        per = 4 * lm.dims.layers * (lm.dims.ffn + lm.dims.attention + 4 * lm.dims.width)
        size = max(1, memory // 2 // per)
        parts = [
            _score(model, lm, lens, ids[i : i + size], cfg)
            for i in track(range(0, len(ids), size), f"attribution of {lm.name}")
        ]
    return Attribution(
        {k: torch.cat([p.layers[k] for p in parts]) for k in KINDS},
        {k: torch.cat([p.neurons[k] for p in parts]) for k in KINDS},
    )


def lens_of(model: PreTrainedModel, lm: LM, memory: int) -> Lens:
    """The lens of a model: its final norm, unembedding and soft cap."""
    return Lens(part_weight(model, lm, None, "unembed"), gain(model, lm, None, "final_norm"), memory, lm.logit_cap)


def values_of(model: PreTrainedModel, lm: LM, kind: str, layer: int) -> Tensor:
    """What each neuron writes to the residual stream, one per column (D, N): behind a norm of the block's output, times its gain."""
    value_DN = part_weight(model, lm, layer, KINDS[kind][1])
    behind = OUT_NORMS[kind]
    return gain(model, lm, layer, behind)[:, None] * value_DN.float() if getattr(lm.family, behind) else value_DN


def _score(model: PreTrainedModel, lm: LM, lens: Lens, batch: list[list[int]], cfg: AttributionConfig) -> Attribution:
    sites = list(_visit(model, lm, batch, cfg))
    device = lens.unembed_VD.device
    answer = torch.tensor([s.answer for s in sites], device=device)
    scale = torch.stack([s.scale for s in sites])
    layers, neurons = {}, {}
    for kind in KINDS:
        before = torch.stack([s.before[kind] for s in sites])  # E L D
        after = before + torch.stack([s.write[kind] for s in sites])
        gains = []
        for layer in range(lm.dims.layers):
            value_DN = values_of(model, lm, kind, layer)
            act = torch.stack([s.act[kind][layer] for s in sites])
            gains.append(lens.gain(before[:, layer], act, value_DN, scale, answer).cpu())
        neurons[kind] = torch.stack(gains, dim=1)
        layers[kind] = torch.stack(
            [
                lens.logprob(after[:, i] * scale[:, None], answer) - lens.logprob(before[:, i] * scale[:, None], answer)
                for i in range(lm.dims.layers)
            ],
            dim=1,
        ).cpu()
    return Attribution(layers, neurons)


def _visit(model: PreTrainedModel, lm: LM, batch: list[list[int]], cfg: AttributionConfig) -> Iterator[_Site]:
    """Run the examples one by one and keep what their last position shows."""
    family, count = lm.family, lm.dims.layers
    device = lm.torch_device
    at = [family.layer.format(i=i) for i in range(count)]
    paths = {part: [family.module(part, i) for i in range(count)] for part in ("down", "o", "v")}
    last_only = cfg.positions == "last"
    behind = {kind: out_norms(lm, kind) for kind in KINDS}
    writers = {kind: behind[kind] or [family.module(kind, i) for i in range(count)] for kind in KINDS}
    inputs = [*at, *paths["down"], *paths["o"], *behind["attention"], *behind["ffn"], family.final_norm]
    outputs = [*writers["attention"], *writers["ffn"], *(paths["v"] if last_only else [])]

    def last(kept: dict[str, Tensor], names: list[str], way: str) -> Tensor:
        return torch.stack([kept[f"{name}:{way}"][0, -1].float().to(device) for name in names])

    def scaled(kept: dict[str, Tensor], act_LN: Tensor, kind: str) -> Tensor:
        return act_LN * rms_scale(last(kept, behind[kind], "in"), lm) if behind[kind] else act_LN

    with record(model, inputs, outputs) as kept, eager_attention(model, last_only):
        for ids in batch:
            result = model.get_submodule(family.decoder)(
                torch.tensor([ids[:-1]], device=device), use_cache=False, output_attentions=last_only
            )
            x, a = last(kept, at, "in"), last(kept, writers["attention"], "out")
            final = kept[f"{family.final_norm}:in"][0, -1].float().to(device)
            o = (
                _last_key(result.attentions, last(kept, paths["v"], "out")[:, family.rows("v", lm.dims)], lm)
                if last_only
                else last(kept, paths["o"], "in")
            )
            down = last(kept, paths["down"], "in")
            if not all(t.isfinite().all() for t in (final, x, o, down)):
                raise UnsupportedModelError(
                    f"{lm.name}: activations are not finite in {model.dtype}; set dtype=float32 or dtype=bfloat16 in the recipe"
                )
            yield _Site(
                answer=ids[-1],
                scale=_scale(final, lm.dims.norm_eps, cfg),
                before={"attention": x, "ffn": x + a},
                write={"attention": a, "ffn": last(kept, writers["ffn"], "out")},
                act={"attention": scaled(kept, o, "attention"), "ffn": scaled(kept, down, "ffn")},
            )


def out_norms(lm: LM, kind: str) -> list[str]:
    """Paths of the norms between the blocks of a kind and the residual stream; none in most families."""
    norm = OUT_NORMS[kind]
    return [lm.family.module(norm, i) for i in range(lm.dims.layers)] if getattr(lm.family, norm) else []


def rms_scale(state: Tensor, lm: LM) -> Tensor:
    """What a norm scales the states (..., D) with, (..., 1)."""
    return torch.rsqrt(state.pow(2).mean(-1, keepdim=True) + lm.dims.norm_eps)


def _scale(final_D: Tensor, eps: float, cfg: AttributionConfig) -> Tensor:
    """1/rms of the last layer's output; `released` puts the standard deviation where the mean square belongs."""
    square = final_D.pow(2).mean()
    return torch.rsqrt((square.sqrt() if cfg.scale == "released" else square) + eps)


def _last_key(attentions: tuple[Tensor, ...], v_L: Tensor, lm: LM) -> Tensor:
    """What the last key position alone sends into `o_proj`, (L, N)."""
    dims = lm.dims
    weight_LH = torch.stack([w[0, :, -1, -1].float().to(v_L.device) for w in attentions])
    value = v_L.view(dims.layers, dims.kv_heads, dims.head_dim).repeat_interleave(dims.heads // dims.kv_heads, dim=1)
    return (value * weight_LH[..., None]).flatten(1)


def _flop(lm: LM, work: Work, _cfg: AttributionConfig) -> float:
    d = lm.dims
    neurons = d.layers * (d.ffn + d.attention)
    products = 2.0 * neurons * d.width * d.vocab + 12.0 * work.examples * neurons * d.vocab
    return products + 2.0 * work.examples * lm.parameters() * work.tokens


logprob_gain = Locator(
    name="logprob_gain",
    paper="arXiv:2312.12141",
    version=2,
    score=_attribute,
    encode=encode_answers,
    flop=_flop,
    config=AttributionConfig,
    section="attribution",
)
"""The change of the answer's log-probability by what a layer or neuron writes, in nats."""
