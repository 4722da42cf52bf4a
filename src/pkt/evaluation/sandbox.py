"""Running Python programs that a model has written, each in a bubblewrap of its own. docs/sandbox.md has the whole story.

1. bubblewrap makes new namespaces: no network, no other process, a read-only root of shared libraries and the interpreter alone
   (no home, no /proc, no environment), and a private /tmp of limited size (`command.py`). A filter refuses processes, threads and
   sockets (`seccomp.py`).
2. The interpreter limits its own CPU time, memory, files and descriptors; nothing inside can raise them (`inside.py`).
3. It runs the program, and then the tests, in the same names. The tests are sent when the program's text has come to its end, and a random
   token when the tests have (`channel.py`). **A program has passed if the token came back, nothing else was said, and the
   process ended with status 0.** What it prints is counted and thrown away.
4. The parent ends everything when the wall time is over, when too much is printed, or when the channel is flooded.

What that proves is that the code behind the tests was reached. Printing, exiting, redefined builtins, closed or sprayed descriptors and
jumps by a trace function do not get there, and before the tests have ended there is no secret to find in the process, its files or its descriptors.
What no test in the same interpreter can prove: a program written against this very channel can speak it, and one whose results
have an `==` of their own can please any assertion. Such a program forges the result of its own item, and can do nothing else.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache

from pkt.errors import SandboxError
from pkt.evaluation.channel import GRACE, START_SECONDS, Conversation
from pkt.evaluation.command import ENVIRONMENT, find_bubblewrap, folders, interpreter, sandboxed
from pkt.evaluation.seccomp import program as seccomp_filter
from pkt.pool import cores

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""To start a program."""
PATIENCE = 3
"""Wall time per CPU time: a busy machine must change no score, and a program that sleeps must end."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one program."""

    seconds: int = 3
    """CPU time, the interpreter's start included. The parent waits `PATIENCE` times as long."""
    memory: int = 1 << 30
    """Bytes of address space."""
    file: int = 1 << 20
    """Bytes of one file."""
    folder: int = 16 << 20
    """Bytes of all files, in /tmp."""
    open_files: int = 64
    output: int = 1 << 20
    """Bytes printed."""

    def words(self) -> list[str]:
        """What `inside.py` sets, soft and hard. CPU time ends hard a second after the signal, which may be ignored."""
        return [
            f"CPU={self.seconds}:{self.seconds + 1}",
            f"AS={self.memory}:{self.memory}",
            f"FSIZE={self.file}:{self.file}",
            f"NOFILE={self.open_files}:{self.open_files}",
            f"STACK={8 << 20}:{8 << 20}",
            "CORE=0:0",
        ]


@dataclass(frozen=True, slots=True)
class Program:
    """Code, and tests that run after it in the same names and end in an error where it is wrong."""

    code: str
    tests: str = ""
    limits: Limits = Limits()
    packages: tuple[str, ...] = ()
    """Installed packages that it may import beside the standard library."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a program ran to the end of its tests, and in a few words what stopped it."""

    passed: bool
    reason: str = ""


