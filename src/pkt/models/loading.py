"""Reading a model's weights into memory, whole and where they are wanted, and its tokenizer."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkt.errors import ConfigError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from pkt.models.checkpoint import Checkpoint

log = logging.getLogger(__name__)

DEVICE_MAPS = ("balanced", "sequential", "offload")
"""Placements that accelerate makes."""


def load(folder: Path, name: str, dtype: str, where: dict[str, Any]) -> PreTrainedModel:
    """The model of a checkpoint, in evaluation mode.

    Args:
        name: for messages. where: what `placement` gave.

    Raises:
        UnsupportedModelError: a tensor is missing, too many, or of another shape, tied embeddings differ, or transformers cannot load it.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    start = time.perf_counter()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            trust_remote_code=False,
            **where,
        )
    except (ImportError, ValueError, KeyError, TypeError) as e:
        raise UnsupportedModelError(f"{name}: transformers cannot load it: {first_line(e)}") from e
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    wrong = {k: sorted(info[k]) for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(k)}
    if wrong:
        shown = "; ".join(
            f"{kind.replace('_', ' ')}: {', '.join(map(str, names[:3]))}" for kind, names in wrong.items()
        )
        raise UnsupportedModelError(f"{name}: its weight files do not fit its config ({shown})")
    _check_tied(model, name)
    log.info("loaded %s in %.1f s", name, time.perf_counter() - start)
    return model.eval()


def _check_tied(model: Any, name: str) -> None:
    """Raise UnsupportedModelError where embeddings are tied by the config, but the files hold an LM head of other values."""
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not model.config.get_text_config().tie_word_embeddings or head is None or head.weight.is_meta:
        return
    if head.weight is not embed.weight and not head.weight.equal(embed.weight.to(head.weight.device)):
        raise UnsupportedModelError(
            f"{name}: its config ties embedding and LM head, but its files hold two that differ, and transformers loads both; set "
            f"tie_word_embeddings to false in its config.json if that is meant, or take the head out of its files"
        )


def check_headers(config: Any, checkpoint: Checkpoint, unembed: str, name: str) -> None:
    """Compare the headers of weight files with the model that a config describes, built without weights.

    Args:
        unembed: the tensor that is not stored where embeddings are tied. name: for messages.

    Raises:
        UnsupportedModelError: it cannot be built, or a tensor is missing or has another shape.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as e:
        raise UnsupportedModelError(
            f"{name}: transformers cannot build the model of its config: {type(e).__name__}: {first_line(e)}; "
            f"check its config.json"
        ) from e
    have = checkpoint.headers
    for tensor, weight in model.state_dict().items():
        if tensor == unembed and config.tie_word_embeddings:
            continue
        found = have[tensor][0] if tensor in have else "none"
        if found != list(weight.shape):
            raise UnsupportedModelError(
                f"{name}: its weight files do not fit its config: {tensor} has shape {found}, expected "
                f"{list(weight.shape)}; copy the checkpoint again"
            )


def first_line(e: BaseException) -> str:
    """The first line of what an error of another library says."""
    return (str(e).splitlines() or [type(e).__name__])[0].rstrip(".: ")


def placement(device: str, torch_device: str, offload: str | None = None) -> dict[str, Any]:
    """Arguments of `from_pretrained` that say where weights go.

    Args:
        device: as a handle has it. torch_device: where a single device is meant. offload: folder for `offload`.
    """
    if device in ("balanced", "sequential"):
        return {"device_map": device}
    if device == "offload":
        return {"device_map": "auto", "offload_folder": offload, "offload_buffers": True}
    return {"device_map": {"": torch_device}}


def check_device(device: str) -> None:
    """Raise ConfigError for a device that torch cannot use here."""
    if device in ("auto", "cpu", *DEVICE_MAPS):
        return
    import torch

    try:
        usable = torch.empty(0, device=device).device.type != "meta"
    except (RuntimeError, AssertionError):  # unknown, not built in, or not there: torch's own words are many
        usable = False
    if not usable:
        count = torch.cuda.device_count()
        raise ConfigError(
            f"device {device!r} cannot be used here (GPUs that torch sees: {count}); "
            f"expected auto, cpu, cuda, cuda:N, {', '.join(DEVICE_MAPS)}"
        )


def read_tokenizer(folder: Path, name: str, vocab: int) -> PreTrainedTokenizerFast:
    """A model's tokenizer, padding on the left with a token that the model has.

    Args:
        vocab: tokens of the model. A padding token is often added without a row in the embedding.

    Raises:
        UnsupportedModelError: there is none, it ends every text, or it writes tokens that the model does not have.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, padding_side="left", model_max_length=sys.maxsize, trust_remote_code=False
        )  # lengths are checked against the config, by example
        if not tokenizer.tokenize("a"):  # transformers makes an empty one where files are missing
            raise ValueError("it knows no text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UnsupportedModelError(
            f"{name}: no tokenizer could be read from {folder}: {first_line(e)}; copy its tokenizer files"
        ) from e
    ids, end = tokenizer("a")["input_ids"], tokenizer.eos_token_id
    if (largest := max([*ids, *([] if end is None else [end])])) >= vocab:
        raise UnsupportedModelError(
            f"{name}: its tokenizer writes {tokenizer.convert_ids_to_tokens(largest)!r} as token {largest}, but the model has {vocab} tokens; "
            f"copy the tokenizer that it was trained with"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= vocab:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.convert_ids_to_tokens(0)
    if end is not None and ids[-1:] == [end]:
        raise UnsupportedModelError(
            f"{name}: its tokenizer ends every text with {tokenizer.eos_token}, after which no answer follows; set add_eos_token "
            f"to false in its tokenizer_config.json, or take it out of post_processor in its tokenizer.json"
        )
    return tokenizer
