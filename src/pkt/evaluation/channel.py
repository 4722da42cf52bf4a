"""The parent's side of the conversation with a running program; `inside.py` is the other."""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass, field

START_SECONDS = 60
"""In which a program must have started; after that the machine is at fault, not the program."""
TOKEN_BYTES = 32
MAX_HEARD = 16384
"""Bytes that the channel may carry; an error's line is shorter."""
MAX_WORDS = 200
"""Characters of a reason."""
GRACE = 5.0
"""Seconds in which what was killed must be gone."""
STARTED, CODE_ENDED, TESTS_ENDED = b"S", b"SP", b"SPT"


def message(text: str) -> bytes:
    """A text as it is sent."""
    data = text.encode("utf-8", "replace")
    return len(data).to_bytes(8, "big") + data


@dataclass(slots=True)
class Conversation:
    """One program's process, what it is to be told, and what it has said."""

    process: subprocess.Popen[bytes]
    inbox: int
    """The parent's end of what the program reads."""
    outbox: int
    """The parent's end of what it answers with."""
    code: str
    tests: str
    wall: float
    max_output: int
    waiting: bytearray = field(default_factory=bytearray)
    heard: bytearray = field(default_factory=bytearray)
    printed: int = 0
    last_words: bytes = b""
    token: bytes = field(default_factory=lambda: secrets.token_bytes(TOKEN_BYTES))
    stage: bytes = b""
    """What was heard when the program was last told something."""

    @property
    def has_started(self) -> bool:
        return bool(self.heard)

    @property
    def is_complete(self) -> bool:
        """Whether the end of the tests was reached, nothing else was said, and the process ended well."""
        return bytes(self.heard) == TESTS_ENDED + self.token and self.process.returncode == 0

    def hold(self) -> str:
        """Talk until the program has ended, and say what the parent had to end it for, or nothing."""
        assert self.process.stdout is not None
        output = self.process.stdout.fileno()
        for end in (self.inbox, self.outbox, output):
            os.set_blocking(end, False)
        self.waiting += message(self.code)
        deadline = time.monotonic() + START_SECONDS
        with selectors.DefaultSelector() as open_ends:
            open_ends.register(self.outbox, selectors.EVENT_READ)
            open_ends.register(output, selectors.EVENT_READ)
            open_ends.register(self.inbox, selectors.EVENT_WRITE)
            while self.outbox in open_ends.get_map() or output in open_ends.get_map():
                left = deadline - time.monotonic()
                if left <= 0:
                    return self._overdue()
                has_ended = self.process.poll() is not None
                for key, _ in open_ends.select(0 if has_ended else min(left, 0.1)):
                    if key.fd == self.inbox:
                        self._tell(open_ends)
                    elif not (data := _read(key.fd)):
                        open_ends.unregister(key.fd)
                    elif key.fd == output:
                        self.printed += len(data)
                        self.last_words = (self.last_words + data)[-2000:]
                    else:
                        had_started = self.has_started
                        self.heard += data
                        if not had_started:
                            deadline = time.monotonic() + self.wall
                        self._answer(open_ends)
                if self.printed > self.max_output:
                    return f"printed more than {self.max_output} bytes"
                if not self._is_sound():
                    return "broke the result channel"
                if has_ended:
                    return ""  # whatever holds its pipes now is no part of the program
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return self._overdue()
        return ""

    def reason(self) -> str:
        """Why a program that ended by itself has not passed."""
        said, code = bytes(self.heard), self.process.returncode
        for stage in (CODE_ENDED, STARTED):
            if said.startswith(stage + b"E"):
                return self._error(said[len(stage) + 1 :].decode(errors="replace"))
        if code < 0 or code > 128:
            return _ended_by(-code if code < 0 else code - 128)
        return f"exited with status {code} before its end"

    def _is_sound(self) -> bool:
        """Whether no more was said than belongs to some course of the conversation."""
        said = bytes(self.heard)
        is_error = said.startswith((STARTED + b"E", CODE_ENDED + b"E")) and len(said) <= MAX_HEARD
        return is_error or (TESTS_ENDED + self.token).startswith(said)

    def _error(self, words: str) -> str:
        unit, line, kind, text = [*words.split("\0"), "", "", "", ""][:4]
        last = (text.strip().splitlines() or [""])[-1]
        if kind == "SystemExit":
            return "exited before its end (SystemExit)"
        lines = self.tests.split("\n")
        if unit == "tests" and line.isdecimal() and 0 < int(line) <= len(lines) and not last:
            last = lines[int(line) - 1].strip()
        return _plain(f"{kind}: {last}" if last else kind)

    def _answer(self, open_ends: selectors.BaseSelector) -> None:
        """Send what comes next, once the program has said exactly what it must have."""
        said = bytes(self.heard)
        if said == self.stage:
            return
        self.stage = said
        if said == CODE_ENDED:
            self.waiting += message(self.tests)
        elif said == TESTS_ENDED:
            self.waiting += self.token
        if self.waiting and self.inbox not in open_ends.get_map():
            open_ends.register(self.inbox, selectors.EVENT_WRITE)

    def _tell(self, open_ends: selectors.BaseSelector) -> None:
        try:
            del self.waiting[: os.write(self.inbox, self.waiting)]
        except BlockingIOError:
            return
        except OSError:  # it reads no more
            self.waiting.clear()
        if not self.waiting:
            open_ends.unregister(self.inbox)

    def _overdue(self) -> str:
        return f"timeout: still running after {self.wall:g} s" if self.has_started else ""


def _read(end: int) -> bytes:
    try:
        return os.read(end, 65536)
    except OSError:
        return b""


def _ended_by(number: int) -> str:
    if number == signal.SIGXCPU:
        return "timeout: its CPU time was used up"
    if number == signal.SIGKILL:
        return "killed (SIGKILL)"
    try:
        return f"crashed ({signal.Signals(number).name})"
    except ValueError:
        return f"exited with status {number + 128} before its end"


def _plain(text: str) -> str:
    """One printable line of bounded length: what it holds was chosen by the program."""
    return "".join(c if c.isprintable() else "?" for c in text)[:MAX_WORDS]
