"""From an example to token ids, in one of three prompt styles.

Prompt and response are encoded together, so the ids are those that the model would see, and the response starts at the
first token that holds one of its characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from pkt.errors import ConfigError, DataError, UnsupportedModelError
from pkt.tasks.base import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STYLES = ("tulu", "chat_template", "plain")
DATE = "26 Jul 2024"
"""Of every day, for templates that write one: Llama 3's own where it knows no date."""
THOUGHTS = "<think>"
"""Opens a block of thoughts, which templates close at once where they are told to think nothing."""
TRAILING = frozenset('. ")],\n')
"""Characters that end an answer without carrying it."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of prompt and response."""

    ids: list[int]
    response_start: int
    """Index of the first token that holds a character of the response."""


def render(example: Example, style: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """The prompt's text up to where the response starts.

    Raises:
        ConfigError: unknown style, or `chat_template` for a tokenizer without one.
        UnsupportedModelError: the template cannot be filled in.
    """
    if style == "tulu":
        return f"<|user|>\n{example.prompt}\n<|assistant|>\n"
    if style == "plain":
        return example.plain.prompt if example.plain else f"{example.prompt}\n"
    if style != "chat_template":
        raise ConfigError(f"prompt style {style!r} is not known; expected one of {', '.join(STYLES)}")
    if not tokenizer.chat_template:
        raise ConfigError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template; use prompt style tulu or plain"
        )
    text = _templated(tokenizer, example.prompt, opened=True) + _header(tokenizer, str(tokenizer.chat_template))
    if text.rstrip().endswith(THOUGHTS):
        raise UnsupportedModelError(
            f"{tokenizer.name_or_path}: its chat template opens an answer with thoughts ({THOUGHTS}), in which no answer is looked for; use "
            f"prompt style tulu or plain"
        )
    return text


def _templated(tokenizer: PreTrainedTokenizerFast, prompt: str, *, opened: bool, response: str | None = None) -> str:
    """What the chat template makes of one question, without thoughts; templates that write today's date get the same one every day.

    Raises:
        UnsupportedModelError: the template cannot be filled in.
    """
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": prompt}]
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=opened,
            enable_thinking=False,
            date_string=DATE,
            strftime_now=lambda _format: DATE,
        )
    except (TemplateError, TypeError, ValueError) as e:
        raise UnsupportedModelError(
            f"{tokenizer.name_or_path}: its chat template takes no single question ({e}); use prompt style tulu or plain"
        ) from e
    return str(text)


@lru_cache(maxsize=8)
def _header(tokenizer: PreTrainedTokenizerFast, _template: str) -> str:
    """What opens an answer in a template that looks at no `add_generation_prompt`; nothing in others.

    It is what the template puts between a question and its answer: `<|im_start|>assistant`, say, or the space of Llama 2's
    `[/INST] Paris`, as in the protocol.
    """
    opened, closed = (_templated(tokenizer, "question", opened=opened) for opened in (True, False))
    if opened != closed:
        return ""
    before, found, _ = _templated(tokenizer, "question", opened=False, response="ANSWER").partition("ANSWER")
    between = before.removeprefix(closed)
    return between if found and before.startswith(closed) else ""


def reply(example: Example, style: str) -> str:
    """The response's text, which follows `render`."""
    return example.plain.response if style == "plain" and example.plain else example.response


def adds_special_tokens(style: str) -> bool:
    """Whether the tokenizer adds the beginning of sequence: a chat template's text already holds it, if the model wants one."""
    return style != "chat_template"


def encode(
    example: Example,
    style: str,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int | None = None,
    *,
    eos: bool = False,
) -> Encoded:
    """Token ids of prompt and response, encoded together.

    Args:
        max_length: longest allowed sequence.
        eos: append the end of sequence, as part of the response.

    Raises:
        DataError: the sequence is too long, or the response has no token.
        UnsupportedModelError: the tokenizer cannot say where a token's text is.
    """
    if not tokenizer.is_fast:
        raise UnsupportedModelError(
            f"{tokenizer.name_or_path}: its tokenizer is not a fast one; convert it to a tokenizer.json"
        )
    prompt = render(example, style, tokenizer)
    response = reply(example, style)
    found = tokenizer(prompt + response, add_special_tokens=adds_special_tokens(style), return_offsets_mapping=True)
    ids = list(found["input_ids"])
    in_response = [i for i, (start, end) in enumerate(found["offset_mapping"]) if end > len(prompt) and end > start]
    is_begun = eos and example.plain and example.response and not response  # the chat style's forced start alone
    if not in_response and not is_begun:
        raise DataError(
            f"example {example.id}: its response {response!r} has no token; give it a response or remove it"
        )
    if eos:
        if tokenizer.eos_token_id is None:
            raise UnsupportedModelError(
                f"{tokenizer.name_or_path}: its tokenizer names no end of sequence, which training needs"
            )
        ids.append(tokenizer.eos_token_id)
    if max_length is not None and len(ids) > max_length:
        raise DataError(
            f"example {example.id} has {len(ids)} tokens, but the context holds {max_length}; shorten or remove it"
        )
    return Encoded(ids, in_response[0] if in_response else len(found["input_ids"]))


def encode_prompt(
    example: Example, style: str, tokenizer: PreTrainedTokenizerFast, max_length: int | None = None, *, prefix: str = ""
) -> list[int]:
    """Token ids of the prompt and the forced start of a response; the response is not looked at.

    Raises:
        DataError: the prompt is longer than `max_length`.
    """
    prompt = render(example, style, tokenizer)
    ids = list(tokenizer(prompt + prefix, add_special_tokens=adds_special_tokens(style))["input_ids"])
    if max_length is not None and len(ids) > max_length:
        raise DataError(
            f"the prompt of example {example.id} has {len(ids)} tokens, but the context holds {max_length}; shorten or remove it"
        )
    return ids


def strip_trailing(encoded: Encoded, tokenizer: PreTrainedTokenizerFast, example: Example) -> list[int]:
    """The ids up to the answer's last token: trailing `. " space ) , ] newline` and special tokens are dropped.

    Raises:
        DataError: nothing of the response is left to score.
    """
    ids = list(encoded.ids)
    while len(ids) > encoded.response_start:
        text = tokenizer.decode([ids[-1]])
        if ids[-1] not in tokenizer.all_special_ids and not set(text) <= TRAILING:
            return ids
        ids.pop()
    raise DataError(
        f"example {example.id}: its response {example.response!r} has no scorable token once trailing punctuation is "
        f"dropped; remove it"
    )
