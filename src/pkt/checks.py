"""What can be known to be wrong before any weights are read: the pair, the data, every example. Writes nothing."""

from __future__ import annotations

from pkt.errors import ConfigError, DataError
from pkt.protocols import protocol_of
from pkt.run import Run
from pkt.tasks.base import UNLABELLED, Example, Task


def check(run: Run) -> None:
    """Raise PktError if the run cannot end well."""
    from pkt.tasks.prompts import encode

    run.method.requires(run.source, run.target, run.options)
    _check_adapter(run)
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
        check_locatable(run, run.task)
    if run.recipe.evaluate.arms:
        check_gradable(run, run.task)


def _check_adapter(run: Run) -> None:
    """Raise ConfigError if the recipe wants an adapter of a method that changes every entry."""
    from pkt.align.finetune import FinetuneConfig
    from pkt.align.lora import LoraConfig

    if (
        run.recipe.export.adapter == "always"
        and isinstance(run.options, FinetuneConfig)
        and not isinstance(run.options, LoraConfig)
    ):
        raise ConfigError(
            f"export.adapter is always, but {run.method.name} changes every entry of a matrix, which no adapter holds; set it to auto"
        )


def check_locatable(run: Run, task: Task) -> None:
    """Raise DataError for an example, or a paraphrase of one, that the method's locator could not use, or too little text to compare
    layers on where the layer map asks for that."""
    from pkt.extract.locators import LocatorOptions, examples_for, locator_of
    from pkt.extract.pairing import LayerMapOptions, check_comparable
    from pkt.tasks.losses import encode_all

    if isinstance(run.options, LayerMapOptions):
        check_comparable(run.source, run.target, task, run.options, run.style)
    if not isinstance(run.options, LocatorOptions):  # by the loss on responses
        encode_all(task.location, run.style, run.source, loss_on_prompt=False)
        return
    locator = locator_of(run.options)
    examples = examples_for(task, locator)
    for lm in (run.source, run.target):
        locator.encode(lm, examples, run.style)


def check_gradable(run: Run, task: Task) -> None:
    """Raise PktError if there is no guard text where one is named, or a test item cannot be asked or graded."""
    from pkt.tasks.prompts import render

    run.guard_text()
    for example in check_asked(run, task):
        render(example, run.style, run.source.tokenizer)
        render(example, run.style, run.target.tokenizer)


def check_asked(run: Run, task: Task) -> list[Example]:
    """The test items that are scored, if their protocol, their worked examples and their grading are to be had; else PktError."""
    from pkt.evaluation.grading import check_gradable as check_outputs
    from pkt.evaluation.harness import draw

    protocol = protocol_of(run.recipe, task)
    found = draw(task.split("test"), run.recipe.evaluate.limit, run.recipe.scoring_seed)
    for example in found:
        task.shots(example, protocol.shots)
    check_outputs(task, found, run.machine.execution)
    return found
