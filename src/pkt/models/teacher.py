"""A source that gives logits for what another model reads.

B batch, T tokens, V vocabulary. A row of input is a prompt of the data set, named by its number, and a completion.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Teacher(nn.Module):
    """A model that only gives logits; its `config` is a copy."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, copy.deepcopy(model.config)

    @torch.no_grad()
    def forward(self, ids_BT: Tensor, mask_BT: Tensor, prompts_B: Sequence[int]) -> Tensor:
        """Logits (B, T, V) in the model's dtype.

        Args:
            ids_BT, mask_BT: padded on either side. prompts_B: number of each row's prompt.
        """
        return self.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits


class ElsewhereTeacher(Teacher):
    """A control: it reads every completion after another prompt of the data set.

    Args:
        prompts: token ids of all prompts. order: which of them stands in the place of each.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], order: Sequence[int]) -> None:
        super().__init__(model)
        self.prompts, self.order = prompts, order

    @torch.no_grad()
    def forward(self, ids_BT: Tensor, mask_BT: Tensor, prompts_B: Sequence[int]) -> Tensor:
        """Logits (B, T, V) at the positions from which the completion's tokens are predicted, and zeros elsewhere."""
        rows, places = [], []
        for ids_T, mask_T, prompt in zip(ids_BT, mask_BT, prompts_B, strict=True):
            place = mask_T.nonzero()[:, 0]
            completion = ids_T[place].tolist()[len(self.prompts[prompt]) :]
            rows.append([*self.prompts[self.order[prompt]], *completion])
            places.append(place[len(self.prompts[prompt]) - 1 :])
        width = max(map(len, rows))
        read_BT = ids_BT.new_tensor([row + [0] * (width - len(row)) for row in rows])
        mask = mask_BT.new_tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        logits = super().forward(read_BT, mask, prompts_B)
        found = logits.new_zeros((*ids_BT.shape, logits.shape[-1]))
        for i, (row, place) in enumerate(zip(rows, places, strict=True)):
            found[i, place.to(found.device)] = logits[i, len(row) - len(place) : len(row)]
        return found


@contextmanager
def teaching(
    loaded: AbstractContextManager[PreTrainedModel],
    prompts: Sequence[Sequence[int]],
    order: Sequence[int] | None = None,
) -> Iterator[Teacher]:
    """A teacher as long as its model is loaded; with `order`, one that reads other prompts."""
    with loaded as model:
        yield Teacher(model) if order is None else ElsewhereTeacher(model, prompts, order)
