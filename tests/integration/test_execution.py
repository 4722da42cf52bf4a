"""Leave to execute, what is said where programs cannot be run, the unsafe flag, and grades in order."""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from pkt.errors import SandboxError
from pkt.evaluation import sandbox, seccomp
from pkt.evaluation.execution import Execution, Grade, grade_programs
from pkt.evaluation.sandbox import Limits, Outcome, Program, run
from pkt.tasks.base import Example, Task
from pkt.tasks.formats import FORMATS

TASK = Task("mbpp", FORMATS["mbpp"], list, "toy")
ITEM = Example("mbpp/1", "q", "", "", "mbpp/1", tests="assert add(1) == 2")
RIGHT, WRONG = "def add(x):\n    return x + 1", "def add(x):\n    return x"


@pytest.fixture
def anew():
    """The check is made anew, and forgotten."""
    sandbox.check.cache_clear()
    yield
    sandbox.check.cache_clear()


def test_nothing_runs_without_leave(monkeypatch) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("something was started"))
    for execution in (Execution(), Execution(is_sandboxed=False)):
        with pytest.raises(SandboxError, match=r"^mbpp: .*pass --allow-code-execution") as e:
            grade_programs(TASK, [(ITEM, RIGHT)], execution)
        assert "\n" not in str(e.value)


def test_no_bubblewrap(monkeypatch, tmp_path: Path, anew) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match=r"no `bwrap` .*install it.*--unsafe-no-sandbox: .* at your own risk$"):
        Execution(allowed=True).check("mbpp")


def test_no_user_namespaces(monkeypatch, tmp_path: Path, anew) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho bwrap: No permissions to create new namespace >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    message = rf"{re.escape(str(fake))} makes no sandbox here \(.*No permissions .*user namespaces.*--unsafe-no-sandbox"
    with pytest.raises(SandboxError, match=message) as e:
        Execution(allowed=True).check("mbpp")
    assert "\n" not in str(e.value)
    with pytest.raises(SandboxError, match="could not be started: bwrap: No permissions"):  # never an item's fault
        run(Program(RIGHT))


def test_another_machine(monkeypatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "sparc")
    with pytest.raises(SandboxError, match="x86_64 and aarch64, and this machine is sparc"):
        seccomp.program()


def test_a_package_that_is_missing() -> None:
    with pytest.raises(SandboxError, match="import no_such_package, which is not installed"):
        run(Program("", packages=("no_such_package",)))


@pytest.mark.usefixtures("bubblewrap")
def test_grades_are_in_order() -> None:
    items = [(ITEM, WRONG if i % 2 else f"{RIGHT}\n```") for i in range(5)]
    right, wrong = Grade(1.0, ""), Grade(0.0, "AssertionError: assert add(1) == 2")
    assert grade_programs(TASK, items, Execution(allowed=True, workers=2)) == [right, wrong, right, wrong, right]
    assert grade_programs(TASK, [], Execution(allowed=True)) == []


@pytest.mark.usefixtures("bubblewrap")
def test_numpy_is_there_where_tests_import_it() -> None:
    code = "import numpy\nassert numpy.arange(4).sum() == 6"
    assert run(Program(code, packages=("numpy",))) == Outcome(True)
    assert run(Program(code)) == Outcome(False, "ModuleNotFoundError: No module named 'numpy'")
    assert not run(Program("import torch", packages=("numpy",))).passed


@pytest.mark.usefixtures("bubblewrap")
def test_packages_may_be_installed_below_the_temporary_folder(monkeypatch) -> None:
    """The program's own /tmp must not hide them."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        (Path(folder) / "toy_package").mkdir()
        (Path(folder) / "toy_package" / "__init__.py").write_text("NUMBER = 6\n")
        monkeypatch.syspath_prepend(folder)
        code = "import toy_package\nassert toy_package.NUMBER == 6"
        assert run(Program(code, packages=("toy_package",))) == Outcome(True)
        writing = "open('/tmp/free', 'w').write('x')\nimport toy_package\nopen(toy_package.__file__, 'w')"
        assert run(Program(writing, packages=("toy_package",))).reason.startswith("OSError")
        assert (Path(folder) / "toy_package" / "__init__.py").read_text() == "NUMBER = 6\n"


def test_without_a_sandbox_limits_and_outcomes_are_the_same(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))

    def unsafe(code: str, tests: str = "x = 1") -> Outcome:
        return run(Program(code, tests, Limits(seconds=1)), is_sandboxed=False)

    sandbox.check(False)
    assert unsafe(RIGHT, ITEM.tests) == Outcome(True)
    assert unsafe(WRONG, ITEM.tests) == Outcome(False, "AssertionError: assert add(1) == 2")
    assert unsafe("import os\nos._exit(0)") == Outcome(False, "exited with status 0 before its end")
    assert unsafe("x = bytearray(1 << 40)") == Outcome(False, "MemoryError")
    assert unsafe("while True: pass").reason.startswith("timeout")
    assert unsafe("while True: print('x' * 1000)") == Outcome(False, "printed more than 1048576 bytes")
    assert unsafe("import os\nos.environ['HOME2']").reason == "KeyError: 'HOME2'"
    assert unsafe(f"open({str(tmp_path / 'x')!r}, 'w')").passed  # that is what the flag means
    left = "import os\npid = os.fork()\nif pid == 0:\n    while True: pass\nopen({!r}, 'w').write(str(pid))\nopen('here', 'w')"
    unsafe(left.format(str(tmp_path / "pid")))
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.monotonic() < deadline
    assert os.listdir(folder) == []


def test_doctest_runs(bubblewrap) -> None:
    """It sets no trace function, and says so."""
    code = 'import doctest\ndef f():\n    """\n    >>> f()\n    1\n    """\n    return 1\nfound = doctest.testmod()'
    assert run(Program(code, "assert found == (0, 1)")) == Outcome(True)


def test_what_does_not_start_is_tried_again(bubblewrap, monkeypatch) -> None:
    started, tried = sandbox._started, []

    def failing(times: int):
        def start(*args):
            tried.append(args)
            if len(tried) <= times:
                raise SandboxError("a program could not be started: no room")
            return started(*args)

        tried.clear()
        monkeypatch.setattr(sandbox, "_started", start)

    failing(2)
    assert run(Program(RIGHT, ITEM.tests)) == Outcome(True)
    failing(3)
    with pytest.raises(SandboxError, match="no room"):
        run(Program(RIGHT, ITEM.tests))
    assert len(tried) == 3
