"""What was computed on a model, kept in files that verify themselves."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkt.files import HEADER, save_tensors, write_text
from pkt.memo_costs import found_made, making

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


def remembered(
    path: Path | None,
    header: dict[str, str],
    make: Callable[[], dict[str, Tensor]],
    names: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """The tensors in a file; made, and written to it, if it is missing or not as it was written. No path: made.

    Args:
        header: what the tensors are, for people.
        names: the tensors that are wanted; None means all. The others are not read.
    """
    if path is None:
        found = make()
    elif (known := _read(path, names)) is not None:
        found_made(path)
        return known
    else:
        with making(path):
            found = make()
            keep(path, header, found)
    return found if names is None else {name: found[name] for name in names}


def keep(path: Path, header: dict[str, str], tensors: dict[str, Tensor]) -> None:
    """Write tensors to a file that `remembered` reads."""
    content = {name: _digest(name, tensor) for name, tensor in tensors.items()}
    save_tensors(path, tensors, {HEADER: json.dumps({**header, "content": content}, sort_keys=True)})


def remembered_value(path: Path, key: str, make: Callable[[], Any]) -> Any:
    """The JSON value in a file; made, and written to it, if it is missing, of another key, or not as it was written."""
    try:
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if held and held["key"] == key and held["content"] == _value_digest(held["value"]):
            return held["value"]
    except (ValueError, KeyError, TypeError):
        held = {}
    if path.is_file():
        log.warning("%s is damaged; made anew", path)
    value = make()
    text = json.dumps({"key": key, "content": _value_digest(value), "value": value}, ensure_ascii=False)
    write_text(path, text + "\n")
    return value


def _value_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read(path: Path, names: Sequence[str] | None) -> dict[str, Tensor] | None:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as f:
            content = json.loads((f.metadata() or {}).get(HEADER, "{}")).get("content", {})
            found = {name: f.get_tensor(name) for name in (f.keys() if names is None else names)}
    except (SafetensorError, ValueError):
        content, found = {}, {}
    whole = names is not None or found.keys() == content.keys()
    if content and whole and all(_digest(name, tensor) == content.get(name) for name, tensor in found.items()):
        return found
    log.warning("%s is damaged; made anew", path)
    return None


def _digest(name: str, tensor: Tensor) -> str:
    plain = tensor.contiguous()
    about = f"{name} {plain.dtype} {list(plain.shape)}".encode()
    return hashlib.sha256(about + plain.numpy().tobytes()).hexdigest()
