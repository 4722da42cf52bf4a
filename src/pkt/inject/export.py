"""Exporting a target with a delta as an ordinary checkpoint, shard by shard.

Adding a small change in a low precision can lose it. So the change that rounding keeps is measured: the share of changed
entries that still differ from the target, and the cosine between the change that is left and the one that was meant.
Where the cosine over all changed tensors is below 0.99, or they are stored in several dtypes, those tensors are stored in float32, and
the config asks for float32, so that plain `from_pretrained` does not round them after all.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from pkt.errors import DataError
from pkt.files import replacing_folder, save_tensors, write_json
from pkt.inject.changes import Change, Within
from pkt.inject.delta import Delta
from pkt.models.checkpoint import INDEX, Checkpoint
from pkt.models.lm import LM

log = logging.getLogger(__name__)

Changes = list[Change | Within]
"""Of one tensor: more than one where parts share it."""

KEEP_COSINE = 0.99
SKIPPED = ("README.md", "card.json", "expansion.json", INDEX)
"""Files that describe the weights that were."""


@dataclass(frozen=True)
class Kept:
    """What the stored dtype keeps of a delta."""

    dtype: str
    """Of the changed tensors in the export."""
    kept_share: float
    """Share of the nonzero changes whose entry still changes after rounding to that dtype."""
    kept_cosine: float
    """Cosine between the rounded change and the delta."""
    target_dtype: str
    """The narrowest in which the target stores one of them."""
    rounded_cosine: float
    """The cosine that rounding to the target's own dtypes would leave."""
    changed_tensors: int


class _Survival:
    """Sums over tensors: what is left of a change after rounding."""

    def __init__(self) -> None:
        self.dot = self.left = self.meant = 0.0
        self.nonzero = self.alive = 0

    def add(self, before: Tensor, meant: Tensor, stored: Tensor) -> None:
        meant = meant.double()
        left = stored.double() - before.double()
        self.dot += float((meant * left).sum())
        self.left += float(left.pow(2).sum())
        self.meant += float(meant.pow(2).sum())
        self.nonzero += int((meant != 0).sum())
        self.alive += int(((meant != 0) & (left != 0)).sum())

    @property
    def cosine(self) -> float:
        if not self.meant:
            return 1.0
        return self.dot / (self.left * self.meant) ** 0.5 if self.left else 0.0

    @property
    def share(self) -> float:
        return self.alive / self.nonzero if self.nonzero else 1.0


def export(delta: Delta, target: LM, out: Path, *, dtype: str = "auto", overwrite: bool = False) -> Kept:
    """Write `target` with `delta` to the folder `out`.

    Tokenizer and config are copied, untouched files are copied as they are, and a touched shard is read, changed and
    written before the next one. Nothing is left behind if it fails.

    Args:
        dtype: of the changed tensors: `auto`, `target` or `float32` (see the module's docstring).
        overwrite: replace a model that is in `out`.

    Raises:
        ShapeError: the delta does not fit.
        DataError: `out` holds files.
    """
    check_free(out, target, "config.json", overwrite=overwrite)
    changes: dict[str, Changes] = {}
    for name, change in delta.tensors(target):
        changes.setdefault(name, []).append(change)
    survival = {name: _Survival() for name in ("target", "float32")}
    dtypes = set()
    for name, of_tensor in changes.items():
        with safe_open(target.checkpoint.files[name], "pt") as f:
            weight = f.get_tensor(name)
        dtypes.add(weight.dtype)
        _measure(weight, of_tensor, survival)
    if target.stored_twice and (embed := f"{target.family.embed}.weight") in changes:
        changes[target.stored_twice] = changes[embed]
    narrow, widest = (of(dtypes or {torch.float32}, key=lambda d: d.itemsize) for of in (min, max))
    chosen = dtype
    if dtype == "auto":
        chosen = "target" if narrow == widest and survival["target"].cosine >= KEEP_COSINE else "float32"
    wide = chosen == "float32" and narrow != torch.float32
    with replacing_folder(out) as temporary:
        _copy_side_files(target.checkpoint, temporary, wide)
        for shard in target.checkpoint.shards:
            _write_shard(shard, temporary / shard.name, changes, torch.float32 if wide else None)
        _write_index(target.checkpoint, temporary)
    kept = survival["float32" if wide else "target"]
    names = {
        "target_dtype": str(narrow).removeprefix("torch."),
        "dtype": "float32" if wide else str(widest).removeprefix("torch."),
    }
    log.info("exported %d changed tensors to %s", len(changes), out)
    return Kept(
        kept_share=kept.share,
        kept_cosine=kept.cosine,
        rounded_cosine=survival["target"].cosine,
        changed_tensors=len(changes),
        **names,
    )


def check_free(out: Path, target: LM, holds: str, *, overwrite: bool) -> None:
    """Raise DataError if writing to `out` would lose something.

    Args:
        holds: the file by which a folder is known to hold what is written. overwrite: whether that may be replaced.
    """
    if out.exists() and out.resolve() == target.checkpoint.folder.resolve():
        raise DataError(f"{out} holds the target itself; give a new folder")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite or not (out / holds).is_file():
        raise DataError(
            f"{out} exists and holds files; give a new folder, or pass overwrite=True where it holds an earlier export"
        )


def changed(weight: Tensor, changes: Changes) -> Tensor:
    """The weight with its changes, in float32."""
    result = weight.float().clone()
    for change in changes:
        change.add_(result)
    return result


def _measure(weight: Tensor, changes: Changes, survival: dict[str, _Survival]) -> None:
    meant, after = changed(torch.zeros_like(weight), changes), changed(weight, changes)
    survival["target"].add(weight, meant, after.to(weight.dtype))
    survival["float32"].add(weight, meant, after)


def _write_shard(source: Path, out: Path, changes: dict[str, Changes], dtype: torch.dtype | None) -> None:
    with safe_open(source, "pt") as f:
        names, header = set(f.keys()), f.metadata() or {}
    if not names & changes.keys():
        shutil.copyfile(source, out)
        return
    tensors = load_file(source)
    for name in names & changes.keys():
        tensors[name] = changed(tensors[name], changes[name]).to(dtype or tensors[name].dtype)
    save_tensors(out, tensors, {"format": "pt", **header})


def _copy_side_files(checkpoint: Checkpoint, out: Path, wide: bool) -> None:
    weights = {path.name for path in checkpoint.shards}
    for path in sorted(checkpoint.folder.iterdir()):
        if (
            path.is_file()
            and path.name not in weights
            and path.name not in SKIPPED
            and path.suffix in (".json", ".jinja", ".model", ".txt")
        ):
            shutil.copyfile(path, out / path.name)
    if wide:
        config = json.loads((out / "config.json").read_text())
        config.pop("torch_dtype", None)
        write_json(out / "config.json", config | {"dtype": "float32"})


def _write_index(checkpoint: Checkpoint, out: Path) -> None:
    if path := checkpoint.index:
        index = json.loads(path.read_text())
        total = 0
        for shard in checkpoint.shards:
            with safe_open(out / shard.name, "pt") as f:
                total += sum(f.get_tensor(name).nbytes for name in f.keys())
        write_json(out / path.name, index | {"metadata": {**index.get("metadata", {}), "total_size": total}})


def kept_record(kept: Kept) -> dict:
    """For `summary.json`."""
    return asdict(kept)
