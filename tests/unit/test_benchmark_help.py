"""Every script in `benchmarks/` tells what it does when it is asked to, and does nothing else."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from pkt.evaluation import sandbox

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_help_runs_nothing(script: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sandbox, "check", lambda: pytest.fail("the benchmark was run"))
    monkeypatch.setattr("sys.argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(script.parent)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert shown.startswith(f"usage: {script.name}")
    assert "show this help" in shown
