"""The source's own answers to prompts, in the place of labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pkt.errors import ConfigError, DataError
from pkt.models.generation import Decoding
from pkt.models.lm import LM
from pkt.tasks.base import Example, Task
from pkt.tasks.prompts import adds_special_tokens, render

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answered:
    """Examples whose response is the source's answer."""

    examples: list[Example]
    empty: int
    """Answers without text, whose examples were dropped."""


def check_length(lm: LM, max_new_tokens: int | None) -> None:
    """Raise ConfigError for answers that would not fit into a model's context, whatever the prompt."""
    if max_new_tokens is not None and max_new_tokens >= lm.dims.context:
        raise ConfigError(
            f"method.max_new_tokens is {max_new_tokens}, but the context of {lm.name} holds {lm.dims.context} tokens, prompt and answer; lower it"
        )


def answered(
    source: LM, task: Task, examples: Sequence[Example], style: str, *, max_new_tokens: int | None, batch_size: int
) -> Answered:
    """Let the source answer after the format's forced prefix, in its own tokenizer and prompt template.

    No label is looked at: of an example only the prompt counts.

    Args:
        max_new_tokens: longest answer; None means the format's. batch_size: prompts in one pass.

    Raises:
        DataError: every answer is empty.
    """
    form = task.format
    texts = [render(example, style, source.tokenizer) + form.opening(example, style) for example in examples]
    how = Decoding(max_new_tokens or form.max_new_tokens, form.stops(style), adds_special_tokens(style), batch_size)
    found = source.generate(texts, how)
    kept = [form.answered(e, text, style) for e, text in zip(examples, found, strict=True) if text.strip()]
    empty = len(examples) - len(kept)
    if empty:
        log.warning("%s: %d of %d answers are empty; their prompts are dropped", source.name, empty, len(examples))
    if examples and not kept:
        raise DataError(
            f"{source.name}: all {empty} answers to {task.name} are empty; check the prompt style, or choose another source"
        )
    return Answered(kept, empty)
