"""What the sandbox costs: `python benchmarks/sandbox.py`, beside plain subprocesses in the same run.

- Start-up: an empty program in the sandbox, and `python -I -c pass`, one after the other and by turns; medians.
- 164 programs with the size of HumanEval's, as many at a time as there are cores, and the same texts in plain subprocesses.

Prints the times with the bars (start-up under 100 ms, 164 items in 30 s), and exits with 1 where one is missed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pkt.evaluation import sandbox
from pkt.pool import cores

ITEMS, ROUNDS = 164, 25
MAX_START, MAX_ITEMS = 0.100, 30.0
CODE = "def solve(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n"
TESTS = "def check(candidate):\n    for n in range(300):\n        assert candidate(n + 2) == candidate(n + 1) + candidate(n)\n\n\ncheck(solve)"


def plain(text: str) -> None:
    """A program in a subprocess without any walls."""
    subprocess.run([sys.executable, "-I", "-c", text], check=True)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def all_plain() -> None:
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(plain, [f"{CODE}\n{TESTS}"] * ITEMS))


def all_sandboxed() -> None:
    outcomes = sandbox.run_all([sandbox.Program(CODE, TESTS)] * ITEMS)
    assert all(outcome.passed for outcome in outcomes), outcomes


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sandbox.check()
    starts: dict[str, list[float]] = {"sandbox": [], "plain": []}
    for _ in range(ROUNDS):
        starts["sandbox"].append(seconds(lambda: sandbox.run(sandbox.Program(""))))
        starts["plain"].append(seconds(lambda: plain("pass")))
    start, plain_start = (statistics.median(starts[key]) for key in ("sandbox", "plain"))
    items, plain_items = seconds(all_sandboxed), seconds(all_plain)
    print(f"{'':24}{'sandbox':>10}{'plain':>10}{'ratio':>8}{'bar':>10}")
    for name, ours, other, bar in (
        ("start-up, median", start, plain_start, MAX_START),
        (f"{ITEMS} items, {cores()} cores", items, plain_items, MAX_ITEMS),
    ):
        print(f"{name:24}{ours:>8.3f} s{other:>8.3f} s{ours / other:>8.2f}{bar:>8.3f} s")
    sys.exit(start > MAX_START or items > MAX_ITEMS)


if __name__ == "__main__":
    main()
