"""Scoring a model on a task through lm-eval, with task definitions of our own, greedy and batched."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pkt.errors import DataError, UnsupportedModelError
from pkt.quiet import errors_only
from pkt.randomness import own_randomness
from pkt.tasks.base import Example, Task
from pkt.tasks.prompts import adds_special_tokens, render

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

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

    Greedy, whatever the model's generation settings say. Choices are ranked by the sum of their tokens' log-probabilities,
    in float32. Model, tokenizer and random state are left as they were.

    Args:
        limit: items per tier (of the whole split where there are no tiers), drawn by `seed`; None means all.
        batch_size: items in one pass; changes the speed, and the result by rounding alone.

    Returns: one dict per item: task, id, unit, tier, prompt (as sent), output, answer, score in [0, 1].

    Raises:
        DataError: the split is empty, an item cannot be graded, or its prompt leaves no room for the answer.
        UnsupportedModelError: a likelihood is NaN.
    """
    examples = draw(task.split(split), limit, seed)
    if not examples:
        raise DataError(f"{task.name}: split {split} is empty; there is nothing to score")
    for example in examples:
        task.format.grade(example, "")  # what cannot be graded stops here, before hours of generation
    prompts = [render(e, style, tokenizer) + task.format.prefix for e in examples]
    context = model.config.get_text_config().max_position_embeddings
    _check_lengths(task, examples, prompts, tokenizer, context, style)
    with errors_only("lm_eval"), _untouched(model, tokenizer):
        samples = _run(model, tokenizer, task, examples, prompts, style, batch_size, context)
    return [
        {
            "task": task.name,
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
    if any(map(math.isnan, likelihoods)):
        raise UnsupportedModelError(
            f"example {example.id}: the model gives NaN instead of likelihoods; check its weights, or load it in float32"
        )
    return example.choices[likelihoods.index(max(likelihoods))]


def _check_lengths(
    task: Task,
    examples: Sequence[Example],
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    context: int,
    style: str,
) -> None:
    """lm-eval would cut a prompt that is too long from the left and go on."""
    answers: dict[tuple[str, ...], int] = {(): task.format.max_new_tokens}
    for choices in {e.choices for e in examples if task.format.ranks}:
        ids = tokenizer([f" {c}" for c in choices], add_special_tokens=False)["input_ids"]
        answers[choices] = max(map(len, ids)) - 1  # the last token is predicted, not read
    prompt_ids = tokenizer(list(prompts), add_special_tokens=adds_special_tokens(style), verbose=False)["input_ids"]
    for example, length in zip(examples, map(len, prompt_ids), strict=True):
        answer = answers[example.choices if task.format.ranks else ()]
        if length + answer > context:
            raise DataError(
                f"example {example.id}: its prompt has {length} tokens and its answer up to {answer} more, but the "
                f"context holds {context}; remove it or use a model with a longer context"
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

    class ExactPrompts(ConfigurableTask):
        """Sends the prompts as they are, and draws no progress bar while it collects them."""

        def build_all_requests(self, **_: Any) -> None:
            made = [self.construct_requests(doc, doc["text"], metadata=(NAME, i, 1)) for i, doc in self.doc_iterator()]
            self._instances = [r for requests in made for r in (requests if form.ranks else [requests])]

    form = task.format
    rows = [
        {"item": i, "text": text, "choices": [f" {c}" for c in e.choices]}
        for i, (e, text) in enumerate(zip(examples, prompts, strict=True))
    ]

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
        config["generation_kwargs"] = {"until": [*form.stop], "do_sample": False, "max_gen_toks": form.max_new_tokens}
    lm = _harness_model(model, tokenizer, style, batch_size, context)
    found = evaluate(lm, {NAME: ExactPrompts(config=config)}, bootstrap_iters=0)
    return sorted(found["samples"][NAME], key=lambda sample: sample["doc_id"])


def _harness_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    style: str,
    batch_size: int,
    context: int,
) -> HFLM:
    from lm_eval.models.huggingface import HFLM

    class Silent(HFLM):
        """Progress bars on a terminal only."""

        def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
            return super().generate_until(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())

        def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())

    return Silent(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        max_length=context,
        add_bos_token=adds_special_tokens(style),
        softmax_dtype="float32",  # in bfloat16 different likelihoods become equal
    )


@contextmanager
def _untouched(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Iterator[None]:
    """Plain greedy settings inside; outside, modes, settings, tokenizer and random state as before."""
    from transformers import GenerationConfig

    modes = {module: module.training for module in model.modules()}
    settings = {module: module.generation_config for module in model.modules() if "generation_config" in vars(module)}
    padding = tokenizer.pad_token, tokenizer.padding_side
    try:
        for module, old in settings.items():  # a repetition penalty there would change greedy decoding
            ends = old.eos_token_id if old.eos_token_id is not None else tokenizer.eos_token_id
            module.generation_config = GenerationConfig(eos_token_id=ends, bos_token_id=old.bos_token_id)
        with own_randomness():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, old in settings.items():
            module.generation_config = old
        tokenizer.pad_token, tokenizer.padding_side = padding
