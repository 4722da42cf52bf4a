"""A delta as a PEFT adapter on the original target, and back.

Lines and low-rank changes are of low rank, so they are written exactly; parts differ in rank, which peft keeps in
`rank_pattern`. An adapter's header says which weights it was made for.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pkt.errors import DataError, UnsupportedModelError
from pkt.files import HEADER, save_tensors
from pkt.inject.delta import Change, Delta, Key, Lines, LowRank
from pkt.models.families import BIAS
from pkt.models.lm import LM

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, BASE = "base_model.model.", ".base_layer.weight"
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
LINEAR = ("lora_A.weight", "lora_B.weight")
PLAIN_STARTS = (True, False, None, "gaussian")
"""Starts that leave the base as it is; after another, the adapter alone is wrong on it."""
READ = frozenset(
    "peft_type task_type base_model_name_or_path revision inference_mode peft_version auto_mapping r lora_alpha lora_dropout rank_pattern "
    "alpha_pattern target_modules exclude_modules layers_to_transform layers_pattern use_rslora init_lora_weights".split()
)
"""Fields of the config that are read here, or do not change what the factors mean."""


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


def export_adapter(delta: Delta, target: LM, out: Path) -> None:
    """Write an adapter folder that `PeftModel.from_pretrained(target, out)` loads. Nothing is left behind if it fails.

    Raises:
        ShapeError: the delta does not fit.
        UnsupportedModelError: a change is dense, or changes tied embeddings, which peft would merge wrongly.
        DataError: `out` holds other files.
    """
    if out.exists() and not (out / CONFIG).is_file() and any(out.iterdir()):
        raise DataError(f"{out} exists and holds other files; give a new folder")
    if target.config.tie_word_embeddings and {(None, "embed"), (None, "unembed")} & delta.changes.keys():
        raise UnsupportedModelError(
            f"{target.name} has tied embeddings, on which peft merges adapters wrongly; use a target made by `pkt untie`"
        )
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for key, pair in _pairs(delta, target).items():
        path = target.family.path(*key)
        ranks[path] = len(pair.a)
        tensors |= {f"{PREFIX}{path}.{suffix}": t for suffix, t in _stored(key, pair).items()}
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_tensors(temporary / WEIGHTS, tensors, {HEADER: json.dumps({"base": target.digest})})
        _config(target, ranks).save_pretrained(temporary)
        shutil.rmtree(out, ignore_errors=True)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    export_adapter(delta, target, out)
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


def read_adapter(folder: Path, target: LM, *, any_base: bool = False) -> Delta:
    """The change that a LoRA adapter makes to `target`. Every key of its file is used, or it is refused.

    Args:
        any_base: do not compare the base that the adapter names with the target.

    Raises:
        DataError: no adapter, a damaged one, or one made for another base.
        UnsupportedModelError: an adapter of another kind, or with keys that are no part of the target.
        ShapeError: its matrices do not fit the target's.
    """
    from peft import LoraConfig
    from peft.utils.other import get_pattern_key

    config, tensors, made_for = _read(folder)
    if not any_base:
        _check_base(folder, config, made_for, target)
    usual = LoraConfig().to_dict()
    odd = sorted(k for k, v in config.items() if k not in READ and v != usual.get(k) and v not in (None, False, [], {}))
    if config.get("peft_type") != "LORA" or odd or config.get("init_lora_weights") not in PLAIN_STARTS:
        found = ", ".join(f"{k}={config.get(k)!r}" for k in ["peft_type", "init_lora_weights", *odd])
        raise UnsupportedModelError(
            f"{folder}: this adapter is no plain LoRA on its base ({found}); merge it with peft"
        )
    keys = {
        name.removesuffix(".weight"): key
        for name, key in target.family.keys(target.dims.layers).items()
        if name.endswith(".weight") and "norm" not in key[1]
    }
    pairs: dict[Key, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.endswith(BASE) and torch.equal(
            tensor.float(), target.tensor(name[len(PREFIX) : -len(BASE)] + ".weight")
        ):
            continue  # peft stores embeddings too, where it adapts them
        path, _, suffix = name.removeprefix(PREFIX).partition(".lora_")
        factor = next((i for i in (0, 1) if f"lora_{suffix}" in (LINEAR[i], EMBEDDING[i])), None)
        if path not in keys or factor is None:
            raise UnsupportedModelError(
                f"{folder}: key {name} is no LoRA factor of a part of {target.name}, and peft would drop it without a word; "
                f"use the model that the adapter was made for"
            )
        is_transposed = f"lora_{suffix}" in EMBEDDING
        held = "a" if (factor == 0) != is_transposed else "b"
        pairs.setdefault(keys[path], {})[held] = (tensor.T if is_transposed else tensor).float().contiguous()
    changes: dict[Key, Change] = {}
    for key, pair in pairs.items():
        path = target.family.path(*key)
        if len(pair) < 2:
            raise DataError(f"{folder}: one of the two factors of {path} is missing; copy the adapter again")
        alphas = config.get("alpha_pattern") or {}
        alpha = alphas.get(get_pattern_key(list(alphas), path), config["lora_alpha"])
        rank = len(pair["a"])
        changes[key] = LowRank(pair["a"], alpha / (rank**0.5 if config.get("use_rslora") else rank) * pair["b"])
    delta = Delta(changes, {"adapter": str(folder)})
    dict(delta.tensors(target))  # checks the shapes
    return delta


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], str | None]:
    """Config, tensors, and the digest of the weights that it was made for, if the file says."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise DataError(f"{folder}: no {name} in it; expected an adapter saved by peft as safetensors")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS, "pt") as f:
            header = json.loads((f.metadata() or {}).get(HEADER, "{}"))
            return config, {name: f.get_tensor(name) for name in f.keys()}, header.get("base")
    except (SafetensorError, ValueError) as e:
        raise DataError(f"{folder}: damaged ({e}); copy the adapter again") from e


def _check_base(folder: Path, config: dict[str, Any], made_for: str | None, target: LM) -> None:
    """Weights are compared where the adapter names them by their hash, else the last part of the base's name."""
    named = config.get("base_model_name_or_path")
    differs = made_for != target.digest if made_for else named and Path(named).name != Path(target.name).name
    if differs:
        raise DataError(
            f"{folder}: this adapter was made for another base ({named}, weights {(made_for or 'not named')[:12]}), not for {target.name} "
            f"(weights {target.digest[:12]}); use its own base, or any_base=True if they are the same"
        )
