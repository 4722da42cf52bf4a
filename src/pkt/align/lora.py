"""Low-rank adapters (LoRA) on the target, trained by peft from a given start, and the low-rank change that they make.

With a start `B0 A0` the base is `W - B0 A0` (times alpha/r, as everything of the adapter), so that training begins at the
target itself. That base is never made: a hook takes `B0 A0` away while the adapter is trained. What is left is

    W - B0 A0 + B A = W + [B, -B0] [A; A0]

a change of rank 2r on the original target (arXiv:2310.11451, section 3).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Generator, nn

from pkt.align.finetune import FinetuneConfig, check_training, finetune, training_seed
from pkt.errors import ConfigError
from pkt.inject.apply import injected
from pkt.inject.changes import Change, LowRank
from pkt.inject.delta import Delta, Key
from pkt.models.families import LINEAR
from pkt.models.lm import LM
from pkt.randomness import own_randomness
from pkt.tasks.losses import Labelled

ADAPTER = "default"


class LoraConfig(FinetuneConfig):
    """Options of every method that trains adapters; the defaults are Seeking's published values."""

    rank: int = Field(16, ge=1, description="rank r of the adapters")
    alpha: float = Field(16.0, gt=0, description="adapters count alpha / rank times")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the adapters' input in training")
    parts: list[Literal["q", "k", "v", "o", "gate", "up", "down"]] = Field(
        ["q", "k", "v", "o", "gate", "up", "down"],
        min_length=1,
        description="linear maps of every layer that get an adapter",
    )
    embeddings: bool = Field(
        True,
        description="adapters on embedding and LM head too; where the two are tied they get none (`pkt untie` makes a target where they are not)",
    )

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank


def adapted(target: LM, cfg: LoraConfig) -> list[Key]:
    """Where the target gets adapters. A matrix that parts share gets one.

    Raises:
        ConfigError: some parts of such a matrix are wanted, but not all.
    """
    parts = dict.fromkeys(target.family.whole(part) for part in LINEAR if part in cfg.parts)
    for whole in parts:
        if missing := set(whole.split("+")) - set(cfg.parts):
            raise ConfigError(
                f"{target.name}: {whole} share one matrix in {target.config.model_type}, which gets one adapter, but method.parts lacks "
                f"{', '.join(sorted(missing))}; name all of them, or none"
            )
    keys: list[Key] = [(layer, part) for layer in range(target.dims.layers) for part in parts]
    return [*keys, *adapted_outside(target, cfg)]


def adapted_outside(target: LM, cfg: LoraConfig) -> list[Key]:
    """Embedding and LM head, if they get adapters.

    peft merges wrongly what is adapted on tied embeddings.
    """
    return [(None, "embed"), (None, "unembed")] if cfg.embeddings and not target.config.tie_word_embeddings else []


def check_adapters(target: LM, cfg: LoraConfig) -> None:
    """Raise ConfigError if the training cannot start, or the rank is larger than a dimension of a matrix that is adapted."""
    check_training(target, cfg)
    if len(set(cfg.parts)) < len(cfg.parts):
        raise ConfigError(f"method.parts is {cfg.parts}; name every part once")
    smallest = min(adapted(target, cfg), key=lambda key: min(target.shape(*key)))
    shape = target.shape(*smallest)
    if cfg.rank > min(shape):
        raise ConfigError(
            f"method.rank is {cfg.rank}, but {target.family.tensor(*smallest)} of {target.name} is {shape[0]} x {shape[1]}; use a rank of at "
            f"most {min(shape)}"
        )


def tune_lora(
    target: LM,
    examples: Sequence[Labelled],
    cfg: LoraConfig,
    gen: Generator,
    start: Mapping[Key, LowRank] | None = None,
) -> Delta:
    """Train adapters and return their change to the target.

    Args:
        start: `B0`, `A0` of every adapted part, before the factor alpha / rank; None for peft's own start, where B is zero.

    Returns: low-rank changes: rank 2r from a given start, else r. Float32, on the CPU.
    """
    keys = adapted(target, cfg)
    offset: dict[Key, Change] = {key: LowRank(pair.a, -cfg.scaling * pair.b) for key, pair in (start or {}).items()}
    with target.private() as base, injected(base, Delta(offset)):
        model = _with_adapters(base, target, keys, cfg, gen)
        if start is not None:
            for key in keys:
                _set(_module(model, target, key), start[key])
        num = sum(p.numel() for p in model.parameters() if p.requires_grad)
        model.train()
        history = finetune(model, target, examples, cfg, gen, [_digest(start[key]) for key in keys] if start else None)
        ends = {key: _get(_module(model, target, key)) for key in keys}
    changes: dict[Key, Change] = {}
    for key, end in ends.items():
        a, b = [end.a], [cfg.scaling * end.b]
        if start is not None:
            a, b = [*a, start[key].a], [*b, -cfg.scaling * start[key].b]
        changes[key] = LowRank(torch.cat(a), torch.cat(b, dim=1))
    return Delta(changes, {"history": history, "trained_parameters": num, "steps": len(history)}).detach()


def _with_adapters(base: Any, target: LM, keys: Sequence[Key], cfg: LoraConfig, gen: Generator) -> Any:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    base.requires_grad_(False)
    config = PeftConfig(
        r=cfg.rank,
        lora_alpha=cfg.alpha,
        lora_dropout=cfg.dropout,
        target_modules=[target.family.path(*key) for key in keys],
        task_type="CAUSAL_LM",
    )
    with own_randomness(training_seed(gen)), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a name that transformers deprecates
        return get_peft_model(base, config, adapter_name=ADAPTER)


def _module(model: Any, target: LM, key: Key) -> Any:
    return model.base_model.model.get_submodule(target.family.path(*key))


def _factors(module: Any) -> tuple[nn.Parameter, nn.Parameter, bool]:
    """peft's A and B, and whether they stand for the transposed change, as those of an embedding do."""
    if ADAPTER in module.lora_A:
        return module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight, False
    return module.lora_embedding_A[ADAPTER], module.lora_embedding_B[ADAPTER], True


@torch.no_grad()
def _set(module: Any, pair: LowRank) -> None:
    a, b, transposed = _factors(module)
    a.copy_(pair.b.T if transposed else pair.a)
    b.copy_(pair.a.T if transposed else pair.b)


def _get(module: Any) -> LowRank:
    a, b, transposed = _factors(module)
    pair = LowRank(b.T, a.T) if transposed else LowRank(a, b)
    return LowRank(*(t.detach().float().cpu().contiguous() for t in (pair.a, pair.b)))


def _digest(pair: LowRank) -> str:
    return hashlib.sha256(pair.a.cpu().numpy().tobytes() + pair.b.cpu().numpy().tobytes()).hexdigest()
