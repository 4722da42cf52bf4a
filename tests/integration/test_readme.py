"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import pkt
from pkt.recipe_files import RECIPES, load_recipe
from pkt.report.table import ARMS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    names: dict = {}
    exec(code, names)
    assert {line["tier"] for line in names["scores"]} >= {"known", "new"}
    assert names["delta"].norm() > 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 4


def test_recipe(tmp_path):
    (text,) = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(text)
    assert load_recipe(str(tmp_path / "mine.yaml")).source.name == "meta-llama/Llama-2-13b-chat-hf"


def test_commands_name_what_exists():
    from typer.main import get_command

    from pkt.cli import app

    known = set(get_command(app).commands)
    for command, argument in re.findall(r"\bpkt ([a-z]+) +([a-z0-9_]+)?", "\n".join(blocks(""))):
        assert command in known
        if command in ("run", "plan"):
            assert (RECIPES / f"{argument}.yaml").is_file()


def test_the_table_has_the_columns_of_the_demo():
    header = next(line for line in README.split("\n") if line.startswith("tier "))
    assert header.split() == ["tier", *ARMS, "change", "chance", "items", "units"]


def test_importing_the_package_loads_no_torch():
    code = "import pkt, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pkt.nothing
    assert set(pkt.__all__) <= set(dir(pkt))


def test_every_function_of_the_interface_works_twice():
    """A name must not turn into the module of the same name once that is imported."""
    target, task = pkt.LM("nano/target", dtype="float32"), pkt.task("nano/gsm8k")
    first, second = (pkt.evaluate(target, task, style="plain", limit=2) for _ in range(2))
    assert first == second
    for name in pkt.__all__:
        assert callable(getattr(pkt, name))


def test_a_delta_prints_in_one_line(tiny_target):
    assert repr(pkt.Delta({})) == "Delta(0 tensors, 0 entries, norm 0)"
