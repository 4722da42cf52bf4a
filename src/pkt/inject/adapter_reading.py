"""A PEFT adapter as a delta: what peft would make of its folder, or a refusal where peft would leave something out.

peft itself says which factors a config means, of which shapes, and how often they count: it builds the adapter on a target
without weights.
"""

from __future__ import annotations

import json
import logging
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pkt.errors import DataError, ShapeError, UnsupportedModelError
from pkt.files import HEADER
from pkt.inject.adapter import CONFIG, EMBEDDING, LINEAR, PREFIX, WEIGHTS, check_ties
from pkt.inject.changes import Change, LowRank
from pkt.inject.delta import Delta, Key
from pkt.models.lm import LM
from pkt.models.loading import first_line
from pkt.quiet import errors_only

log = logging.getLogger(__name__)

BASE = ".base_layer.weight"
CHECKPOINT = "model"
"""Name of the checkpoint's folder in every run folder, which tells no base from another."""
PLAIN_STARTS = (True, False, None, "gaussian")
"""Starts that leave the base as it is; after another, the adapter alone is wrong on it."""
READ = frozenset(
    "peft_type task_type base_model_name_or_path revision inference_mode peft_version auto_mapping r lora_alpha lora_dropout rank_pattern "
    "alpha_pattern target_modules exclude_modules layers_to_transform layers_pattern use_rslora init_lora_weights".split()
)
"""Fields of the config that peft reads here, or that do not change what the factors mean."""


def read_adapter(folder: Path, target: LM, *, any_base: bool = False) -> Delta:
    """The change that a LoRA adapter makes to `target`. Its file must hold what its config means, no more and no less.

    Args:
        any_base: do not compare the base that the adapter names with the target.

    Raises:
        DataError: no adapter, a damaged one, or one made for another base.
        UnsupportedModelError: an adapter of another kind, on tied embeddings, or with keys that are no part of the target.
        ShapeError: its matrices do not fit the target's.
    """
    config, tensors, made_for = _read(folder)
    if not any_base:
        check_base(str(folder), "adapter", config.get("base_model_name_or_path"), made_for, target)
    _check_kind(folder, config)
    keys = {
        f"{PREFIX}{name.removesuffix('.weight')}": key for name, key in target.family.keys(target.dims.layers).items()
    }
    check_ties([keys[path] for name in tensors if ".lora_" in name and (path := _path(name)) in keys], target)
    # peft stores embeddings too, on request and where it adapts them
    for name in [name for name in tensors if ".lora_" not in name and _path(name) in keys]:
        key = keys[_path(name)]
        held = (None, "embed") if key == (None, "unembed") and target.config.tie_word_embeddings else key
        if not torch.equal(tensors.pop(name).float(), target.part(*held)):
            raise UnsupportedModelError(
                f"{folder}: {name} is another {key[1]} than that of {target.name}; use the model that the adapter was made for, or merge "
                f"it with peft"
            )
    shapes, scaling = _meant(folder, target)
    _check_factors(folder, tensors, shapes, target)
    changes: dict[Key, Change] = {}
    for path, times in scaling.items():
        if path not in keys:
            raise UnsupportedModelError(
                f"{folder}: {path.removeprefix(PREFIX)} is no part of {target.name} that pkt knows; merge it with peft"
            )
        names = EMBEDDING if f"{path}.{EMBEDDING[0]}" in tensors else LINEAR
        a, b = (tensors[f"{path}.{name}"].float() for name in names)
        if names is EMBEDDING:  # of the transposed change
            a, b = b.T, a.T
        changes[keys[path]] = LowRank(a.contiguous(), times * b.contiguous())
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
            made_for = header.get("base")
            if not isinstance(config, dict) or not isinstance(made_for, str | None):
                raise ValueError("no JSON object of names")
            return config, {name: f.get_tensor(name) for name in f.keys()}, made_for
    except (SafetensorError, ValueError, AttributeError) as e:
        raise DataError(f"{folder}: damaged ({e}); copy the adapter again") from e


def is_another(named: str, base: str) -> bool:
    """Whether a base is called otherwise: by the last part of its name, or by its whole path where that part says nothing."""
    if Path(named).name == CHECKPOINT:
        return Path(named).resolve() != Path(base).resolve()
    return Path(named).name != Path(base).name


def check_base(name: str, kind: str, named: str | None, made_for: str | None, target: LM) -> None:
    """Raise DataError for a change that was made for another base. Weights are compared where it has their hash, else names.

    Args:
        kind: what the change is. named: the base's name in it. made_for: the hash of the base's weights in it.
    """
    if not made_for and not named:
        log.warning("%s does not say which base it was made for, so nothing tells that it is %s", name, target.name)
    elif made_for != target.digest if made_for else is_another(str(named), target.name):
        raise DataError(
            f"{name}: this {kind} was made for another base ({named}, weights {(made_for or 'not named')[:12]}), not for {target.name} "
            f"(weights {target.digest[:12]}); use its own base, or say --any-base (any_base=True) if they are the same"
        )


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError unless it is a plain LoRA."""
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    odd = sorted(k for k, v in config.items() if k not in READ and v != usual.get(k) and v not in (None, False, [], {}))
    if config.get("peft_type") != "LORA" or odd or config.get("init_lora_weights") not in PLAIN_STARTS:
        found = ", ".join(f"{k}={config.get(k)!r}" for k in ["peft_type", "init_lora_weights", *odd])
        raise UnsupportedModelError(
            f"{folder}: this adapter is no plain LoRA on its base ({found}); merge it with peft"
        )


def _meant(folder: Path, target: LM) -> tuple[dict[str, list[int]], dict[str, float]]:
    """The shape of every factor that the config means, and by path how often the product of its two factors counts.

    Raises:
        DataError: peft can make nothing of the config.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"), warnings.catch_warnings(), errors_only("peft"):
            warnings.simplefilter("ignore")
            model = get_peft_model(
                AutoModelForCausalLM.from_config(target.config), LoraConfig.from_pretrained(str(folder))
            )
        scaling = {
            name: float(m.scaling["default"]) for name, m in model.named_modules() if hasattr(m, "lora_embedding_A")
        }
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, re.error) as e:
        raise DataError(f"{folder / CONFIG}: peft can make nothing of it for {target.name}: {first_line(e)}") from e
    for path, times in scaling.items():
        if not math.isfinite(times):
            raise DataError(
                f"{folder / CONFIG}: {path.removeprefix(PREFIX)} would count {times} times; copy the adapter again"
            )
    shapes = {name.replace(".default", ""): list(p.shape) for name, p in model.named_parameters() if ".lora_" in name}
    return shapes, scaling


def _check_factors(folder: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, list[int]], target: LM) -> None:
    """Raise PktError unless the factors in the file are those that the config means, and numbers."""
    for name, tensor in tensors.items():
        if name not in shapes:
            raise UnsupportedModelError(
                f"{folder}: key {name} is no LoRA factor of a part of {target.name} that the config names, and peft would drop it without a word; "
                f"use the model that the adapter was made for"
            )
        if list(tensor.shape) != shapes[name]:
            raise ShapeError(
                f"{folder}: {name} is {list(tensor.shape)}, but by its config it is {shapes[name]}; copy the adapter again"
            )
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise DataError(f"{folder}: {name} holds no finite numbers (dtype {tensor.dtype}); copy the adapter again")
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of the {len(shapes)} factors that its config names are missing, the first is {missing[0]}; copy the adapter again"
        )


def _path(name: str) -> str:
    """The matrix that a key of the file is of."""
    return name.partition(".lora_")[0].removesuffix(BASE).removesuffix(".weight")
