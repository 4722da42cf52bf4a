"""A model as a user names it: a checkpoint, or an adapter or a delta on its base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pkt.errors import ConfigError, DataError, UnsupportedModelError
from pkt.inject.adapter import CONFIG, WEIGHTS
from pkt.inject.adapter_reading import check_base, read_adapter
from pkt.inject.apply import injected
from pkt.inject.delta import Delta
from pkt.models.checkpoint import file_digest
from pkt.models.lm import LM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kind = Literal["checkpoint", "adapter", "delta"]


@dataclass(frozen=True)
class Given:
    """A checkpoint, or a change and the base that it is of."""

    name: str
    """As the user gave it."""
    kind: Kind
    lm: LM
    """The checkpoint, or the base."""
    delta: Delta | None = None
    change: str | None = None
    """Hash of what holds the change: a delta's file; an adapter's weights, and its config, which scales them."""

    @property
    def identity(self) -> list[str]:
        """Hashes of all that decides what the model says to a text."""
        return [*self.lm.identity, *([self.change] if self.change else [])]

    @contextmanager
    def loaded(self) -> Iterator[PreTrainedModel]:
        """The model with its change, by hooks: nothing but embeddings and norms is rounded to the base's dtype."""
        with self.lm.loaded() as model:
            if self.delta is None:
                yield model
            else:
                with injected(model, self.delta):
                    yield model

    def record(self) -> dict[str, Any]:
        """For `evaluation.json`."""
        found: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "weights": self.lm.digest,
            "dtype": self.lm.dtype,
        }
        if self.kind != "checkpoint":
            found |= {"base": self.lm.name, "change": self.change}
        return found | ({"revision": self.lm.revision} if self.lm.revision else {})


def given(
    name: str, *, base: str | None = None, any_base: bool = False, device: str = "auto", dtype: str = "auto"
) -> Given:
    """The model of a name.

    Args:
        name: of a checkpoint (`nano/...`, a folder, the hub), a PEFT adapter's folder, or a delta's file.
        base: of an adapter or a delta; None means the one that it names.
        any_base: take an adapter or a delta that names another base.

    Raises:
        ConfigError: a run folder, a file of another kind, no base, or a base for a checkpoint.
        DataError: nothing is there, or an adapter of another base.
        UnsupportedModelError: a base or an adapter that cannot be read.
        ShapeError: the change does not fit the base.
    """
    path = Path(name).expanduser()
    if path.is_dir() and (path / "recipe.yaml").is_file():
        raise ConfigError(
            f"{name} is a run folder; name its model {path / 'model'} or its delta {path / 'delta.safetensors'}, or leave --task out "
            f"to score it as its recipe says"
        )
    if path.is_file():
        return _delta(name, path, base, any_base, device, dtype)
    if path.is_dir() and (path / CONFIG).is_file():
        return _adapter(name, path, base, any_base, device, dtype)
    if path.is_dir() and not (path / "config.json").is_file():
        raise DataError(
            f"{name}: no config.json and no {CONFIG} in this folder; expected a checkpoint, a PEFT adapter, or the path of a "
            f"delta.safetensors"
        )
    if base is not None or any_base:
        option = "--any-base" if base is None else "--base"
        raise ConfigError(f"{option} is of an adapter or a delta, but {name} is a checkpoint; leave it out")
    lm = LM(name, device=device, dtype=dtype, any_family=True)
    context = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(context, int):
        raise UnsupportedModelError(f"{name}: its config names no max_position_embeddings, the length of its context")
    masked = [kind for kind in lm.config.architectures or () if kind.endswith("ForMaskedLM")]
    if masked:
        raise UnsupportedModelError(
            f"{name}: {masked[0]} fills gaps, reading a text both ways; expected a causal language model"
        )
    _ = lm.checkpoint.files, lm.tokenizer
    return Given(name, "checkpoint", lm)


def _adapter(name: str, folder: Path, base: str | None, any_base: bool, device: str, dtype: str) -> Given:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        named, revision = config.get("base_model_name_or_path"), config.get("revision")
    except (ValueError, AttributeError) as e:
        raise DataError(f"{folder / CONFIG}: damaged ({e}); copy the adapter again") from e
    lm = _base(name, base, named, revision, device, dtype)
    delta = read_adapter(folder, lm, any_base=any_base)
    digests = "".join(file_digest(folder / file) for file in (CONFIG, WEIGHTS))
    return Given(name, "adapter", lm, delta, hashlib.sha256(digests.encode()).hexdigest())


def _delta(name: str, path: Path, base: str | None, any_base: bool, device: str, dtype: str) -> Given:
    if path.name == WEIGHTS or path.name == CONFIG:
        raise ConfigError(f"{name} is a file of an adapter; name its folder, {path.parent}")
    if path.suffix != ".safetensors":
        raise ConfigError(f"{name} is a file, but no delta; expected a folder, a hub name, or a delta.safetensors")
    delta = Delta.load(path)
    target = delta.provenance.get("recipe", {}).get("target", {})
    lm = _base(name, base, target.get("name"), target.get("revision"), device, dtype)
    if not any_base:
        check_base(name, "delta", target.get("name"), delta.provenance.get("base"), lm)
    dict(delta.tensors(lm))  # checks the shapes
    return Given(name, "delta", lm, delta, file_digest(path))


def _base(name: str, base: str | None, named: str | None, revision: str | None, device: str, dtype: str) -> LM:
    """The base that the user named, or else the change itself."""
    if base is None and not named:
        raise ConfigError(f"{name} does not say which base it was made for; give it with --base")
    lm = LM(base or str(named), revision=None if base else revision, device=device, dtype=dtype)
    try:
        _ = lm.dims, lm.checkpoint.files, lm.tokenizer
    except DataError as e:
        if base is not None:
            raise
        raise DataError(
            f"{name} was made for the base {named}, which is not to be had: {e}; or give it with --base"
        ) from e
    return lm
