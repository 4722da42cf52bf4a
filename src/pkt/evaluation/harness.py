"""Scoring a model on a task through lm-eval, with task definitions of our own, greedy and batched."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pkt.errors import ConfigError, DataError, UnsupportedModelError
from pkt.evaluation.asking import Asked, Asking
from pkt.evaluation.choices import ranked
from pkt.evaluation.execution import NO_LEAVE, Execution
from pkt.evaluation.grading import check_gradable, grades
from pkt.evaluation.sampling import Sampler
from pkt.models.generation import continuation
from pkt.quiet import errors_only
from pkt.randomness import own_randomness
from pkt.tasks.base import Example, Task
from pkt.tasks.prompts import adds_special_tokens
from pkt.tasks.protocol import Protocol, check

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

NAME = "pkt"
VERSION = 1
"""Of the harness: raise it when scores change for the same prompts and outputs. A benchmark's own version is its format's."""


def draw(examples: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` examples of every tier, drawn by `seed`, in their order.

    Raises:
        ConfigError: the limit is no number above 0.
    """
    if limit is None:
        return list(examples)
    if not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"limit is {limit!r}, expected a number of items above 0, or None for all")
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
    protocol: Protocol | None = None,
    execution: Execution = NO_LEAVE,
) -> list[dict[str, Any]]:
    """Score `model`, hooks included, on a split of `task`.

    The protocol decides how, whatever the model's generation settings say. Choices are ranked by the sum of their tokens'
    log-probabilities, in float32. Model, tokenizer and random state are left as they were.

    Args:
        limit: items per tier (of the whole split where there are no tiers), drawn by `seed`; None means all.
        seed: of the drawn items and of sampled answers.
        batch_size: items in one pass; changes the speed, and the result by rounding alone.
        protocol: worked examples, samples and how they are drawn; None means the format's.
        execution: leave to run generated code, where a task is graded so.

    Returns: one dict per item: task, version, id, unit, tier, prompt (as sent), output, answer, score in [0, 1]; with several
        samples `outputs` and `correct`, their number of right ones, in the place of output; with worked examples `shots`, their
        number; `too_long` where the prompt was.

    Raises:
        ConfigError: the task cannot be asked so.
        DataError: the split is empty, an item cannot be graded, or its prompt leaves no room for the answer.
        UnsupportedModelError: a likelihood is NaN, or the logits of an answer are NaN or infinite.
    """
    protocol = protocol or task.format.protocol
    check(task.format, task.name, protocol)
    examples = draw(task.split(split), limit, seed)
    if not examples:
        raise DataError(f"{task.name}: split {split} is empty; there is nothing to score")
    check_gradable(task, examples, execution)  # what cannot be graded stops here, before hours of generation
    context = model.config.get_text_config().max_position_embeddings
    asked = Asking(task, style, tokenizer, context, protocol).all(examples)
    sent = [item for item in asked if item.fits]
    with errors_only("lm_eval"), _untouched(model, tokenizer):
        lm = _harness_model(model, tokenizer, style, batch_size, context, Sampler(seed))
        found = iter(_run(lm, task, sent, style, protocol) if sent else [])
    outputs = [next(found) if item.fits else [""] * protocol.samples for item in asked]
    pairs = [(item.example, text) for item, texts in zip(asked, outputs, strict=True) if item.fits for text in texts]
    graded = iter(grades(task, pairs, style, execution))
    scores = [[next(graded) if item.fits else 0.0 for _ in texts] for item, texts in zip(asked, outputs, strict=True)]
    return [_line(task, protocol, *parts) for parts in zip(asked, outputs, scores, strict=True)]


def _line(task: Task, protocol: Protocol, asked: Asked, outputs: list[str], scores: list[float]) -> dict[str, Any]:
    """An item's score line."""
    e = asked.example
    said: dict[str, Any] = {"output": outputs[0]}
    if protocol.samples > 1:
        said = {"outputs": outputs, "correct": sum(score == 1 for score in scores)}
    return {
        "task": task.name,
        "version": task.format.version,
        "id": e.id,
        "unit": e.unit,
        "tier": e.tier,
        "prompt": asked.text,
        **({"shots": asked.shots} if protocol.shots else {}),
        **({"too_long": "cut" if asked.is_cut else "wrong"} if asked.is_cut or not asked.fits else {}),
        **said,
        "answer": e.answer,
        "score": sum(scores) / len(scores),
    }


