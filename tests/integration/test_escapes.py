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

import pkt
from pkt.evaluation.sandbox import Limits, Outcome, Program, run, run_all

pytestmark = pytest.mark.usefixtures("bubblewrap")

TESTS = "assert solve(20) == 6765"
HONEST = "def solve(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a"
marks = itertools.count(os.getpid() % 1000 * 4096, 4096)


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
    assert living(mark) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_honest_program_passes(attack) -> None:
    assert attack(HONEST) == Outcome(True)
    assert attack(HONEST.replace("0, 1", "0, 2")) == Outcome(False, f"AssertionError: {TESTS}")


REACHING = {
    "a socket": ("import socket\nsocket.socket()", "PermissionError"),
    "a unix socket": ("import socket\nsocket.socket(socket.AF_UNIX)", "PermissionError"),
    "a web page": ("import urllib.request as u\nu.urlopen('http://127.0.0.1')", "URLError"),
    "a name on the network": ("import socket\nsocket.getaddrinfo('localhost', 80)", "gaierror"),
    "the home folder": ("import os\nassert set(os.listdir({home!r})) - {shown!r}", "AssertionError|FileNotFoundError"),
    "a file of the user": ("open({secret!r}).read()", "FileNotFoundError"),
    "this repository": ("open({repository!r}).read()", "FileNotFoundError"),
    "passwords": ("open('/etc/passwd').read()", "FileNotFoundError"),
    "the environment": ("import os\nos.environ['PKT_SECRET']", "KeyError"),
    "the environment of others": ("open('/proc/1/environ').read()", "FileNotFoundError"),
    "its memory": ("open('/proc/self/mem', 'rb')", "FileNotFoundError"),
    "the system's settings": ("open('/proc/sys/kernel/core_pattern', 'w')", "FileNotFoundError"),
    "a disk": ("open('/dev/vda', 'rb')", "FileNotFoundError"),
    "a new disk": ("import os, stat\nos.mknod('/tmp/d', 0o600 | stat.S_IFBLK, os.makedev(8, 0))\nopen('/tmp/d', 'rb')", "PermissionError"),
    "the root, to write": ("open('/x', 'w')", "OSError: .*Read-only"),
    "the system, to write": ("open('/usr/lib/x', 'w')", "OSError: .*Read-only"),
    "the interpreter, to write": ("import os\nopen(os.__file__, 'a')", "OSError: .*Read-only"),
    "devices, to write": ("open('/dev/x', 'w')", "OSError: .*Read-only"),
    "shared memory": ("open('/dev/shm/x', 'w')", "FileNotFoundError"),
    "a folder of the user, to write": ("open({target!r}, 'w')", "FileNotFoundError"),
    "another root": ("import os\nos.chroot('/tmp')", "PermissionError"),
    "another user": ("import os\nos.setuid(0)", "(Permission|OS)Error"),
    "another process": ("import os\nos.fork()", "PermissionError"),
    "another program": ("import subprocess\nsubprocess.run(['/bin/true'])", "(Permission|FileNotFound|BlockingIO)Error"),
    "a shell": ("import os\nassert os.system('true') == 0", "AssertionError"),
    "a thread": ("import threading\nthreading.Thread(target=print).start()", "RuntimeError"),
    "the caller, to kill it": ("import os\nos.kill({pid}, 9)", "ProcessLookupError"),
    "the caller, to stop it": ("import os\nos.kill({pid}, 19)", "ProcessLookupError"),
    "more memory": ("import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1))", "ValueError|PermissionError"),
    "more time": ("import resource as r\nr.setrlimit(r.RLIMIT_CPU, (99, 99))", "ValueError|PermissionError"),
    "a trace of the tests": ("import sys\nsys.settrace(print)", "PermissionError"),
    "all objects": ("import gc\ngc.get_objects()", "PermissionError"),
    "kernel memory": ("import os\nos.memfd_create('x')", "PermissionError"),
}  # fmt: skip


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


