"""Whole files or none: everything is written under a temporary name and renamed."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkt.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


HEADER = "pkt"
"""One key holds the whole header of a safetensors file: several are written in an order that changes from run to run."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if the block ends well, and is removed if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that takes its place if the block ends well, and is removed if not.

    What is replaced is set aside before it is removed, which can take long: a process that is killed leaves no folder with half its files.
    """
    new, old = (path.with_name(f".{path.name}.{what}") for what in ("partial", "replaced"))
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
    new.mkdir(parents=True)
    try:
        yield new
        if path.exists():
            path.replace(old)
        new.replace(path)
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, making it if need be; released when the block or the process ends.

    Raises:
        ConfigError: another process holds it.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder} is in use by another run; wait for it, or give another folder") from None
        yield
    finally:
        os.close(handle)


def leftovers(folder: Path) -> list[Path]:
    """Temporary files of processes that were killed while they wrote."""
    import psutil

    found = []
    for path in folder.rglob(".*") if folder.is_dir() else ():
        match = re.fullmatch(r"\..+\.(\d+)", path.name)
        if match and path.is_file() and not psutil.pid_exists(int(match[1])):
            found.append(path)
    return found


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, indented, with sorted keys."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """A record, or nothing where there is none or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as CSV; nothing where a number is not known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def save_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file, readable by whom the umask says (the library alone writes mode 600)."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file({k: t.contiguous() for k, t in tensors.items()}, temporary, header)
        temporary.chmod(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
