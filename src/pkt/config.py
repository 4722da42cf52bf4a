"""Recipes: strict YAML, one message for every mistake."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pkt.errors import ConfigError
from pkt.models.checkpoint import is_nano
from pkt.registry import nearest
from pkt.strict_yaml import yaml_text

M = TypeVar("M", bound=BaseModel)


class Section(BaseModel):
    """Part of a recipe: no unknown key, no conversion between types, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def is_unset(value: Any) -> bool:
    """For `exclude_if` of keys that older recipes do not have: unset, they are left out of what is written and hashed, so that what was
    made with an older recipe stays as it is."""
    return value is None


def _short(value: Any) -> Any:
    """`nano/source` is short for `{name: nano/source}`."""
    return {"name": value} if isinstance(value, str) else value


class ModelSection(Section):
    """A model by name."""

    name: str = Field(min_length=1, description="`nano/...`, a folder, or a name on the hub")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")


class OtherTask(Section):
    """A task by name."""

    name: str = Field(description="`nano/mmlu`, `gsm8k`, ...: see `pkt tasks`")
    data: str | None = Field(None, description="folder with the task's data; null means the embedded world or the hub")
    drop_overlap: bool = Field(
        default=False,
        description="drop examples of the other splits that stand in the test split, with a warning, instead of refusing them",
    )


class TaskSection(OtherTask):
    """A task and how its prompts are written."""

    prompt_style: Literal["tulu", "chat_template", "plain"] = Field(
        "tulu", description="how prompt and response are joined"
    )
    labels: int | None = Field(
        None,
        ge=1,
        description="labelled examples that the method may read: dealt to its splits by their sizes, the first of each; null means all",
    )
    extract: int | None = Field(
        None,
        ge=1,
        exclude_if=is_unset,
        description="examples of the extract split that may be read, the first ones; null means all",
    )


class EvaluateSection(Section):
    """What is scored."""

    limit: int | None = Field(None, ge=1, description="test items per tier, drawn by `evaluate.seed`; null means all")
    shots: int | None = Field(
        None, ge=0, le=100, description="worked examples before the question; null means the task's protocol"
    )
    samples: int | None = Field(None, ge=1, le=1000, description="answers to every question; null: the task's protocol")
    temperature: float | None = Field(
        None, ge=0, le=100, description="of sampling, 0 is greedy; null: the task's protocol"
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="share of the probability that is sampled from; null: the task's protocol"
    )
    too_long: Literal["stop", "wrong", "cut"] = Field(
        "stop",
        description="a prompt that leaves no room for its answer: `stop` before anything is scored, count it as `wrong`, or `cut` its "
        "beginning",
    )
    perplexity_text: str | None = Field(
        None,
        description="text file for the perplexity guard; null means the embedded text for nano tasks and no guard elsewhere",
    )
    arms: list[Literal["target", "source", "result"]] = Field(
        ["target", "source", "result"], description="models to score"
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        exclude_if=is_unset,
        description="of the items that `limit` draws and of sampling; null means the recipe's seed",
    )