def run(program: Program, *, is_sandboxed: bool = True) -> Outcome:
    """Run one program to its end, or to a limit. No process and no file of it is left then. One that does not start is tried again.

    Args:
        is_sandboxed: False runs it as the user, with the user's files and network, under the same limits on resources; a process
            that it has moved to another session stays.

    Raises:
        SandboxError: it could not be started, which is never the program's fault.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return _run(program, is_sandboxed)
        except SandboxError as e:  # a full process table, say: hours of answers wait to be graded
            log.info("%s; tried again, %d of %d", e, attempt + 1, ATTEMPTS)
    return _run(program, is_sandboxed)


def _run(program: Program, is_sandboxed: bool) -> Outcome:
    with _started(program, is_sandboxed) as talk:
        fault = talk.hold()
    if not talk.has_started:
        said = talk.last_words.decode(errors="replace").strip().splitlines() or [f"nothing in {START_SECONDS} s"]
        raise SandboxError(f"a program could not be started: {said[-1]}")
    if fault:
        return Outcome(False, fault)
    return Outcome(True) if talk.is_complete else Outcome(False, talk.reason())


def run_all(programs: Sequence[Program], *, workers: int = 0, is_sandboxed: bool = True) -> list[Outcome]:
    """Run programs, `workers` at a time (0: one per core), and give their outcomes in the order given."""
    with ThreadPoolExecutor(workers or cores()) as pool:
        futures = [pool.submit(run, program, is_sandboxed=is_sandboxed) for program in programs]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:  # after an error or Ctrl-C, what has not begun never does
                future.cancel()


@cache
def check(is_sandboxed: bool = True) -> None:
    """Start one empty program, once per process.

    Raises:
        SandboxError: programs cannot be run here; with what was found, and what to do.
    """
    instead = "or pass --unsafe-no-sandbox: programs then run as you, with your files and network, at your own risk"
    if is_sandboxed and find_bubblewrap() is None:
        raise SandboxError(
            f"generated code runs in bubblewrap, and no `bwrap` was found; install it (`apt install bubblewrap` or `dnf install "
            f"bubblewrap`), {instead}"
        )
    try:
        outcome = run(Program("", limits=Limits(seconds=10)), is_sandboxed=is_sandboxed)
    except SandboxError as e:
        if not is_sandboxed:
            raise
        raise SandboxError(
            f"{find_bubblewrap()} makes no sandbox here ({e}); it needs unprivileged user namespaces, which the system or the "
            f"container must allow; allow them, {instead}"
        ) from None
    if not outcome.passed:
        raise SandboxError(f"an empty program failed here: {outcome.reason}; nothing can be graded on this machine")


@contextmanager
def _started(program: Program, is_sandboxed: bool) -> Iterator[Conversation]:
    """A program's process. Afterwards it is gone, with all that it has left."""
    with ExitStack() as kept, ExitStack() as given:
        inbox, to_program = os.pipe()
        given.callback(os.close, inbox)
        kept.callback(os.close, to_program)
        from_program, outbox = os.pipe()
        kept.callback(os.close, from_program)
        given.callback(os.close, outbox)
        ends, folder = [inbox, outbox], "/"
        command = [*interpreter(), str(inbox), str(outbox), *program.limits.words(), "--"]
        command += dict.fromkeys(str(place.parent) for place in folders(program.packages))
        if is_sandboxed:
            ends.append(_filter(given))
            command = sandboxed(command, program.limits.folder, ends[-1], program.packages)
        else:
            folder = kept.enter_context(tempfile.TemporaryDirectory(prefix="pkt-unsafe-", ignore_cleanup_errors=True))
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=ends,
                cwd=folder, env=ENVIRONMENT, start_new_session=True, bufsize=0,
            )  # fmt: skip
        except OSError as e:
            raise SandboxError(f"a program could not be started: {e}") from e
        kept.callback(_end, process, from_program, is_sandboxed)
        given.close()
        wall = PATIENCE * program.limits.seconds
        yield Conversation(
            process, to_program, from_program, program.code, program.tests, wall, program.limits.output
        )  # fmt: skip


def _filter(stack: ExitStack) -> int:
    """The end of a pipe that holds the filter of system calls."""
    found, to_fill = os.pipe()
    stack.callback(os.close, found)
    with os.fdopen(to_fill, "wb") as file:
        file.write(seccomp_filter())
    return found


def _end(process: subprocess.Popen[bytes], outbox: int, is_sandboxed: bool) -> None:
    """Kill what still runs, and wait until it has gone.

    The end of bubblewrap ends all in its namespace, and its first process inside holds the channel until then.
    """
    assert process.stdout is not None
    if process.poll() is None or not is_sandboxed:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    ends = select.poll()
    ends.register(outbox, select.POLLIN)
    while is_sandboxed:
        if not ends.poll(1000 * GRACE):
            raise SandboxError(f"a program could not be ended: its sandbox is still there after {GRACE:g} s")
        if not os.read(outbox, 65536):
            break