LIMITED = {
    "an infinite loop": ("while True: pass", "timeout"),
    "a loop that catches all": ("while True:\n try:\n  while True: pass\n except BaseException: pass", "timeout"),
    "a loop deaf to signals": ("import signal\nfor n in range(1, 64):\n try: signal.signal(n, signal.SIG_IGN)\n except Exception: pass\nwhile True: pass", "killed|timeout"),
    "a long computation": ("x = 7 ** 10 ** 9", "timeout"),
    "a slow pattern": ("import re\nre.match('(a+)+$', 'a' * 40 + 'b')", "timeout"),
    "a sleeper": ("import time\ntime.sleep(1000)", "timeout: still running after 3 s$"),
    "one that waits for input": ("input()", "EOFError"),
    "a fork bomb": ("import os\nwhile True:\n try: os.fork()\n except OSError: pass", "timeout"),
    "a thread bomb": ("import threading\nwhile True:\n try: threading.Thread(target=print).start()\n except RuntimeError: pass", "timeout"),
    "a large object": ("x = bytearray(1 << 40)", "MemoryError"),
    "a large map": ("import mmap\nmmap.mmap(-1, 1 << 34)", "OSError"),
    "a large file": ("with open('/tmp/x', 'wb') as f:\n while True: f.write(b'x' * 65536)", "OSError: .*(large|space)"),
    "a flood of output": ("while True: print('x' * 1000)", "printed more than 1048576 bytes"),
    "a flood of errors": ("import os\nwhile True: os.write(2, b'x' * 65536)", "printed more than"),
    "a flood of descriptors": ("import os\nwhile True: os.dup(0)", "OSError: .*open files"),
    "a crash": ("import ctypes\nctypes.string_at(0)", "crashed .SIGSEGV"),
    "deep recursion": ("def f(): return f()\nf()", "RecursionError"),
    "very deep recursion": ("import sys\nsys.setrecursionlimit(10**9)\nclass A:\n def __repr__(self): return repr([self])\nrepr(A())", "crashed|MemoryError|RecursionError|timeout"),
    "very deep code": ("x = " + "(" * 10000 + ")" * 10000, "SyntaxError|MemoryError|RecursionError"),
    "all processes killed": ("import os\nos.kill(-1, 9)\nos.kill(os.getppid(), 9)", "NameError|ProcessLookupError"),
    "suicide": ("import os\nos.kill(os.getpid(), 9)", "killed"),
    "stopping itself": ("import os\nos.kill(os.getpid(), 19)", "timeout"),
    "a daemon": ("import os\nif os.fork() == 0:\n os.setsid()\n while True: pass", "PermissionError"),
}  # fmt: skip


LONG = (
    "a loop that catches all",
    "a loop deaf to signals",
    "a long computation",
    "a slow pattern",
    "a thread bomb",
    "stopping itself",
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in LIMITED])
def test_what_has_no_end_is_ended(name: str, attack) -> None:
    code, reason = LIMITED[name]
    outcome = attack(code, seconds=1)
    assert not outcome.passed
    assert re.match(reason, outcome.reason), outcome.reason


