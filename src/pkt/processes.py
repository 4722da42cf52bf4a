"""Several processes on one run, as `torchrun` starts them: the first owns the run folder, the others help to train."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta

PATIENCE = timedelta(days=7)
"""How long helpers wait for the first process, which locates, exports and scores alone."""


def num_processes() -> int:
    """Processes of this run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process owns the run folder."""
    return int(os.environ.get("RANK", "0")) == 0


def told_by_first(answer: bool, *, cpu: bool) -> bool:
    """The first process's answer, in all processes.

    On CPUs they leave their group when they end: gloo's threads outlive the interpreter, and now and then abort it. NCCL has none
    and would wait for processes that failed.

    Args:
        cpu: whether they compute on CPUs.
    """
    if num_processes() == 1:
        return answer
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState(cpu=cpu, timeout=PATIENCE, **({"backend": "gloo"} if cpu else {}))
    if cpu:
        atexit.register(state.destroy_process_group)
    return bool(broadcast_object_list([answer])[0])
