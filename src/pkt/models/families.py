"""Model families: one row says where the parts of a decoder are. Sizes come from the model's own config.

A config field that is away from its default and is in neither list below is refused by name: it might change what a row
or a column means.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from pkt.errors import UnsupportedModelError

PARTS = ("up", "down", "v", "o")
"""The module types that a transfer may change: rows of `up` and `v`, columns of `down` and `o`."""
LINE_AXIS = {"up": 0, "v": 0, "down": 1, "o": 1}
"""The axis of the weight (out, in) along which one neuron is one line."""
LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
"""The linear maps of a layer."""
OUTER = ("embed", "unembed", "final_norm")
"""Parts that belong to no layer."""
BIAS = "_bias"
KINDS = {"ffn": ("up", "down"), "attention": ("v", "o")}
OUT_NORMS = {"ffn": "ffn_out_norm", "attention": "attention_out_norm"}
"""The norm between a kind's block and the residual stream, in families that have one."""
NOT_PARTS = ("layer", "attention", "ffn", "decoder", "fused", "norm_offset", "harmless")


@dataclass(frozen=True, slots=True)
class Family:
    """Where one architecture keeps its parts, as module paths, and what is special about it. `{i}` stands for the layer."""

    layer: str = "model.layers.{i}"
    attention: str = "self_attn"
    ffn: str = "mlp"
    input_norm: str = "input_layernorm"
    up: str = "mlp.up_proj"
    gate: str = "mlp.gate_proj"
    down: str = "mlp.down_proj"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    ffn_norm: str = "post_attention_layernorm"
    attention_out_norm: str = ""
    """Norm of what attention writes, before it is added to the residual stream; most families have none."""
    ffn_out_norm: str = ""
    """The same for the FFN."""
    decoder: str = "model"
    final_norm: str = "model.norm"
    embed: str = "model.embed_tokens"
    unembed: str = "lm_head"
    fused: tuple[tuple[str, ...], ...] = ()
    """Parts that share a matrix, their rows one below the other in this order."""
    norm_offset: float = 0.0
    """What every norm adds to its weight before it multiplies with it."""
    harmless: frozenset[str] = frozenset()
    """Config fields of this family alone that change nothing we rely on, whatever their value."""

    def module(self, part: str, layer: int) -> str:
        """Path of a part's module, for example `model.layers.3.mlp.up_proj`."""
        return f"{self.layer.format(i=layer)}.{getattr(self, part.partition('+')[0])}"

    def path(self, layer: int | None, part: str) -> str:
        """Path of a part's module; `embed`, `unembed` and `final_norm` belong to no layer. `q_bias` is in `q`."""
        part = part.removesuffix(BIAS)
        return getattr(self, part) if layer is None else self.module(part, layer)

    def tensor(self, layer: int | None, part: str) -> str:
        """Name of the tensor in a checkpoint that holds a part: a weight, or a bias where the part ends in `_bias`."""
        return f"{self.path(layer, part)}.{'bias' if part.endswith(BIAS) else 'weight'}"

    def whole(self, part: str) -> str:
        """The part that is the whole tensor: `q+k+v` for `v` where the three share a matrix, else `v` itself."""
        name = part.removesuffix(BIAS)
        group = next((group for group in self.fused if name in group), (name,))
        return "+".join(group) + part[len(name) :]

    def rows(self, part: str, dims: Dims) -> slice:
        """The rows that a part takes in its tensor: all, unless it shares a matrix."""
        name = part.removesuffix(BIAS)
        for group in self.fused:
            if name in group:
                start = sum(dims.rows(above) for above in group[: group.index(name)])
                return slice(start, start + dims.rows(name))
        return slice(None)

    def keys(self, layers: int) -> dict[str, tuple[int | None, str]]:
        """Tensor name -> (layer, part), for every tensor that a model of this family may have, as a whole."""
        names = [f.name for f in fields(self) if f.name not in (*OUTER, *NOT_PARTS) and getattr(self, f.name)]
        inner = dict.fromkeys(self.whole(name) for name in names)
        every = [(layer, part + suffix) for layer in range(layers) for part in inner for suffix in ("", BIAS)]
        return {self.tensor(*key): key for key in [*every, *((None, part) for part in OUTER)]}


GEMMA = Family(
    ffn_norm="pre_feedforward_layernorm",
    attention_out_norm="post_attention_layernorm",
    ffn_out_norm="post_feedforward_layernorm",
    norm_offset=1.0,
    # the FFN's activation, and how attention scores come about; `final_logit_softcapping` is in `logit_cap`
    harmless=frozenset(
        "hidden_activation query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping "
        "sliding_window_pattern _sliding_window_pattern rope_local_base_freq".split()
    ),
)

