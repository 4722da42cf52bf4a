"""What surrounds a program in its own process: `sandbox.py` starts an interpreter with this text.

It talks over two pipes. It writes `S` when its limits stand; reads the program, runs it, writes `P`; reads the tests, runs them in the
same names, writes `T`; reads a token and writes it back; then it is gone, without finalizers. An error is `E` and one line.
Nothing here is a secret, and no token is in this process before the tests have run. Everything that is used after the program
has started is a local variable, for the program may put anything in the place of a builtin.
"""

import posix
import resource
import sys
from types import ModuleType

NAME = "program"
"""Not `__main__`: what stands under `if __name__ == "__main__"` is no part of an answer, nor is it in the protocol."""
FORBIDDEN = frozenset(
    ("sys.settrace", "sys.setprofile", "sys.monitoring.register_callback", "gc.get_objects", "gc.get_referrers")
)
"""Audit events: a trace function can jump over the rest of the tests, and no answer needs one."""


def _limit(words: list[str]) -> None:
    """Set `NAME=SOFT:HARD`, or less where less is allowed."""
    for word in words:
        name, _, values = word.partition("=")
        kind = getattr(resource, f"RLIMIT_{name}")
        allowed = resource.getrlimit(kind)[1]
        soft, hard = (n if allowed == resource.RLIM_INFINITY else min(n, allowed) for n in map(int, values.split(":")))
        resource.setrlimit(kind, (soft, hard))


def _forbid() -> None:
    def hook(event: str, args: object, forbidden: frozenset[str] = FORBIDDEN, error: type = PermissionError) -> None:
        if event in forbidden:
            raise error(event + " is not allowed here")

    settrace = sys.settrace

    def refused_unless_none(function: object) -> None:
        if function is not None:  # to set none, as doctest does, is no trace
            settrace(function)  # type: ignore[arg-type]

    sys.settrace = refused_unless_none
    sys.addaudithook(hook)


def _main() -> None:
    inbox, outbox = int(sys.argv[1]), int(sys.argv[2])
    at = sys.argv.index("--")
    _limit(sys.argv[3:at])
    sys.path += sys.argv[at + 1 :]
    sys.argv[:] = [NAME]
    read, write, leave, run, build, size, text = posix.read, posix.write, posix._exit, exec, compile, len, str
    base, number, kind_of = BaseException, int, type
    module = ModuleType(NAME)
    names = module.__dict__
    sys.modules["__main__"] = sys.modules[NAME] = module
    _forbid()
    write(outbox, b"S")
    for unit, mark in (("program", b"P"), ("tests", b"T")):
        left = number.from_bytes(read(inbox, 8), "big")
        parts: list[bytes] = []
        while left:
            parts.append(read(inbox, left))
            left -= size(parts[-1])
            if not parts[-1]:  # nobody is left to answer
                leave(1)
        try:
            run(build(b"".join(parts).decode(), unit, "exec", 0, True), names)
        except base as error:
            line, trace = 0, error.__traceback__
            while trace is not None:
                if trace.tb_frame.f_code.co_filename == unit:
                    line = trace.tb_lineno
                trace = trace.tb_next
            try:
                words = kind_of(error).__name__ + "\0" + text(error)[-2000:]
            except base:
                words = "an error that has no words\0"
            write(outbox, b"E" + (unit + "\0" + text(line) + "\0" + words).encode("utf-8", "replace"))
            leave(1)
        write(outbox, mark)
    write(outbox, read(inbox, 32))
    leave(0)


if __name__ == "__main__":
    _main()
