"""What a run ran on: versions, device, commit, hashes."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pkt.models.lm import LM


def environment(source: LM, target: LM, batch_size: int) -> dict[str, Any]:
    """Versions, device, commit and the hashes of both models."""
    import torch

    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    ).stdout.strip()
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
        "commit": commit or None,
        "command": " ".join(sys.argv),
        "weights": {source.name: source.digest, target.name: target.digest},
    }
