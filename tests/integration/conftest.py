"""The command line on a tiny pair and a task in a folder."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import certified_folders
import pytest
import yaml
from run_folders import make_data

from pkt import cli
from pkt.files import write_text
from pkt.tasks.formats import FORMATS


@dataclass(frozen=True)
class Result:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str

    def refuses(self, *parts: str) -> None:
        """Fails unless the command ended with 2 and said one line, which holds the parts."""
        assert self.code == 2, (self.out, self.err)
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        assert "Traceback" not in self.err
        for part in parts:
            assert part in self.err


@pytest.fixture
def pkt(monkeypatch, capfd, short_answers) -> Iterator[Callable[..., Result]]:
    """`pkt("run", recipe, "--out", folder)`: the entry point, in this process."""
    monkeypatch.setenv("COLUMNS", "200")
    level = logging.getLogger("pkt").level

    def run(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["pkt", *map(str, args)])
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = e.code
        return Result(code, *capfd.readouterr())

    yield run
    logging.getLogger("pkt").setLevel(level)


@pytest.fixture(scope="session")
def _short() -> object:
    return replace(FORMATS["gsm8k"], max_new_tokens=6)


@pytest.fixture
def short_answers(monkeypatch, _short) -> None:
    """Random models never end an answer: stop them soon."""
    monkeypatch.setitem(FORMATS, "gsm8k", _short)


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory) -> Path:
    """Folder with a small gsm8k task, not to be changed."""
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def data(tmp_path) -> Path:
    """The same, for a test to change."""
    return make_data(tmp_path / "data")


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, shared_data, make_lm) -> Callable[..., Path]:
    """`recipe(seed=1)`: the file of the recipe `tiny` for the tiny pair and the small task, with sections changed."""

    def write(**sections: object) -> Path:
        content = {
            "source": make_lm("llama", "source").name,
            "target": make_lm("llama", "target").name,
            "task": {"name": "gsm8k", "data": str(shared_data), "prompt_style": "plain"},
            "method": {"name": "laten", "init": "fan_in", "lr": 1e-2, "norm_weight": 1.0, "steps": 2},
            **sections,
        }
        path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def _finished(tmp_path_factory, recipe, _short) -> Path:
    from pkt.execute import execute
    from pkt.machine import Machine
    from pkt.recipe_files import load_recipe

    folder = tmp_path_factory.mktemp("finished") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, "gsm8k", _short)
        execute(load_recipe(str(recipe())), folder, Machine("cpu"))
    return folder


@pytest.fixture
def finished(_finished, tmp_path) -> Path:
    """A copy of the folder of a finished run of `recipe()`."""
    return Path(shutil.copytree(_finished, tmp_path / "finished"))


@pytest.fixture(scope="session")
def _certified(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("certified") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pkt.report.html.write", lambda folder: write_text(folder / "report.html", "page"))
        certified_folders.make(folder)
    return folder


@pytest.fixture
def certified(_certified, tmp_path) -> Path:
    """A copy of the folder of a small certificate, with the times of its files."""
    return Path(shutil.copytree(_certified, tmp_path / "certified"))


@pytest.fixture
def plain_page(monkeypatch) -> None:
    """The page costs more time than a small certificate."""
    monkeypatch.setattr("pkt.report.html.write", lambda folder: write_text(folder / "report.html", "page"))
