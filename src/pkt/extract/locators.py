"""The locators by name, and the options with which a method chooses one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, field_validator

from pkt.config import Section
from pkt.extract.attribution import AttributionConfig
from pkt.extract.knowledge_neurons import KnowledgeNeuronsConfig
from pkt.extract.query_neurons import QueryNeuronsConfig
from pkt.extract.scores import Attribution, Locator, locate
from pkt.models.lm import LM
from pkt.registry import Registry, nearest
from pkt.tasks.base import Example, Task, fingerprint

LOCATORS = Registry(
    "locator",
    {
        "logprob_gain": "pkt.extract.attribution:logprob_gain",
        "knowledge_neurons": "pkt.extract.knowledge_neurons:knowledge_neurons",
        "sensitivity": "pkt.extract.sensitivity:sensitivity",
        "query_neurons": "pkt.extract.query_neurons:query_neurons",
    },
)
PUBLISHED = "logprob_gain"
"""The published one, which records need not name."""
RANDOM = "random"
"""Layers by `logprob_gain`, neurons at random."""


class LocatorOptions(Section):
    """Options of a method that locates neurons; its config derives from them."""

    locator: str = Field(
        PUBLISHED,
        description=f"how layers and neurons are scored in both models: {', '.join(LOCATORS.names())}; {RANDOM} (a control): layers by "
        "logprob_gain, neurons at random",
    )
    neurons: Literal["scored", "random"] = Field(
        "scored", description="choose neurons by their scores, or at random (a control); layers go by their scores"
    )
    attribution: AttributionConfig = Field(AttributionConfig(), description="options of `logprob_gain`")
    knowledge_neurons: KnowledgeNeuronsConfig = Field(
        KnowledgeNeuronsConfig(), description="options of `knowledge_neurons`"
    )
    query_neurons: QueryNeuronsConfig = Field(QueryNeuronsConfig(), description="options of `query_neurons`")
    memory_mib: int = Field(
        256,
        ge=1,
        description="MiB that `logprob_gain`, `knowledge_neurons` and in part `query_neurons` work in, above the model",
    )

    @field_validator("locator")
    @classmethod
    def _known(cls, value: str) -> str:
        names = [*LOCATORS.names(), RANDOM]
        if value not in names:
            raise ValueError(f"no such locator; {nearest(value, names)}")
        return value

    @property
    def is_random(self) -> bool:
        """Whether neurons are drawn, and not chosen by their scores."""
        return RANDOM in (self.locator, self.neurons)


def locator_of(options: LocatorOptions) -> Locator:
    """The locator that a method's options name."""
    return LOCATORS.get(PUBLISHED if options.locator == RANDOM else options.locator)


def examples_for(task: Task, locator: Locator) -> list[Example]:
    """The examples to locate with, each with its paraphrases if the locator asks them."""
    if not locator.paraphrases:
        return task.location
    return [replace(e, wordings=tuple(task.paraphrases(e))) for e in task.location]


def options_of(locator: Locator, options: LocatorOptions) -> Section | None:
    """The locator's own among a method's options."""
    return getattr(options, locator.section) if locator.section else None


def scores_key(task: Task, options: LocatorOptions) -> list[Any]:
    """What decides scores, beside models and prompt style: the locator with version and options, and what is asked."""
    locator = locator_of(options)
    own = options_of(locator, options)
    return [locator.name, locator.version, own and own.model_dump(), fingerprint(examples_for(task, locator))]


def scores_of(
    models: Sequence[LM], task: Task, options: LocatorOptions, style: str, *, per_example: bool = False
) -> list[Attribution]:
    """Scores of every model, one of them in memory at a time."""
    locator = locator_of(options)
    cfg, examples = options_of(locator, options), examples_for(task, locator)
    return [
        locate(locator, lm, examples, style, cfg, per_example=per_example, memory=options.memory_mib << 20)
        for lm in models
    ]
