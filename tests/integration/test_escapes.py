"""The escape suite: programs that attack the host, their limits or the result. Each fails its item, in time, and leaves nothing.

Every program is asked for `solve(20) == 6765`. Those that try to reach something hold an answer that is right only if they reached it.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from escape_programs import FLOODS, FORGING, HONEST, LIMITED, LONG, REACHING, TESTS

import pkt
from pkt.evaluation.sandbox import Limits, Outcome, Program, run, run_all

pytestmark = pytest.mark.usefixtures("bubblewrap")

marks = itertools.count(os.getpid() % 4096, 4096)
"""No two of them are equal, in this process or in another that runs tests at the same time."""


def living(mark: int) -> list[psutil.Process]:
    """Processes that were started for a sandbox whose /tmp holds that many bytes, or for the program in it."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if str(mark) in line or f"FSIZE={mark}:{mark}" in line:
            found.append(process)
    return found


@pytest.fixture
def attack() -> Iterator[Callable[..., Outcome]]:
    """`attack(code)`: the outcome of a program; in the end neither a process nor a descriptor may be left."""
    mark = (1 << 20) + next(marks)
    before = len(os.listdir("/proc/self/fd"))

    def run_it(code: str, tests: str = TESTS, *, seconds: int = 3) -> Outcome:
        return run(Program(code, tests, Limits(seconds=seconds, folder=mark, file=mark)))

    yield run_it
    assert _until(lambda: not living(mark))  # bubblewrap's inner process ends a moment after the outer one
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_honest_program_passes(attack) -> None:
    assert attack(HONEST) == Outcome(True)
    assert attack(HONEST.replace("0, 1", "0, 2")) == Outcome(False, f"AssertionError: {TESTS}")


@pytest.mark.parametrize("name", REACHING)
def test_what_is_outside_is_not_reached(name: str, attack, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PKT_SECRET", "1")
    secret, target = tmp_path / "secret", tmp_path / "target"
    secret.write_text("secret")
    code, error = REACHING[name]
    home = str(Path.home())
    # where the interpreter lies in the home, the way to it is there, and nothing else
    shown = set(os.path.relpath(sys.base_prefix, home).split("/")[:1])
    places = {"home": home, "shown": shown, "secret": str(secret), "target": str(target), "repository": pkt.__file__}
    outcome = attack(f"{code.format(pid=os.getpid(), **places)}\n{HONEST}")
    assert not outcome.passed
    assert re.match(f"{error}", outcome.reason), outcome.reason
    assert not target.exists()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in LIMITED])
def test_what_has_no_end_is_ended(name: str, attack) -> None:
    code, reason = LIMITED[name]
    outcome = attack(code, seconds=1)
    assert not outcome.passed
    assert re.match(reason, outcome.reason), outcome.reason


@pytest.mark.parametrize("name", FORGING)
def test_success_is_not_forged(name: str, attack) -> None:
    outcome = attack(FORGING[name], f"{TESTS}\nx = 1")
    assert not outcome.passed
    assert outcome.reason


def test_the_tests_are_not_there_while_the_program_defines(attack) -> None:
    reads = """
import os, sys
def try_again(fd):
    try:
        os.set_blocking(fd, True)
    except OSError:
        pass
for fd in range(3, 64):
    try:
        os.set_blocking(fd, False)
        assert not os.read(fd, 99), "a descriptor"
    except OSError:
        pass
    finally:
        try_again(fd)
frame = sys._getframe()
while frame:
    assert str(int("67") * 100 + 65) not in repr((frame.f_locals, frame.f_code.co_consts)), "a frame"
    frame = frame.f_back
"""
    outcome = attack(reads)
    assert outcome.reason.startswith("NameError"), outcome.reason  # it ran to its end, and `solve` is missing


def test_known_limits(attack) -> None:
    """What the same interpreter cannot prevent, as docs/sandbox.md says. A change here is a change there."""
    equal = "class A:\n def __eq__(self, other): return True\ndef solve(n): return A()"
    assert attack(equal).passed
    speaks = (
        "import os\nos.write(OUT, b'P')\nos.read(IN, int.from_bytes(os.read(IN, 8), 'big'))\nos.write(OUT, b'T')\n"
        "os.write(OUT, os.read(IN, 32))\nos._exit(0)"
    )
    ends = "import sys\nIN, OUT = map(int, sys.orig_argv[sys.orig_argv.index('-c') + 2:][:2])\n"
    assert attack(ends + speaks).passed


def test_programs_run_beside_each_other_and_keep_their_order(attack) -> None:
    programs = [Program(f"def solve(n): return {6765 if i % 3 else i}", TESTS) for i in range(9)]
    assert [o.passed for o in run_all(programs, workers=2)] == [bool(i % 3) for i in range(9)]


def test_same_program_same_words(attack) -> None:
    code = "raise ValueError([object()], list({str(i) for i in range(50)}))"
    assert attack(code) == attack(code)


def test_a_killed_parent_takes_its_program_along(tmp_path: Path) -> None:
    mark = (1 << 20) + next(marks)
    code = (
        "from pkt.evaluation.sandbox import *\n"
        f"run(Program('import time; time.sleep(1000)', limits=Limits(seconds=100, folder={mark}, file={mark})))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        assert _until(lambda: len(living(mark)) >= 3)  # bubblewrap, the first process inside, the interpreter
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    assert _until(lambda: not living(mark))


def _until(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOODS)
def test_floods(name: str, attack) -> None:
    code, reason = FLOODS[name]
    mine, free = psutil.Process().memory_info().rss, psutil.disk_usage("/").free
    outcome = attack(code, seconds=3)
    assert not outcome.passed
    assert re.match(reason, outcome.reason), outcome.reason
    assert psutil.Process().memory_info().rss - mine < 64 << 20
    assert free - psutil.disk_usage("/").free < 1 << 30
