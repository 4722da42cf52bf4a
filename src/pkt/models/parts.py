"""What a loaded stock model has in a part of its family: weights as they act, and logits.

Families differ here: parts that share a matrix, norms that add one to their weight, logits with a soft cap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pkt.models.hooks import weight_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pkt.models.lm import LM


def part_weight(model: PreTrainedModel, lm: LM, layer: int | None, part: str) -> Tensor:
    """A part's weight on the handle's device, in the model's dtype: its own rows where it shares a matrix."""
    return weight_of(model, lm.family.path(layer, part), lm.torch_device)[lm.family.rows(part, lm.dims)]


def gain(model: PreTrainedModel, lm: LM, layer: int | None, norm: str) -> Tensor:
    """What a norm multiplies its scaled input with, (D,) float32: its weight, plus one in some families."""
    return part_weight(model, lm, layer, norm).float() + lm.family.norm_offset


def logits(model: PreTrainedModel, lm: LM, hidden: Tensor) -> Tensor:
    """The model's own logits for what its decoder gives, float32: the unembedding, then the soft cap in the model's dtype."""
    found = model.get_submodule(lm.family.unembed)(hidden)
    if lm.logit_cap is not None:
        found = torch.tanh(found / lm.logit_cap) * lm.logit_cap
    return found.float()
