"""What a run ran on: versions, device, commit, hashes."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pkt.models.checkpoint import file_digest
from pkt.models.lm import LM


@cache
def code() -> dict[str, Any]:
    """Which code this is: version, commit if it runs from a repository, and a hash of its source files."""
    here = Path(__file__).parent
    total = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        total.update(f"{path.relative_to(here)} {file_digest(path)}\n".encode())
    return {"pkt": version("pkt"), "commit": _commit(here), "sources": total.hexdigest()}


def _commit(folder: Path) -> str | None:
    """The commit of a folder; None outside a repository, or where git is not installed."""
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return asked.stdout.strip() or None


def environment(source: LM, target: LM, batch_size: int) -> dict[str, Any]:
    """Versions, device, commit and the hashes of both models."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {
            name: version(name) for name in ("pkt", "torch", "transformers", "safetensors", "tokenizers", "lm_eval")
        },
        "device": target.torch_device,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "commit": _commit(Path(__file__).parent),
        "command": " ".join(sys.argv),
        "weights": {source.name: source.digest, target.name: target.digest},
    }
