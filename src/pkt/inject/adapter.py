"""A delta as a PEFT adapter on the original target.

Lines and low-rank changes are of low rank, so they are written exactly; parts differ in rank, which peft keeps in
`rank_pattern`. An adapter's header says which weights it was made for.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pkt.errors import UnsupportedModelError
from pkt.files import HEADER, replacing_folder, save_tensors
from pkt.inject.changes import Change, Lines, LowRank
from pkt.inject.delta import Delta, Key
from pkt.inject.export import check_free
from pkt.models.checkpoint import ADAPTER
from pkt.models.families import BIAS
from pkt.models.lm import LM

CONFIG, WEIGHTS = ADAPTER, "adapter_model.safetensors"
PREFIX = "base_model.model."
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
LINEAR = ("lora_A.weight", "lora_B.weight")


def is_low_rank(delta: Delta) -> bool:
    """Whether every change is one of two factors."""
    return all(isinstance(change, LowRank) for change in delta.changes.values())


def factors(change: Change, shape: list[int]) -> LowRank:
    """A change as two factors, exactly.

    Args:
        shape: of the weight that it changes.

    Raises:
        UnsupportedModelError: the change is dense.
    """
    if isinstance(change, LowRank):
        return change
    if not isinstance(change, Lines):
        raise UnsupportedModelError(
            "this delta changes every entry of a matrix, which no adapter holds; export a checkpoint instead"
        )
    chosen = torch.zeros(shape[change.axis], len(change.index))
    chosen[change.index, torch.arange(len(change.index))] = 1
    return LowRank(change.values, chosen) if change.axis == 0 else LowRank(chosen.T.contiguous(), change.values.T.contiguous())  # fmt: skip


def export_adapter(delta: Delta, target: LM, out: Path, *, overwrite: bool = False) -> None:
    """Write an adapter folder that `PeftModel.from_pretrained(target, out)` loads. Nothing is left behind if it fails.

    Args:
        overwrite: replace an adapter that is in `out`.

    Raises:
        ShapeError: the delta does not fit.
        UnsupportedModelError: a change is dense, or changes tied embeddings, which peft would merge wrongly.
        DataError: `out` holds files.
    """
    check_free(out, target, CONFIG, overwrite=overwrite)
    check_ties(delta.changes, target)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for key, pair in _pairs(delta, target).items():
        path = target.family.path(*key)
        ranks[path] = len(pair.a)
        tensors |= {f"{PREFIX}{path}.{suffix}": t for suffix, t in _stored(key, pair).items()}
    with replacing_folder(out) as temporary:
        save_tensors(temporary / WEIGHTS, tensors, {HEADER: json.dumps({"base": target.digest})})
        _config(target, ranks).save_pretrained(temporary)


def check_ties(keys: Iterable[Key], target: LM) -> None:
    """Raise UnsupportedModelError for an adapter on embeddings that are tied."""
    if target.config.tie_word_embeddings and not {(None, "embed"), (None, "unembed")}.isdisjoint(keys):
        raise UnsupportedModelError(
            f"{target.name} has tied embeddings, on which peft merges adapters wrongly; use a target made by `pkt untie`"
        )


def _pairs(delta: Delta, target: LM) -> dict[Key, LowRank]:
    """The change of every matrix as two factors. Parts that share a matrix lie one below the other in B, each with ranks of its own.

    Raises:
        ShapeError: the delta does not fit. UnsupportedModelError: a change is dense, or of a bias.
    """
    found: dict[Key, list[LowRank]] = {}
    for (layer, part), (name, _) in zip(delta.changes, delta.tensors(target), strict=True):
        if part.endswith(BIAS):
            raise UnsupportedModelError(
                f"this delta changes {name}, which a LoRA adapter cannot hold; export a checkpoint instead"
            )
        pair = factors(delta.changes[layer, part], target.shape(layer, part))
        rows, height = target.family.rows(part, target.dims), target.checkpoint.shape(name)[0]
        b = pair.b
        if rows != slice(None):
            b = torch.zeros(height, b.shape[1])
            b[rows] = pair.b
        found.setdefault((layer, target.family.whole(part)), []).append(LowRank(pair.a, b))
    return {
        key: pairs[0]
        if len(pairs) == 1
        else LowRank(torch.cat([p.a for p in pairs]), torch.cat([p.b for p in pairs], dim=1))
        for key, pairs in found.items()
    }


def offer_adapter(delta: Delta, target: LM, out: Path, wanted: str) -> Path | None:
    """Write the adapter that a recipe's `export.adapter` wants, or remove an earlier one; the folder, if there is one."""
    if wanted == "never" or (wanted == "auto" and not is_low_rank(delta)):
        shutil.rmtree(out, ignore_errors=True)
        return None
    export_adapter(delta, target, out, overwrite=True)
    return out


def _stored(key: Key, pair: LowRank) -> dict[str, Tensor]:
    """Tensors as peft names them; those of an embedding stand for the transposed change."""
    if key == (None, "embed"):
        return dict(zip(EMBEDDING, (pair.b.T.contiguous(), pair.a.T.contiguous()), strict=True))
    return dict(zip(LINEAR, (pair.a, pair.b), strict=True))


def _config(target: LM, ranks: dict[str, int]) -> Any:
    """peft's description. alpha equals the rank everywhere: the factors hold the whole change."""
    from peft import LoraConfig

    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {path: rank for path, rank in ranks.items() if rank != usual}
    return LoraConfig(
        r=usual,
        lora_alpha=usual,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=sorted(ranks),
        task_type="CAUSAL_LM",
        base_model_name_or_path=target.name,
        revision=target.revision,
        inference_mode=True,
    )
