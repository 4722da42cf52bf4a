"""Cross-scale parametric knowledge transfer between language models.

    import pkt
    source, target = pkt.LM("nano/source"), pkt.LM("nano/target")
    task = pkt.task("nano/mmlu")
    delta = pkt.transfer("laten", source, target, task, style="plain", seed=0, transfer_rate=0.1, steps=8)
    pkt.export(delta, target, "out")

Importing this package loads no torch: names are resolved when they are first used. It sets `OMP_WAIT_POLICY`, if nobody has: threads that
wait by spinning, as is the default, make small models ten times slower as soon as somebody else uses a core. torch reads it when it is loaded.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_NAMES = {
    "LM": "pkt.models.lm:LM",
    "Delta": "pkt.inject.delta:Delta",
    "task": "pkt.tasks.sources:task",
    "transfer": "pkt.api:transfer",
    "injected": "pkt.api:injected",
    "export": "pkt.api:export",
    "evaluate": "pkt.api:evaluate",
    "analyze": "pkt.api:analyze",
    "sweep": "pkt.sweeping.engine:sweep",
    "export_adapter": "pkt.api:export_adapter",
    "read_adapter": "pkt.api:read_adapter",
    "PktError": "pkt.errors:PktError",
}
__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'pkt' has no attribute {name!r}")
    module, _, attribute = _NAMES[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(_NAMES)
