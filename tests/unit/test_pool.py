"""Jobs in this process and in two: the same results, one state in each process, and clear errors."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from pkt.errors import DataError
from pkt.pool import Pool, WorkerError


def make(folder: Path) -> Callable[[int], int]:
    """A state that notes in `folder` that it was made."""
    (folder / f"{os.getpid()}-{time.monotonic_ns()}").touch()
    return lambda number: number**2


def work(square: Callable[[int], int], job: object) -> tuple[int, int, int]:
    """Square, process and torch threads; some jobs end otherwise."""
    import torch

    if job == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if not isinstance(job, int):
        raise DataError(f"job {job!r} has no number")
    return square(job), os.getpid(), torch.get_num_threads()


def test_two_processes_give_what_one_gives(tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    alone.mkdir(), both.mkdir()
    with Pool(partial(make, alone), work, 1, 1) as pool:
        serial = [*pool.run(range(3)), *pool.run(range(3, 6))]
        with pytest.raises(DataError, match="job 'odd' has no number"):
            list(pool.run(["odd"]))
    assert [job for job, _ in serial] == list(range(6))
    assert {pid for _, (_, pid, _) in serial} == {os.getpid()}
    assert len(list(alone.iterdir())) == 1

    with Pool(partial(make, both), work, 2, 3) as pool:
        spread = [*pool.run(range(3)), *pool.run(range(3, 6))]
        assert {job: found[0] for job, found in spread} == {job: found[0] for job, found in serial}
        processes = {pid for _, (_, pid, _) in spread}
        assert os.getpid() not in processes
        assert {threads for _, (_, _, threads) in spread} == {3}
        made = [path.name.partition("-")[0] for path in both.iterdir()]
        assert len(made) == len(set(made)) <= 2
        assert {str(pid) for pid in processes} <= set(made)

        with pytest.raises(DataError, match="job 'odd' has no number"):
            list(pool.run([1, "odd"]))
        assert [found[0] for _, found in pool.run([7])] == [49]
        with pytest.raises(WorkerError, match="a worker process died.*fewer workers: finished jobs are kept") as e:
            list(pool.run(["kill"]))
        assert "\n" not in str(e.value)
    assert not multiprocessing.active_children()


def test_an_error_ends_no_process_of_somebody_else(tmp_path):
    """The pool's own workers are ended, and they alone."""
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,), daemon=True)
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt), Pool(partial(make, tmp_path), work, 2, 1):
            raise KeyboardInterrupt
        other.join(1)
        assert other.is_alive()
    finally:
        other.kill()
        other.join()


def say_and_wait(_: object, job: int) -> None:
    print(os.getpid(), flush=True)  # noqa: T201
    time.sleep(job)


PARENT = """
import sys
sys.path.insert(0, {folder!r})
from test_pool import Pool, say_and_wait
with Pool(dict, say_and_wait, 2, 1) as pool:
    list(pool.run([600]))
"""


def test_workers_end_with_a_parent_that_was_killed():
    code = PARENT.format(folder=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        worker.wait(timeout=20)
