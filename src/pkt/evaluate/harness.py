"""Scoring a model on a task through lm-eval, with task definitions of our own, greedy and batched."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pkt.errors import DataError
from pkt.tasks.base import Example, Task
from pkt.tasks.prompts import adds_special_tokens, render

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

log = logging.getLogger(__name__)

NAME = "pkt"
VERSION = 1
"""Of the task definitions: raise it when a prompt or a grade changes."""


def draw(examples: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` examples of every tier, drawn by `seed`, in their order."""
    if limit is None:
        return list(examples)
    kept: set[str] = set()
    for tier in dict.fromkeys(e.tier for e in examples):
        ids = [e.id for e in examples if e.tier == tier]
        kept |= set(random.Random(f"{seed} {tier}").sample(ids, min(limit, len(ids))))
    return [e for e in examples if e.id in kept]


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    *,
    style: str,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> list[dict[str, Any]]:
    """Score `model`, hooks included, on a split of `task`.

    Args:
        limit: items per tier, drawn by `seed`; None means all.

    Returns: one dict per item: id, unit, tier, prompt (as sent), output, answer, score in [0, 1].

    Raises:
        DataError: a prompt does not fit into the context with what is to be generated.
    """
    examples = draw(task.split(split), limit, seed)
    form = task.format
    prompts = [render(e, style, tokenizer) + form.prefix for e in examples]
    context = model.config.max_position_embeddings
    _check_lengths(examples, prompts, tokenizer, context - (1 if form.ranks else form.max_new_tokens), style)
    with _quiet(), _untouched(model):
        samples = _run(model, tokenizer, task, examples, prompts, style, batch_size, context)
    return [
        {
            "id": e.id,
            "unit": e.unit,
            "tier": e.tier,
            "prompt": prompt,
            "output": _output(task, e, sample["filtered_resps"]),
            "answer": e.answer,
            "score": sample["score"],
        }
        for e, prompt, sample in zip(examples, prompts, samples, strict=True)
    ]


def _output(task: Task, example: Example, results: Sequence[Any]) -> str:
    """The choice of the highest log-likelihood, the first of equals; or the generated text."""
    if not task.format.ranks:
        return str(results[0])
    likelihoods = [likelihood for likelihood, _is_greedy in results]
    return example.choices[likelihoods.index(max(likelihoods))]


def _check_lengths(
    examples: Sequence[Example], prompts: Sequence[str], tokenizer: PreTrainedTokenizerFast, room: int, style: str
) -> None:
    lengths = [len(ids) for ids in tokenizer(list(prompts), add_special_tokens=adds_special_tokens(style))["input_ids"]]
    for example, length in zip(examples, lengths, strict=True):
        if length > room:
            raise DataError(
                f"example {example.id}: its prompt has {length} tokens, but the context leaves room for {room} beside the answer; "
                f"remove it or use a model with a longer context"
            )


def _run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    examples: Sequence[Example],
    prompts: Sequence[str],
    style: str,
    batch_size: int,
    context: int,
) -> list[dict[str, Any]]:
    """lm-eval's record of every item, in order."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate

    form = task.format
    rows = [{"item": i, "text": text, "choices": [f" {c}" for c in e.choices]} for i, (e, text) in enumerate(zip(examples, prompts, strict=True))]

    def grade(doc: dict[str, Any], results: Sequence[Any]) -> dict[str, float]:
        example = examples[doc["item"]]
        return {"score": form.grade(example, _output(task, example, results))}

    config: dict[str, Any] = {
        "task": NAME,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice" if form.ranks else "generate_until",
        "doc_to_text": lambda doc: doc["text"],
        "doc_to_target": lambda doc: 0 if form.ranks else "",
        "target_delimiter": "",
        "process_results": grade,
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": VERSION},
    }
    if form.ranks:
        config["doc_to_choice"] = lambda doc: doc["choices"]
    else:
        config["generation_kwargs"] = {
            "until": [*form.stop, tokenizer.eos_token],
            "do_sample": False,
            "max_gen_toks": form.max_new_tokens,
        }
    lm = _harness_model(model, tokenizer, style, batch_size, context, form.max_new_tokens)
    found = evaluate(lm, {NAME: ConfigurableTask(config=config)}, bootstrap_iters=0, verbosity="ERROR")
    return sorted(found["samples"][NAME], key=lambda sample: sample["doc_id"])


def _harness_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, style: str, batch_size: int, context: int, max_new_tokens: int
) -> HFLM:
    from lm_eval.models.huggingface import HFLM

    class Silent(HFLM):
        """Progress bars on a terminal only."""

        def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
            return super().generate_until(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())

        def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())

    lm = Silent(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        max_length=context,
        add_bos_token=adds_special_tokens(style),
    )
    lm._max_gen_toks = max_new_tokens
    return lm


@contextmanager
def _quiet() -> Iterator[None]:
    """No messages of the harness, and its progress bars on a terminal only."""
    logger = logging.getLogger("lm_eval")
    level, logger.level = logger.level, logging.ERROR
    try:
        with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.level = level


@contextmanager
def _untouched(model: PreTrainedModel) -> Iterator[None]:
    """Training mode, generation settings and random state are as before."""
    import numpy
    import torch

    training, generation = model.training, copy.deepcopy(model.generation_config)
    states = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        model.train(training)
        model.generation_config = generation
        random.setstate(states[0])
        numpy.random.set_state(states[1])