FAMILIES: dict[str, Family] = {
    # on how many GPUs a product was computed, which transformers does not read
    "llama": Family(harmless=frozenset(["pretraining_tp"])),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma": Family(norm_offset=1.0, harmless=frozenset(["hidden_activation"])),
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "phi3": Family(
        q="self_attn.qkv_proj",
        k="self_attn.qkv_proj",
        v="self_attn.qkv_proj",
        gate="mlp.gate_up_proj",
        up="mlp.gate_up_proj",
        fused=(("q", "k", "v"), ("gate", "up")),
        # dropout in training, where long positions begin, remote code, which is never run, and what transformers does not read
        harmless=frozenset(
            "resid_pdrop embd_pdrop original_max_position_embeddings auto_map full_attn_mod interpolate_factor".split()
        ),
    ),
}

REFUSED = {
    "gemma3": "it reads images too, and its tensors have other names on disk than in memory; save its text model by itself (the lines "
    "are in docs/methods.md, section 16) and use that",
    "mixtral": "its experts are no linear maps of their own; use a dense model",
    "qwen2_moe": "its experts are no linear maps of their own; use a dense model",
    "qwen3_moe": "its experts are no linear maps of their own; use a dense model",
}
"""Architectures that users will try, with what to do instead."""

HARMLESS_FIELDS = frozenset(
    # sizes and positions, read from the config wherever they matter; training; bookkeeping
    """
    hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size
    max_position_embeddings rope_theta rope_scaling rope_parameters partial_rotary_factor hidden_act rms_norm_eps attention_bias
    mlp_bias attention_dropout sliding_window use_sliding_window max_window_layers layer_types tie_word_embeddings
    initializer_range use_cache cache_implementation
    model_type architectures transformers_version dtype torch_dtype _name_or_path name_or_path
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
    id2label label2id num_labels problem_type finetuning_task task_specific_params
    unsloth_fixed unsloth_version
    output_attentions output_hidden_states return_dict chunk_size_feed_forward is_encoder_decoder is_decoder
    attn_implementation _attn_implementation _attn_implementation_autoset
    tokenizer_class prefix cross_attention_hidden_size add_cross_attention base_model_tp_plan base_model_pp_plan
    """.split()
)


@dataclass(frozen=True, slots=True)
class Dims:
    """Sizes of a decoder."""

    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    norm_eps: float

    @property
    def attention(self) -> int:
        """Attention neurons of a layer: the input channels of `o_proj`."""
        return self.heads * self.head_dim

    def neurons(self, kind: str) -> int:
        """Neurons of one layer, `kind` being `ffn` or `attention`."""
        return self.ffn if kind == "ffn" else self.attention

    def rows(self, part: str) -> int:
        """Rows of a linear map that can share a matrix: `q`, `k`, `v`, `gate` or `up`."""
        return {"q": self.attention, "gate": self.ffn, "up": self.ffn}.get(part, self.kv_heads * self.head_dim)

    def v_row(self, neuron: int) -> int:
        """The row of `v_proj` that feeds an attention neuron: the query heads of a group share one value head."""
        head, channel = divmod(neuron, self.head_dim)
        return head // (self.heads // self.kv_heads) * self.head_dim + channel


def family_of(config: Any, name: str) -> Family:
    """The row for a transformers config.

    Raises:
        UnsupportedModelError: the architecture, or a field of its config, is not one that we handle.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        advice = REFUSED.get(config.model_type)
        raise UnsupportedModelError(
            f"{name}: architecture {config.model_type!r} is not supported"
            + (f": {advice}" if advice else f"; supported: {', '.join(sorted(FAMILIES))}")
        )
    defaults = type(config)().to_dict()
    known = HARMLESS_FIELDS | family.harmless
    found = {field: value for field, value in config.to_dict().items() if field not in known}
    unknown = sorted(
        field for field, value in found.items() if value != defaults.get(field) and value not in (None, False)
    )
    if unknown:
        shown = ", ".join(f"{field}={found[field]!r}" for field in unknown)
        raise UnsupportedModelError(
            f"{name}: the config sets {shown}, which may change what a row or a column of a weight means; "
            f"use a checkpoint without it"
        )
    return family


def dims_of(config: Any) -> Dims:
    """Sizes from a transformers config."""
    heads = config.num_attention_heads
    return Dims(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        ffn=config.intermediate_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab=config.vocab_size,
        context=config.max_position_embeddings,
        norm_eps=config.rms_norm_eps,
    )


def logit_cap(config: Any) -> float | None:
    """The bound c of soft-capped logits, c tanh(x / c); None where logits are not capped."""
    return getattr(config, "final_logit_softcapping", None)
