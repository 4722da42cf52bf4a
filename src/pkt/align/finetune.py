"""Fine-tuning on responses by transformers' Trainer, which brings accumulation, checkpoints and several processes.

B examples of a micro-batch, T tokens.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from pkt.config import Section
from pkt.errors import ConfigError, DataError, TrainingError
from pkt.files import read_record
from pkt.flops import Count, counted
from pkt.memo_costs import Cost, continued
from pkt.models.determinism import deterministic
from pkt.models.lm import LM
from pkt.processes import num_processes
from pkt.quiet import errors_only
from pkt.randomness import own_randomness
from pkt.tasks.losses import IGNORED, Labelled

if TYPE_CHECKING:
    from transformers import TrainingArguments

log = logging.getLogger(__name__)

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
"""transformers' names."""
STATE = "trainer_state.json"
"""The file that a checkpoint gets last."""


class FinetuneConfig(Section):
    """Options of every method that fine-tunes; the defaults are Seeking's published values."""

    epochs: int = Field(3, ge=1, description="passes over the training examples")
    batch_size: int = Field(64, ge=1, description="examples per optimizer step, over all processes")
    micro_batch: int = Field(
        16, ge=1, description="examples in memory at a time in each process; no more than its share of `batch_size`"
    )
    lr: float = Field(3e-4, gt=0, description="peak learning rate")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="of the learning rate after warm-up"
    )
    warmup: float = Field(
        0.03, ge=0, lt=1, description="share of the steps, rounded down, in which the learning rate rises from 0"
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="norm to which the gradient is clipped")
    loss_on_prompt: bool = Field(False, description="count the prompt's tokens in the loss too")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass to save memory")
    save_steps: int = Field(0, ge=0, description="steps between checkpoints to continue from; 0 keeps none")


def training_seed(gen: Generator) -> int:
    """The Trainer's seed, drawn from a method's generator."""
    return int(torch.randint(2**31, (), generator=gen))


def finetune(
    model: Any,
    lm: LM,
    examples: Sequence[Labelled],
    cfg: FinetuneConfig,
    gen: Generator,
    start: object = None,
    build: Callable[[int, Path], Any] | None = None,
) -> list[dict[str, float]]:
    """Train the trainable parameters of `model` in place, with the mean loss over labelled tokens.

    Checkpoints lie beside the handle's memo, in a folder named by all that decides the training; an interrupted one
    continues from its last checkpoint to the same bytes, and counts what it took until there. They are removed when it ends.

    Args:
        lm: the handle that `model` was made from. start: JSON value that tells apart models that start differently.
        build: seed and folder -> another trainer than the ordinary one.

    Returns: one record per optimizer step: step, loss, lr.

    Raises:
        TrainingError: the loss is NaN or infinite; says where.
        ConfigError: batch sizes that do not fit each other. DataError: there are no examples.
    """
    from pkt.align.trainer import COST, CheckedTrainer, Reports, Spends, quiet

    if not examples:
        raise DataError("there is no example to fine-tune on: the train split is empty")
    seed = training_seed(gen)
    digest = _digest(lm, examples, cfg, seed, start)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="pkt-") as temporary, own_randomness(seed), deterministic(), _quiet():
        out = lm.memo / f"training-{digest[:16]}" if lm.memo and cfg.save_steps else Path(temporary)
        fillers = filling(examples, cfg)
        trainer = (
            build(seed, out)
            if build
            else CheckedTrainer(
                model=model,
                args=arguments(lm, cfg, len(examples), seed, out),
                train_dataset=[*examples, *fillers],
                data_collator=lambda batch: collate(batch, lm.tokenizer.pad_token_id),
                callbacks=[Reports()],
            )
        )
        trainer.fillers = len(fillers)
        checkpoint = last_checkpoint(out)
        before = Cost.read(Path(checkpoint, COST)) if checkpoint else Cost()
        try:
            with counted() if cfg.save_steps else nullcontext(Count()) as count:
                trainer.add_callback(Spends(lambda: before + Cost(count.flop, time.perf_counter() - begun)))
                quiet(trainer).train(resume_from_checkpoint=checkpoint)
        except TrainingError:
            shutil.rmtree(out, ignore_errors=True)  # it would fail again from there, whichever process found it
            raise
    continued(before)
    if trainer.is_world_process_zero():
        shutil.rmtree(out, ignore_errors=True)
    log.info("fine-tuned in %d steps, %.1f s", trainer.state.global_step, time.perf_counter() - begun)
    return [
        {"step": record["step"], "loss": record["loss"], "lr": record["learning_rate"]}
        for record in trainer.state.log_history
        if "loss" in record
    ]


