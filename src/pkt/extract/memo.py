"""What was computed on a model, kept in files that verify themselves."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pkt.files import HEADER, save_tensors

log = logging.getLogger(__name__)


def remembered(path: Path | None, header: dict[str, str], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors in a file; made, and written to it, if it is missing or not as it was written. No path: made.

    Args:
        header: what the tensors are, for people.
    """
    known = _read(path) if path else None
    if known is not None:
        return known
    found = make()
    if path:
        content = header | {"content": _content(found)}
        save_tensors(path, found, {HEADER: json.dumps(content, sort_keys=True)})
    return found


def _read(path: Path) -> dict[str, Tensor] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as f:
            found = {name: f.get_tensor(name) for name in f.keys()}
            content = json.loads((f.metadata() or {}).get(HEADER, "{}")).get("content")
    except (SafetensorError, ValueError):
        content = None
    if content is None or content != _content(found):
        log.warning("%s is damaged; made anew", path)
        return None
    return found


def _content(tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].contiguous()
        total.update(f"{name} {t.dtype} {list(t.shape)}".encode())
        total.update(t.numpy().tobytes())
    return total.hexdigest()
