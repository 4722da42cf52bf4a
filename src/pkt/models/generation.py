"""Greedy answers of a model, written once and kept beside its located scores."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkt.errors import DataError
from pkt.files import write_text
from pkt.memo_costs import found_made, making
from pkt.progress import track

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

    from pkt.models.lm import LM

log = logging.getLogger(__name__)

FORMAT = "answers 1"
"""Part of every key: raise it when a model's answers change for the same inputs."""
STOPS = "stops 2"
"""The same for answers that stop texts end."""


@dataclass(frozen=True)
class Decoding:
    """How answers are written. They are greedy, whatever the model's own generation settings say."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """Texts that end an answer and are no part of it."""
    special_tokens: bool = True
    """Whether the tokenizer adds the beginning of sequence to a text."""
    batch_size: int = 16
    """Texts in one pass; changes the speed, and the answers by rounding alone."""


def answers(
    lm: LM,
    texts: Sequence[str],
    how: Decoding,
    loaded: Callable[[], AbstractContextManager[PreTrainedModel]] | None = None,
    variant: Sequence[Any] = (),
) -> list[str]:
    """A model's greedy continuations of texts, from the handle's memo where they are whole.

    Args:
        texts: as the model is to read them.
        loaded: the model in the place of the handle's own; `variant` tells its answers apart.

    Returns: one text for each, up to the end of sequence, the first stop text, or `max_new_tokens`.

    Raises:
        DataError: a text leaves no room for its answer in the context.
    """
    parts = [FORMAT, *lm.identity, lm.dtype, list(texts), asdict(how), list(variant)]
    parts += [STOPS] if how.stop else []
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    path = lm.memo / f"answers-{key[:16]}.jsonl" if lm.memo else None
    kept = _read(path, key) if path else None
    if path and kept is not None:
        found_made(path)
        return kept
    prompts = [lm.tokenizer(text, add_special_tokens=how.special_tokens, verbose=False)["input_ids"] for text in texts]
    check_room(lm, prompts, how.max_new_tokens)
    with making(path) if path else nullcontext():
        with (loaded or lm.loaded)() as model, greedy(model, lm.tokenizer):
            found = _write(model, lm, prompts, how)
        if path:
            _keep(path, key, texts, found)
    return found


def check_room(lm: LM, prompts: Sequence[Sequence[int]], new: int) -> None:
    """Raise DataError where a prompt leaves no room for so many new tokens in a model's context."""
    longest = max(map(len, prompts), default=0)
    if longest + new > lm.dims.context:
        raise DataError(
            f"{lm.name}: a prompt has {longest} tokens and its answer up to {new} more, but the context holds {lm.dims.context}; lower "
            f"method.max_new_tokens or remove the prompt"
        )


@contextmanager
def greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Iterator[None]:
    """Inside, the model's generation settings are plain greedy ones with its own ends of sequence."""
    before = model.generation_config
    model.generation_config = plain_settings(model, tokenizer)
    try:
        yield
    finally:
        model.generation_config = before


def plain_settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """Greedy generation with the model's own ends of sequence, and nothing else that it came with: no penalties, no cuts."""
    from transformers import GenerationConfig

    own = model.generation_config
    return GenerationConfig(
        eos_token_id=tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id,
        bos_token_id=own.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _write(model: Any, lm: LM, prompts: Sequence[list[int]], how: Decoding) -> list[str]:
    """The answers, longest prompts first, so that prompts of one batch are of a length."""
    import torch

    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    found, cut = [""] * len(prompts), 0
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    batches = [order[i : i + how.batch_size] for i in range(0, len(order), how.batch_size)]
    for batch in track(batches, f"answers of {lm.name}"):
        width = len(prompts[batch[0]])
        ids_BT = torch.tensor([[lm.tokenizer.pad_token_id] * (width - len(prompts[i])) + prompts[i] for i in batch])
        mask_BT = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in batch])
        with torch.no_grad():
            out_BT = model.generate(
                ids_BT.to(lm.torch_device),
                attention_mask=mask_BT.to(lm.torch_device),
                max_new_tokens=how.max_new_tokens,
                do_sample=False,
                stopping_criteria=[stopped_by(lm.tokenizer, how.stop, width)] if how.stop else None,
            )
        for i, new in zip(batch, out_BT[:, width:].tolist(), strict=True):
            text = continuation(lm.tokenizer, prompts[i], new)
            found[i] = _before(text, how.stop)
            cut += found[i] == text and ends.isdisjoint(new)
    if cut:
        say = log.warning if lm.real is lm else log.info  # a control's answers seldom end
        say(
            "%s: %d of %d answers were cut after %d tokens, and are learnt as if they ended there: raise method.max_new_tokens",
            lm.name, cut, len(prompts), how.max_new_tokens,
        )  # fmt: skip
    return found


def stopped_by(tokenizer: PreTrainedTokenizerFast, stop: Sequence[str], width: int) -> Callable[..., Tensor]:
    """A stopping criterion (B,): one of the texts stands behind the first `width` tokens.

    The `stop_strings` of transformers also count a text that the prompt's last characters begin.
    """
    import torch

    def stopped(ids_BT: Tensor, scores: Any, **_: Any) -> Tensor:
        texts = tokenizer.batch_decode(ids_BT[:, width:])
        return torch.tensor([any(end in text for end in stop) for text in texts], device=ids_BT.device)

    return stopped


def continuation(tokenizer: PreTrainedTokenizerFast, prompt: list[int], new: list[int]) -> str:
    """The text of new tokens as it follows the prompt's: decoded alone, a first token can lose its space."""

    def decoded(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    before, whole = decoded(prompt), decoded([*prompt, *new])
    return whole.removeprefix(before) if whole.startswith(before) else decoded(new)


def _before(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of the stop texts."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


def _keep(path: Path, key: str, texts: Sequence[str], found: Sequence[str]) -> None:
    """A header and one line per text. The header has the hash of the lines."""
    lines = "".join(
        json.dumps({"prompt": text, "answer": answer}, ensure_ascii=False) + "\n"
        for text, answer in zip(texts, found, strict=True)
    )
    header = {"format": FORMAT, "key": key, "content": hashlib.sha256(lines.encode()).hexdigest()}
    write_text(path, json.dumps(header, sort_keys=True) + "\n" + lines)


def _read(path: Path, key: str) -> list[str] | None:
    """The answers in a file; nothing if there is none, or if it is not as it was written."""
    if not path.is_file():
        return None
    try:
        first, _, lines = path.read_bytes().decode().partition("\n")
        header = json.loads(first)
        if header["key"] == key and header["content"] == hashlib.sha256(lines.encode()).hexdigest():
            return [json.loads(line)["answer"] for line in lines.split("\n")[:-1]]
    except (ValueError, KeyError, TypeError):
        pass
    log.warning("%s is damaged; made anew", path)
    return None
