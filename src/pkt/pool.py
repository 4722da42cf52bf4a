"""Jobs in several processes, or in this one. Every process keeps what its first job set up."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import Any

from pkt.errors import PktError

_state: Any = None


class WorkerError(PktError, RuntimeError):
    """A worker process died."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """Runs jobs with a state that `make()` builds once in each process.

    Args:
        make, work: functions at the top of a module; `work(state, job)` gives a job's result.
        workers: processes; 1 runs everything here, with no other process and all threads.
        threads: torch threads of each worker.
    """

    def __init__(self, make: Callable[[], Any], work: Callable[[Any, Any], Any], workers: int, threads: int) -> None:
        self.work, self.state = work, cache(make)
        self.executor = None
        self.others = set(multiprocessing.active_children())
        if workers > 1:
            self.executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (make, threads))

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.executor is None:
            return
        if kind is not None:  # an error or Ctrl-C: what runs now is not waited for
            for process in set(multiprocessing.active_children()) - self.others:
                process.terminate()
        self.executor.shutdown(cancel_futures=True)

    def run(self, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Jobs with their results, as they finish.

        Raises:
            WorkerError: a process died.
        """
        if self.executor is None:
            for job in jobs:
                yield job, self.work(self.state(), job)
            return
        running = {self.executor.submit(_work, self.work, job): job for job in jobs}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        except BrokenProcessPool:
            raise WorkerError(
                "a worker process died, for lack of memory or because a script starts this without `if __name__ == '__main__'`; run it "
                "again with fewer workers: finished jobs are kept"
            ) from None


def _start(make: Callable[[], Any], threads: int) -> None:
    global _state
    import torch
    from tqdm import tqdm

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(
        threading.RLock()
    )  # its default is a semaphore that outlives a worker which is killed, with a warning
    torch.set_num_threads(threads)
    _state = make()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next job for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(work: Callable[[Any, Any], Any], job: Any) -> Any:
    return work(_state, job)