class CertificateSection(Section):
    """How the certificate is made."""

    seeds: int = Field(
        5,
        ge=2,
        le=1000,
        description="seeds of every arm, from the recipe's on; fewer than 5 give a preliminary verdict",
    )
    arms: list[str] | None = Field(
        None, description="control arms; null means all that the method has: see docs/certificate.md"
    )
    learning_rates: Literal["search", "recipe"] | dict[str, Annotated[float, Field(gt=0)]] = Field(
        "search",
        description="of each arm: `search` by the valid split's loss, `recipe` for the method's own in all, or arm: value, the rest "
        "being searched",
    )
    factors: list[Annotated[float, Field(gt=0)]] = Field(
        [0.1, 0.3, 1.0, 3.0, 10.0],
        min_length=2,
        description="grid of a search, as factors on the method's learning rate; extended while the best is at an edge",
    )
    margin: float | None = Field(
        None, gt=0, le=1, description="difference in score that counts as none; null means a tenth of the source's lead"
    )
    perplexity_margin: float = Field(
        0.05, gt=0, description="rise of the guard text's loss that counts as none, in nats per token"
    )
    level: float = Field(0.95, gt=0.5, lt=1, description="of the intervals")
    tier: str | None = Field(
        None, description="tier of test items that decides; null means `new` where the task has it, else all items"
    )
    wrong_task: OtherTask | None = Field(
        None,
        description="task for the arm of that name; null means another embedded task for nano tasks, and no such arm elsewhere",
    )
    keep_deltas: bool = Field(True, description="keep every arm's deltas in the run folder, and not their hashes alone")
    guard_tasks: list[OtherTask] = Field([], description="other tasks on which harm is looked for")

    @field_validator("learning_rates", mode="before")
    @classmethod
    def _rates(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for arm, rate in value.items():
                if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
                    raise ValueError(f"{arm} has {rate!r}; expected a learning rate above 0")
        elif value not in ("search", "recipe"):
            raise ValueError("expected `search`, `recipe`, or a learning rate for each arm: {arm: value}")
        return value

    @field_validator("factors")
    @classmethod
    def _distinct(cls, value: list[float]) -> list[float]:
        if len({f"{factor:.3g}" for factor in value}) < len(value):
            raise ValueError("the factors must differ from each other")
        return value

    @field_validator("wrong_task", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return _short(value)

    @field_validator("guard_tasks", mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        return [_short(v) for v in value] if isinstance(value, list) else value


class ExportSection(Section):
    """How the result is stored."""

    dtype: Literal["auto", "target", "float32"] = Field(
        "auto",
        description="of the changed tensors: `target` rounds to the target's dtype; `float32`; `auto` takes float32 where "
        "rounding would leave the change with a cosine below 0.99",
    )
    adapter: Literal["auto", "always", "never"] = Field(
        "auto",
        description="write a PEFT adapter beside the checkpoint: `auto` where the method trains adapters; `always` also for rows and columns",
    )


def _absolute(section: M, key: str) -> M:
    path = getattr(section, key)
    return section if path is None else section.model_copy(update={key: str(Path(path).expanduser().absolute())})


def _is_folder(model: ModelSection) -> bool:
    """Whether a model is a folder here, and no embedded one or one of the hub."""
    return not is_nano(model.name) and Path(model.name).expanduser().is_dir()


class Recipe(Section):
    """Everything that decides a result. Where it runs (device, folders) is no part of it."""

    name: str = Field(description="name of the run")
    source: ModelSection
    target: ModelSection
    task: TaskSection
    method: dict[str, Any] = Field(description="`name` and the method's own options: see `pkt methods NAME`")
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()
    certificate: CertificateSection = CertificateSection()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of both models in memory; `auto` as stored"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of every random draw")

    @field_validator("source", "target", "task", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """`source: nano/source` is short for `source: {name: nano/source}`; a task likewise."""
        return _short(value)

    @field_validator("method", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise ValueError("needs a `name`, for example `name: laten`")
        return value

    @property
    def scoring_seed(self) -> int:
        """The seed of the items that are drawn, and of sampling."""
        return self.seed if self.evaluate.seed is None else self.evaluate.seed

    def with_absolute_paths(self) -> Recipe:
        """The same with folders of models and data, and files, that do not depend on the working directory."""
        certificate = self.certificate
        wrong = certificate.wrong_task and _absolute(certificate.wrong_task, "data")
        guards = [_absolute(task, "data") for task in certificate.guard_tasks]
        return self.model_copy(
            update={
                "source": _absolute(self.source, "name") if _is_folder(self.source) else self.source,
                "target": _absolute(self.target, "name") if _is_folder(self.target) else self.target,
                "task": _absolute(self.task, "data"),
                "evaluate": _absolute(self.evaluate, "perplexity_text"),
                "certificate": certificate.model_copy(update={"wrong_task": wrong, "guard_tasks": guards}),
            }
        )

    def to_yaml(self) -> str:
        """The resolved recipe."""
        return yaml_text(self.model_dump())


def validate(cls: type[M], data: Any, where: str, prefix: str = "") -> M:
    """Build a config model, turning pydantic's first error into one line.

    Args:
        where: file or option, for the message; prefix: key path of `data` within it.

    Raises:
        ConfigError: unknown key (with the nearest known), missing key, wrong type, or out of bounds.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as e:
        error = e.errors()[0]
        path = [str(p) for p in error["loc"]]
        key = ".".join([*([prefix] if prefix else []), *path])
        found = error.get("input")
        if error["type"] == "extra_forbidden":
            known = _keys(cls, path[:-1])
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(path[-1], known)}") from None
        if error["type"] == "missing":
            raise ConfigError(f"{where}: missing key {key!r}; add it") from None
        message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        raise ConfigError(f"{where}: {key}: found {found!r}; {message}") from None


def _keys(cls: type[BaseModel], path: list[str]) -> list[str]:
    """Known keys of the section at `path`."""
    for name in path:
        field = cls.model_fields.get(name)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            break
        cls = field.annotation
    return list(cls.model_fields)