FORGING = {
    "nothing": "",
    "printing": "print('passed', True, 1.0, 'SPT', 'OK', flush=True)",
    "printing the channel's letters everywhere": "import os\nfor fd in range(64):\n try: os.write(fd, b'SPT' + b'0' * 32)\n except OSError: pass",
    "a letter too early": "import os\nfor fd in range(3, 64):\n try: os.write(fd, b'P')\n except OSError: pass",
    "os._exit": "import os\nos._exit(0)",
    "os._exit in the tests": "import os\ndef solve(n): os._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "sys.exit in the tests": "import sys\ndef solve(n): sys.exit(0)",
    "SystemExit": "raise SystemExit",
    "SystemExit without a number": "def solve(n): raise SystemExit(None)",
    "KeyboardInterrupt": "def solve(n): raise KeyboardInterrupt",
    "a signal": "import os\ndef solve(n): os.kill(os.getpid(), 15)",
    "a handler for signals": "import os, signal\nsignal.signal(15, lambda *_: os._exit(0))\nos.kill(os.getpid(), 15)",
    "an alarm": "import os, signal\nsignal.signal(14, lambda *_: os._exit(0))\nsignal.setitimer(0, 0.01)\nwhile True: pass",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)",
    "a finalizer": "import os\nclass A:\n def __del__(self): os._exit(0)\nx = A()",
    "an exception hook": "import os, sys\nsys.excepthook = lambda *_: os._exit(0)",
    "an exception that exits": "import os\nclass E(Exception):\n def __str__(self): os._exit(0)\ndef solve(n): raise E",
    "an exception that raises": "class E(Exception):\n def __str__(self): raise SystemExit(0)\ndef solve(n): raise E",
    "an exception that lies": "class E(Exception):\n def __str__(self): return 'SPT'\nE.__name__ = 'T'\ndef solve(n): raise E",
    "its own AssertionError": "import builtins\nclass AssertionError(Exception): pass\nbuiltins.AssertionError = AssertionError\ndef solve(n): return 0",
    "no exceptions": "import builtins\nbuiltins.BaseException = builtins.Exception = builtins.AssertionError = int\ndef solve(n): return 0",
    "its own exec": "import builtins\nbuiltins.exec = builtins.eval = builtins.compile = lambda *_, **__: None\ndef solve(n): return 0",
    "its own everything": "import builtins\nfor n in dir(builtins):\n if n not in ('__import__', '__build_class__'): setattr(builtins, n, lambda *_, **__: True)\nsolve = lambda n: 0",
    "no builtins": "import builtins\nvars(builtins).clear()",
    "other builtins": "__builtins__ = {'AssertionError': int, 'exec': print}\ndef solve(n): return 0",
    "its own exit": "import builtins, os\nbuiltins.exit = builtins.quit = lambda *_: os._exit(0)\nexit()",
    "its own posix": "import posix, os, sys\nposix.write = os.write = lambda fd, data: 32\nposix._exit = os._exit = lambda n: None\nposix.read = os.read = lambda *_: b''\ndef solve(n): return 0",
    "its own modules": "import sys, types\nfor n in list(sys.modules): sys.modules[n] = types.ModuleType(n)\ndef solve(n): return 0",
    "no modules": "import sys\nsys.modules.clear()",
    "closed descriptors": f"import os\n{HONEST}\nos.closerange(0, 64)",
    "descriptors to nowhere": f"import os\n{HONEST}\nd = os.open('/dev/null', 2)\nfor fd in range(64):\n if fd != d: os.dup2(d, fd)",
    "exchanged descriptors": "import os\nr, w = os.pipe()\nos.write(w, b'x' * 32)\nfor fd in range(3, r): os.dup2(r, fd)\ndef solve(n): return 0",
    "frames": "import sys\ndef solve(n):\n f = sys._getframe()\n while f:\n  print(f.f_locals, f.f_globals)\n  f.f_locals.update(token=b'', said=b'SPT', passed=True)\n  f = f.f_back",
    "arguments": "import sys\nprint(sys.argv, sys.orig_argv)",
    "a walk for bytes": "import sys\ndef solve(n):\n import os\n f = sys._getframe()\n while f:\n  for v in [*f.f_locals.values(), *f.f_code.co_consts]:\n   if isinstance(v, bytes):\n    for fd in range(64):\n     try: os.write(fd, v)\n     except OSError: pass\n  f = f.f_back",
    "a jump over the tests": "import sys\ndef solve(n):\n def t(f, *a):\n  f.f_lineno += 1\n  return t\n sys._getframe(1).f_trace = t\n sys.settrace(t)\n return 0",
    "a jump without a trace": "import sys\ndef solve(n):\n sys._getframe(1).f_lineno = 2\n return 0",
    "another program": "import os, sys\nos.execv(sys.executable or sys.orig_argv[0], [sys.orig_argv[0], '-c', 'pass'])",
    "an open string": "x = '''",
    "an open bracket": "x = (",
    "a line that goes on": "x = 1 if True else \\",
    "an open block": "if False:",
    "a block comment": f"{HONEST.replace('return a', 'return 0')}\nr'''",
    "the tests as text": "import linecache, sys\nprint(open(__file__).read())",
    "its own main": "import sys, os\nsys.modules['__main__'].__dict__.clear()\nos._exit(0)",
    "an audit hook": "import sys\ndef h(e, a): raise SystemExit(0)\nsys.addaudithook(h)",
    "a small stack": "import sys\ndef solve(n): sys.setrecursionlimit(5)",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGING)
def test_success_is_not_forged(name: str, attack) -> None:
    outcome = attack(FORGING[name], f"{TESTS}\nx = 1")
    assert not outcome.passed
    assert outcome.reason


def test_the_tests_are_not_there_while_the_program_defines(attack) -> None:
    reads = """
import os, sys
for fd in range(3, 64):
    try:
        os.set_blocking(fd, False)
        assert not os.read(fd, 99), "a descriptor"
    except OSError:
        pass
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


def test_same_program_same_order_of_sets(attack) -> None:
    code = "x = list({str(i) for i in range(50)})\nraise ValueError(x)"
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


FLOODS = {
    "memory, slowly": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "MemoryError"),
    "memory, caught": ("x = []\nwhile True:\n try: x.append(bytearray(1 << 20))\n except MemoryError: pass", "timeout"),
    "small files": ("i = 0\nwhile True:\n open(f'/tmp/{i}', 'w').write('x' * 4096)\n i += 1", "timeout|OSError: .*space"),
    "empty files": ("i = 0\nwhile True:\n open(f'/tmp/{i}', 'w').close()\n i += 1", "timeout|OSError: .*space"),
    "folders": ("import os\ni = 0\nwhile True:\n os.mkdir(f'/tmp/{i}')\n i += 1", "timeout|OSError: .*space"),
    "300 MB of output": ("import os\nfor _ in range(300): os.write(1, b'x' * (1 << 20))", "printed more than"),
    "300 MB through the channel": ("import os\nfor fd in range(3, 64):\n for _ in range(300):\n  try: os.write(fd, b'x' * (1 << 20))\n  except OSError: break", "broke the result channel"),
    "pipes": ("import os\nwhile True:\n r, w = os.pipe()\n os.set_blocking(w, False)\n os.write(w, b'x' * (1 << 20))", "OSError"),
    "a compressed bomb": ("import zlib\nx = zlib.compress(bytes(1 << 28))\nx = [zlib.decompress(x) for _ in range(99)]", "MemoryError|timeout"),
}  # fmt: skip


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