def check_training(target: LM, cfg: FinetuneConfig) -> None:
    """Raise ConfigError for what would stop a training only when it starts: batch sizes, offloaded weights, a GPU that is not the first."""
    _micro_batch(cfg)
    if target.device == "offload":
        raise ConfigError(
            "offloaded weights cannot be trained, and the method fine-tunes; use --device auto, balanced or sequential"
        )
    index = target.torch_device.partition(":")[2]
    if index not in ("", "0"):
        raise ConfigError(
            f"fine-tuning runs on the first GPU that it sees, not on {target.torch_device}; set CUDA_VISIBLE_DEVICES={index} and --device cuda"
        )


def _micro_batch(cfg: FinetuneConfig) -> int:
    """Examples in memory at a time, in each process."""
    processes = num_processes()
    micro = min(cfg.micro_batch, max(1, cfg.batch_size // processes))
    if cfg.batch_size % (micro * processes):
        raise ConfigError(
            f"method.batch_size is {cfg.batch_size}, which is no multiple of {micro} (method.micro_batch) times {processes} "
            f"(processes); change one of them"
        )
    return micro


def filling(examples: Sequence[Labelled], cfg: FinetuneConfig) -> list[Labelled]:
    """Rows that count nothing, as many as several processes need beside the examples to hold equally many at a time."""
    processes = num_processes()
    missing = -len(examples) % (_micro_batch(cfg) * processes) if processes > 1 else 0
    return [replace(e, labels=[IGNORED] * len(e.labels)) for e in itertools.islice(itertools.cycle(examples), missing)]


def arguments(lm: LM, cfg: FinetuneConfig, count: int, seed: int, out: Path, **more: Any) -> TrainingArguments:
    """The Trainer's arguments.

    Args:
        count: training examples. more: overrides, and `kind` for another class of arguments.
    """
    from transformers import TrainingArguments

    micro, processes = _micro_batch(cfg), num_processes()
    steps = cfg.epochs * math.ceil(count / cfg.batch_size)
    kind = more.pop("kind", TrainingArguments)
    found = kind(
        output_dir=str(out),
        num_train_epochs=cfg.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=cfg.batch_size // (micro * processes),
        learning_rate=cfg.lr,
        lr_scheduler_type=SCHEDULES[cfg.schedule],
        warmup_steps=int(cfg.warmup * steps),
        weight_decay=cfg.weight_decay,
        max_grad_norm=cfg.max_grad_norm,
        optim="adamw_torch",
        activation_checkpointing=cfg.gradient_checkpointing,
        save_strategy="steps" if cfg.save_steps else "no",
        save_steps=cfg.save_steps or 1,
        save_total_limit=1,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        label_names=["labels"],
        seed=seed,
        data_seed=seed,
        use_cpu=lm.torch_device == "cpu",
        ddp_backend="gloo" if lm.torch_device == "cpu" and processes > 1 else None,
        ddp_find_unused_parameters=False,
        **more,
    )
    found._n_gpu = min(found.n_gpu, 1)  # several GPUs in one process would be another batch size
    return found


def collate(batch: Sequence[Labelled], pad: int) -> dict[str, Any]:
    """A micro-batch padded on the right: input_ids, attention_mask and labels (B, T), and the examples' ids."""
    width = max(len(e.ids) for e in batch)

    def padded(rows: Sequence[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    return {
        "input_ids": padded([e.ids for e in batch], pad),
        "attention_mask": padded([[1] * len(e.ids) for e in batch], 0),
        "labels": padded([e.labels for e in batch], IGNORED),
        "example_ids": [e.id for e in batch],
    }


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint in a folder: its state is written last, but not at once."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{STATE}") if read_record(path)]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what peft and transformers say at checkpoints."""
    with warnings.catch_warnings(), errors_only("transformers.trainer_utils"):
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers`")
        yield


def _digest(lm: LM, examples: Sequence[Labelled], cfg: FinetuneConfig, seed: int, start: object) -> str:
    data = [[e.id, e.ids, e.labels] for e in examples]
    parts = [lm.identity, lm.dtype, cfg.model_dump(), seed, num_processes(), start, data]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
