"""Perplexity of a model on a text: a guard against harm."""

from __future__ import annotations

import logging
import math
import sys
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pkt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

log = logging.getLogger(__name__)

WINDOW = 512
"""Tokens in one pass."""
MOST = math.log(sys.float_info.max)
"""The loss, in nats, whose perplexity is the largest number."""


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    *,
    window: int = WINDOW,
    stride: int = WINDOW // 2,
) -> float | None:
    """exp of the mean negative log-likelihood of a token, in float32: see `window_losses`.

    Returns: None, with a warning, where the loss is NaN or its exp is beyond all numbers.
    """
    found = window_losses(model, tokenizer, text, window=window, stride=stride)
    loss = sum(loss for _, loss in found) / sum(count for count, _ in found)
    if loss < MOST:
        return math.exp(loss)
    log.warning(
        "perplexity: a token's mean loss is %.1f nats, expected a number below %.1f; it is given as null", loss, MOST
    )
    return None


@torch.no_grad()
def window_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    *,
    window: int = WINDOW,
    stride: int = WINDOW // 2,
) -> list[tuple[int, float]]:
    """Number of tokens scored in each pass, and the sum of their negative log-likelihoods in nats, in float32.

    Every token but the first is predicted once, and after the first window with at least `window - stride` tokens before it.

    Args:
        window: tokens in one pass, at most the context; a shorter context shortens window and stride alike.
        stride: tokens scored in a pass after the first, below `window`.

    Raises:
        ConfigError: stride or window out of bounds.
        DataError: the text has fewer than two tokens.
    """
    if not 1 <= stride < window:
        raise ConfigError(f"perplexity: stride {stride} and window {window}; expected 1 <= stride < window")
    context = model.config.get_text_config().max_position_embeddings
    if window > context:
        window, stride = context, max(1, stride * context // window)
    ids = tokenizer(text, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise DataError(f"perplexity: the text has {len(ids)} tokens, at least 2 are needed; give a longer text")
    device = model.get_input_embeddings().weight.device
    found, done = [], 1
    while done < len(ids):
        end = min(max(done + stride, window), len(ids))
        start = max(0, end - window)
        chunk = torch.tensor([ids[start:end]], device=device)
        logits = model(chunk, use_cache=False).logits[0, done - 1 - start : -1].float()
        loss = functional.cross_entropy(logits, chunk[0, done - start :].to(logits.device), reduction="sum")
        found.append((end - done, float(loss)))
        done = end
    return found
