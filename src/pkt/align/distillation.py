"""On-policy distillation by trl's GKDTrainer (arXiv:2306.13649). Imported when training starts, for it takes seconds.

One step:

1. with probability `lmbda` the model that is trained writes its own completions of the batch's prompts, by sampling after
   the forced start of the response; else the batch keeps the completions of the data set;
2. both models read the same tokens, and the generalised Jensen-Shannon divergence of their next-token distributions is
   summed over the responses' tokens and divided by the number of those tokens.

trl draws once for every micro-batch and divides by the number of tokens of the data set's responses, whatever was
scored; here completions are written before the tokens of a step are counted.

B batch, T tokens, K tokens of responses, V vocabulary.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from pkt.align.finetune import FinetuneConfig, arguments, collate, filling
from pkt.align.trainer import Checked, Reports, Shared
from pkt.errors import TrainingError
from pkt.models.generation import plain_settings
from pkt.models.lm import LM
from pkt.models.teacher import Teacher
from pkt.quiet import errors_only
from pkt.tasks.losses import IGNORED, Labelled


@contextmanager
def _experimental(name: str = "TRL_EXPERIMENTAL_SILENCE") -> Iterator[None]:
    """trl warns on import that this part of it is experimental, unless a variable is set."""
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


with _experimental():
    from trl.experimental.gkd import GKDConfig, GKDTrainer


class _Divergence(GKDTrainer):
    """GKDTrainer with completions written before they are counted, on the tokens that both vocabularies hold."""

    prompts: Sequence[list[int]]
    given: Sequence[list[int]]
    num_tokens: int

    def _send_telemetry(self) -> None:
        """Nothing is sent."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """A checkpoint to continue from needs none; writing one looks up the hub."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """The micro-batches of one step, and the number of their tokens that are scored."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and random.random() < self.lmbda:
            batches = [self._written(batch, device) for batch in batches]
        return batches, self._get_num_items_in_batch(batches, device)

    def _written(self, batch: dict[str, Any], device: Any) -> dict[str, Any]:
        """A micro-batch with completions by the model that is trained."""
        rows = [self.given[i] for i in batch["prompts"]]
        width, pad = max(map(len, rows)), self.processing_class.pad_token_id
        given = {
            "prompts": torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device),
            "prompt_attention_mask": torch.tensor(
                [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device
            ),
        }
        self.model.eval()  # recomputed activations would forbid the cache; the step sets training mode again
        with torch.no_grad(), errors_only("transformers.generation.utils"):
            writer = SimpleNamespace(generate=partial(self.model.generate, logits_processor=[self._checked]))
            ids_BT, mask_BT, labels_BT = self.generate_on_policy_outputs(writer, given, self.generation_config)
        for i, (row, number) in enumerate(zip(rows, batch["prompts"], strict=True)):
            forced = slice(width - len(row) + len(self.prompts[number]), width)
            labels_BT[i, forced] = ids_BT[i, forced]
        labels_BT[(batch["labels"] == IGNORED).all(dim=1)] = IGNORED  # rows that count nothing
        return batch | {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}

    def _checked(self, ids_BT: Tensor, logits_BV: Tensor) -> Tensor:
        """The logits as they are: of NaN, no token can be drawn."""
        if not logits_BV.amax(-1).isfinite().all():
            raise TrainingError(
                f"step {self.state.global_step + 1}: the logits of the model that is trained are not finite; lower the learning rate"
            )
        return logits_BV

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The step of the trainer above GKDTrainer, which would write completions here."""
        return super(GKDTrainer, self).training_step(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The divergence on labelled positions, in float32, over `num_items_in_batch`."""
        ids_BT, mask_BT = inputs["input_ids"], inputs["attention_mask"]
        chosen_BT = inputs["labels"][:, 1:] != IGNORED
        outputs = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
        self.teacher_model.eval()
        of_source = self.teacher_model(ids_BT, mask_BT, inputs["prompts"])
        target_KV, source_KV = (
            logits[:, :-1][chosen_BT.to(logits.device)][:, : self.num_tokens].float()
            for logits in (outputs.logits, of_source)
        )
        loss = self.generalized_jsd_loss(
            target_KV, source_KV.to(target_KV.device), beta=self.beta, num_items_in_batch=num_items_in_batch
        )
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # tokens are counted over all of them, gradients are averaged
        return (loss, outputs) if return_outputs else loss


class Distillation(Checked, Shared, _Divergence):
    """That, stopping at a loss that is not finite, the same on several processes."""


def distillation(
    model: Any,
    teacher: Teacher,
    target: LM,
    examples: Sequence[Labelled],
    given: Sequence[list[int]],
    cfg: FinetuneConfig,
    seed: int,
    out: Path,
    *,
    num_tokens: int,
    lmbda: float,
    beta: float,
    temperature: float,
    max_new_tokens: int,
) -> Distillation:
    """The trainer of one distillation.

    Args:
        model: a private model of `target`, trained in place. teacher: the source, knowing the prompts of `examples`.
        examples: prompt and response; what counts is the response.
        given: of each example, the ids after which the target writes: prompt and forced start of the response.
        num_tokens: first entries of the logits that are compared.
        temperature: of the sampling alone; the divergence is that of the distributions as they are.
    """
    pad = target.tokenizer.pad_token_id
    read = [*examples, *filling(examples, cfg)]

    def collator(rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        numbers = [row["example"] for row in rows]
        return collate([read[i] for i in numbers], pad) | {"prompts": [i % len(examples) for i in numbers]}

    model.generation_config = plain_settings(model, target.tokenizer)  # what trl leaves open is filled in from there
    teacher.config.get_text_config().vocab_size = model.config.get_text_config().vocab_size  # compared by trl; we crop
    with errors_only("trl"):  # it recommends another trainer for some options
        made = Distillation(
            model=model,
            teacher_model=teacher,
            args=arguments(
                target, cfg, len(examples), seed, out, kind=GKDConfig, bf16=False, disable_dropout=True,
                lmbda=lmbda, beta=beta, temperature=temperature, max_new_tokens=max_new_tokens,
            ),
            train_dataset=Dataset.from_dict({"example": list(range(len(read)))}),
            data_collator=collator,
            processing_class=copy.deepcopy(target.tokenizer),
            callbacks=[Reports()],
        )  # fmt: skip
    padding = list(range(num_tokens, model.config.get_text_config().vocab_size))
    made.generation_config.suppress_tokens = padding or None  # the source may have no row for them
    made.prompts, made.given, made.num_tokens = [e.prompt for e in examples], given, num_tokens
    return made
