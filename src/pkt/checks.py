"""What can be known to be wrong before any weights are read: the pair, the data, every example. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from pkt.errors import DataError
from pkt.run import Run
from pkt.tasks.base import UNLABELLED, Example, Task


def check(run: Run) -> None:
    """Raise PktError if the run cannot end well."""
    from pkt.tasks.prompts import encode

    run.method.requires(run.source, run.target, run.options)
    run.source.check()
    run.target.check()
    splits = run.method.reads(run.options)
    run.task.check_disjoint(*splits, "test")
    for name in splits:
        examples = run.task.unlabelled(run.options.unlabelled) if name == UNLABELLED else run.task.split(name)
        if not examples:
            raise DataError(f"{run.task.name}: split {name} is empty; {run.method.name} needs at least one example")
        for example in examples:
            encode(example, run.style, run.target.tokenizer, run.target.dims.context, eos=True)
    if run.method.locate is not None:
        check_locatable(run, run.task.location)
    if run.recipe.evaluate.arms:
        check_gradable(run, run.task)


def check_locatable(run: Run, examples: Sequence[Example]) -> None:
    """Raise DataError for an example that attribution could not use."""
    from pkt.tasks.prompts import encode, strip_trailing

    for lm in (run.source, run.target):
        for example in examples:
            strip_trailing(encode(example, run.style, lm.tokenizer, lm.dims.context), lm.tokenizer, example)


def check_gradable(run: Run, task: Task) -> None:
    """Raise DataError if there is no guard text where one is named, or a test item cannot be asked or graded."""
    from pkt.evaluation.harness import draw
    from pkt.tasks.prompts import render

    run.guard_text()
    for example in draw(task.split("test"), run.recipe.evaluate.limit, run.recipe.seed):
        task.format.grade(example, "")
        render(example, run.style, run.source.tokenizer)
        render(example, run.style, run.target.tokenizer)