def _run(lm: HFLM, task: Task, asked: Sequence[Asked], style: str, protocol: Protocol) -> list[list[str]]:
    """The outputs of every item, in order. They are graded afterwards, all at once."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate

    form = task.format

    class ExactPrompts(ConfigurableTask):
        """Sends the prompts as they are, and draws no progress bar while it collects them."""

        def build_all_requests(self, **_: Any) -> None:
            made = [
                self.construct_requests(doc, doc["text"], metadata=(NAME, i, protocol.samples))
                for i, doc in self.doc_iterator()
            ]
            self._instances = [r for requests in made for r in (requests if form.ranks else [requests])]

    rows = [{"text": a.text, "choices": [f" {c}" for c in a.example.choices]} for a in asked]
    config: dict[str, Any] = {
        "task": NAME,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice" if form.ranks else "generate_until",
        "doc_to_text": lambda doc: doc["text"],
        "doc_to_target": lambda doc: 0 if form.ranks else "",
        "target_delimiter": "",
        "process_results": lambda doc, results: {"answered": 1.0},
        "metric_list": [{"metric": "answered", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": form.version},
    }
    if form.ranks:
        config["doc_to_choice"] = lambda doc: doc["choices"]
    else:
        config |= {"repeats": protocol.samples, "generation_kwargs": _generation(task, style, protocol)}
    found = evaluate(lm, {NAME: ExactPrompts(config=config)}, bootstrap_iters=0)["samples"][NAME]
    found = sorted(found, key=lambda sample: sample["doc_id"])
    if not form.ranks:
        return [[str(text) for text in sample["resps"][0]] for sample in found]
    return [[_best(a.example, sample["filtered_resps"])] for a, sample in zip(asked, found, strict=True)]


def _generation(task: Task, style: str, protocol: Protocol) -> dict[str, Any]:
    made: dict[str, Any] = {"until": [*task.format.stops(style)], "max_gen_toks": task.format.max_new_tokens}
    if not protocol.temperature:
        return made | {"do_sample": False}
    return made | {"do_sample": True, "temperature": protocol.temperature, "top_p": protocol.top_p}


def _best(example: Example, results: Sequence[Any]) -> str:
    """The choice of the highest log-likelihood, the first of equals."""
    likelihoods = [likelihood for likelihood, _is_greedy in results]
    if any(map(math.isnan, likelihoods)):
        raise UnsupportedModelError(
            f"example {example.id}: the model gives NaN instead of likelihoods; check its weights, or load it in float32"
        )
    return example.choices[likelihoods.index(max(likelihoods))]


def _harness_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    style: str,
    batch_size: int,
    context: int,
    sampler: Sampler,
) -> HFLM:
    from lm_eval.models.huggingface import HFLM

    before = tokenizer("x", add_special_tokens=False)["input_ids"]

    def checked(ids_BT: Tensor, logits_BV: Tensor) -> Tensor:
        """The logits as they are: of NaN, decoding would make tokens that the model never chose."""
        is_broken_B = ~logits_BV.amax(-1).isfinite()
        if is_broken_B.any():
            text = tokenizer.decode(ids_BT[is_broken_B][0], skip_special_tokens=True)
            raise UnsupportedModelError(
                f"the model gives NaN or infinity instead of logits after {text[-40:]!r}; check its weights, or load it in float32"
            )
        return logits_BV

    class Scored(HFLM):
        """Progress bars on a terminal only, one pass for all choices, and draws of our own where answers are sampled."""

        def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
            return super().generate_until(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())

        def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            def plainly(rest: list) -> list[tuple[float, bool]]:
                return super(Scored, self).loglikelihood(rest, disable_tqdm=disable_tqdm or not sys.stderr.isatty())

            return ranked(self, requests, plainly)

        def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str | None:
            """Text of tokens as it follows other text, and as it is: some tokenizers drop a first space, or spaces before stops."""
            if tokens is None:  # the end of sequence, of a tokenizer that has none
                return None
            if isinstance(tokens, int) or not skip_special_tokens:
                return str(super().tok_decode(tokens, skip_special_tokens))
            return continuation(tokenizer, before, tokens)

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
            settings = sampler.taking_over(context, settings)
            settings["logits_processor"] = [checked, *settings.get("logits_processor", [])]
            return super()._model_generate(context, max_length, stop, **settings)

    return Scored(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        max_length=context,
        add_bos_token=adds_special_tokens(style),
        prefix_token_id=tokenizer.pad_token_id if tokenizer.bos_token is tokenizer.eos_token is None else None,
        softmax_dtype="float32",  # in bfloat16 different likelihoods become equal
    )


@contextmanager
def _untouched(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Iterator[None]:
    """Plain settings inside; outside, modes, settings, tokenizer and random state as before."""
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
