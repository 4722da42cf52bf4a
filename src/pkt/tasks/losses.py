"""Examples as token ids with the labels that count, and their losses under a model.

B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from pkt.models.lm import LM
from pkt.models.parts import logits
from pkt.tasks.base import Example
from pkt.tasks.prompts import encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100


@dataclass(frozen=True)
class Labelled:
    """An example as token ids with the labels that count, both (T,)."""

    id: str
    ids: list[int]
    labels: list[int]

    @property
    def prompt(self) -> list[int]:
        """The ids before the first that counts."""
        return self.ids[: next((i for i, label in enumerate(self.labels) if label != IGNORED), None)]


def encode_all(examples: Sequence[Example], style: str, lm: LM, *, loss_on_prompt: bool) -> list[Labelled]:
    """Token ids and labels: the response and the end of sequence count, on request the prompt too."""
    found = []
    for example in examples:
        e = encode(example, style, lm.tokenizer, lm.dims.context, eos=True)
        start = 1 if loss_on_prompt else e.response_start
        found.append(Labelled(example.id, e.ids, [IGNORED] * start + e.ids[start:]))
    return found


def example_losses(model: PreTrainedModel, lm: LM, batch: Sequence[Labelled]) -> Tensor:
    """Mean cross-entropy of each example, (B,) float32 in nats. Padded on the right; only labelled positions get logits."""
    width = max(len(e.ids) for e in batch)
    pad = lm.tokenizer.pad_token_id
    device = lm.torch_device
    ids_BT = torch.tensor([e.ids + [pad] * (width - len(e.ids)) for e in batch], device=device)
    mask_BT = torch.tensor([[1] * len(e.ids) + [0] * (width - len(e.ids)) for e in batch], device=device)
    labels_BT = torch.tensor([e.labels + [IGNORED] * (width - len(e.labels)) for e in batch])[:, 1:]
    chosen_BT = labels_BT != IGNORED
    hidden_BTD = model.get_submodule(lm.family.decoder)(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)[0]
    hidden = hidden_BTD[:, :-1][chosen_BT.to(hidden_BTD.device)]
    found = logits(model, lm, hidden)
    loss = functional.cross_entropy(found, labels_BT[chosen_BT].to(found.device), reduction="none")
    row = torch.arange(len(batch))[:, None].expand_as(labels_BT)[chosen_BT].to(loss.device)
    return torch.zeros(len(batch), device=loss.device).index_add(0, row, loss) / chosen_BT.sum(1).to(loss.device)


def mean_loss(model: PreTrainedModel, target: LM, examples: Sequence[Labelled], batch_size: int) -> float:
    """Mean over examples of their mean cross-entropy, in nats. The model runs as it is, hooks included."""
    with torch.no_grad():
        parts = [
            example_losses(model, target, examples[i : i + batch_size]).cpu()
            for i in range(0, len(examples), batch_size)
        ]
    return float(torch.cat(parts).mean())
