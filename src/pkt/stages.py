"""Stages of a run folder: done once, and again only where their inputs or their files have changed.

A stage's key is the hash of all that decides its output. `stages.json` keeps the keys of finished stages with the hashes of
their files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pkt.errors import DataError
from pkt.files import leftovers, write_json
from pkt.memo_costs import Cost, watched
from pkt.models.checkpoint import file_digest

log = logging.getLogger(__name__)

STAGES = ("overlap", "locate", "prepare", "align", "inject", "evaluate")
WRITTEN = ("summary.json", "report.html")
"""What sums up the stages."""
MARK = "arms/recipe.json"
"""Says of which recipe a folder's arms are."""
SHARED = ("locate", "prepare")
"""Stages whose result all arms and seeds of a certificate share."""
VERSION = 1
"""Part of every key: raise it when a stage's output changes for the same inputs."""


def key_of(*parts: Any) -> str:
    """Hash of JSON values."""
    return hashlib.sha256(json.dumps([VERSION, *parts], sort_keys=True).encode()).hexdigest()


class Stages:
    """The finished stages of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "stages.json"

    def records(self) -> dict[str, dict[str, Any]]:
        """What `stages.json` says.

        Raises:
            DataError: it cannot be read.
        """
        if not self.path.is_file():
            return {}
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(_is_record(record) for record in found.values()):
            raise DataError(f"{self.path}: damaged; delete it, and the stages are run again")
        return found

    def run(
        self,
        name: str,
        key: str,
        make: Callable[[], Iterable[Path]],
        content: Callable[[], str] | None = None,
        *,
        count: bool = False,
    ) -> None:
        """Run a stage unless it is done: same key, files as they were, and the same `content` of shared files.

        Args:
            count: record the floating-point operations too. What a shared stage found in a memo counts as if it had made it, and a
                training that was interrupted as if it had not been.
        """
        for path in leftovers(self.folder):
            path.unlink()
        if self.is_done(name, key, content):
            log.info("%s: already done", name)
            return
        start = time.perf_counter()
        reset_peak()
        with _counted(count) as flop, watched() as memo:
            files = make()
        before = memo.continued + (memo.found if name.split()[0] in SHARED else Cost())
        record: dict[str, Any] = {
            "key": key,
            "files": {str(f.relative_to(self.folder)): file_digest(f) for f in files},
            "seconds": round(time.perf_counter() - start + before.seconds, 3),
            "peak_memory_gib": round(peak_bytes() / 2**30, 3),
        }
        if content is not None:
            record["content"] = content()
        if count:
            record["flop"] = None if before.flop is None else round(flop() + before.flop)
        write_json(self.path, self.records() | {name: record})
        log.info("%s: %.1f s", name, record["seconds"])

    def adopt(self, name: str, key: str, other: Stages) -> None:
        """Take over a stage that was done in another folder for all that share it, with what it took."""
        record = other.records().get(name)
        if record and record["key"] == key and not self.is_done(name, key):
            write_json(self.path, self.records() | {name: record})

    def drop(self, name: str) -> None:
        """Forget a stage that another recipe in this folder had."""
        records = self.records()
        if records.pop(name, None) is not None:
            write_json(self.path, records)

    def is_done(self, name: str, key: str, content: Callable[[], str] | None = None) -> bool:
        """Whether a stage has this key, and left what is there."""
        done = self.records().get(name)
        if not done or done["key"] != key or self.damaged(name):
            return False
        return content is None or done.get("content") == content()

    def damaged(self, name: str) -> list[Path]:
        """Files of a finished stage that are gone or no longer what it wrote."""
        files = self.records().get(name, {"files": {}})["files"]
        paths = ((self.folder / file, digest) for file, digest in files.items())
        return [path for path, digest in paths if not path.is_file() or file_digest(path) != digest]


def _is_record(value: Any) -> bool:
    """Whether a value has the shape of a finished stage's record."""
    shape = {"key": str, "files": dict, "seconds": int | float}
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in shape.items())


@contextmanager
def _counted(wanted: bool) -> Iterator[Callable[[], int]]:
    """The number of operations done inside the block, where that is wanted."""
    if not wanted:
        yield lambda: 0
        return
    from pkt.flops import counted

    with counted() as count:
        yield lambda: count.flop


def flop_of(stages: Mapping[str, Mapping[str, Any]]) -> int | None:
    """Operations of the stages that make the delta; None where one was not counted, or found its scores made (0, in old folders)."""
    made = [name for name in (*SHARED, "align") if name in stages]
    known = [stages[name]["flop"] for name in made if stages[name].get("flop") is not None]
    if len(known) < len(made) or "align" not in stages or any(stages[n]["flop"] == 0 for n in SHARED if n in stages):
        return None
    return sum(known)


def reset_peak() -> None:
    """Start measuring anew, where that can be done."""
    import torch

    for gpu in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(gpu)


def peak_bytes() -> int:
    """Peaks of the GPUs' memory since `reset_peak`, added up, or of this process so far where none was used."""
    import torch

    on_gpus = sum(torch.cuda.max_memory_allocated(gpu) for gpu in range(torch.cuda.device_count()))
    return on_gpus or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
