"""Whether two models mean the same by the same token id."""

from __future__ import annotations

from pkt.errors import UnsupportedModelError
from pkt.models.lm import LM


def check_same_tokens(source: LM, target: LM, what: str) -> None:
    """Raise UnsupportedModelError if the token maps differ. `vocab_size` is not looked at: it is padded differently by size.

    Args:
        what: that needs equal token maps, for the message.
    """
    ours, theirs = (lm.tokenizer.get_vocab() for lm in (target, source))
    if ours == theirs:
        return
    differ = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    shown = ", ".join(f"{token!r} is {theirs.get(token)} and {ours.get(token)}" for token in differ[:3])
    raise UnsupportedModelError(
        f"{what} needs equal token maps, but those of {source.name} ({len(theirs)} tokens) and {target.name} ({len(ours)} tokens) "
        f"differ in {len(differ)}: {shown}; choose a pair with one tokenizer, or a method that needs none"
    )


def num_tokens(lm: LM) -> int:
    """How many of the first logits stand for a token; the rest pads the vocabulary to a round size."""
    return min(max(lm.tokenizer.get_vocab().values()) + 1, lm.dims.vocab)
