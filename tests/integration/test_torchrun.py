"""Several processes, as torchrun starts them: one run folder, one adapter, half the batch each."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from run_folders import message_row, write_lines

from pkt.inject.delta import Delta

METHOD = {
    "name": "seeking", "rank": 4, "epochs": 2, "batch_size": 4, "micro_batch": 2, "lr": 1e-3, "dropout": 0.0, "embeddings": False,
}  # fmt: skip


RESUMED = """
import sys
from pathlib import Path

import torch

import pkt.align.trainer
from pkt.align.finetune import FinetuneConfig
from pkt.align.full import tune_all
from pkt.models.lm import LM
from pkt.processes import is_first, told_by_first
from pkt.tasks.losses import IGNORED, Labelled

torch.set_num_threads(1)
told_by_first(is_first(), cpu=True)
lm = LM(sys.argv[1], device="cpu", memo=Path(sys.argv[2]))
examples = [Labelled(str(i), [5 + i] * 4 + [6, 7, 8 + i], [IGNORED] * 4 + [6, 7, 8 + i]) for i in range(9)]
config = FinetuneConfig(epochs=2, batch_size=4, micro_batch=2, lr=1e-3, save_steps=1, schedule="constant")


class Power(pkt.align.trainer.Reports):
    at = 0

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.at:
            raise KeyboardInterrupt


pkt.align.trainer.Reports = Power
for Power.at in (0, 5, 0):  # whole, and then stopped in the second epoch and continued
    try:
        delta = tune_all(lm, examples, config, torch.Generator().manual_seed(0))
    except KeyboardInterrupt:
        continue
    if is_first():
        with open(sys.argv[3], "a") as file:
            print(*(h["loss"] for h in delta.provenance["history"]), file=file)
"""

WITNESS = """
import atexit
import os
import sys
from pathlib import Path

from torch import distributed

words = Path(sys.argv[1]) / os.environ["RANK"]
atexit.register(lambda: words.with_suffix(".end").write_text("abandoned" if distributed.is_initialized() else "left"))  # runs last
from pkt.processes import is_first, told_by_first

words.with_suffix(".told").write_text(str(told_by_first(is_first(), cpu=True)))
"""


def torchrun(*arguments):
    return launched("-m", "pkt", *arguments)


def launched(*program):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *map(str, program)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": "0"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)


@pytest.fixture
def uneven(data):
    """A task with one example more than two processes read in a step, so that one of them has none left for the last step."""
    write_lines(data / "splits" / "gsm8k" / "train.jsonl", [message_row("glims " * i, i) for i in range(1, 6)])
    return {"name": "gsm8k", "data": str(data), "prompt_style": "plain"}


def test_two_processes_train_what_one_does(recipe, uneven, pkt, tmp_path):
    file = recipe(method=METHOD, task=uneven, evaluate={"arms": []})
    done = torchrun("run", file, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("report:") == 1
    assert pkt("run", file, "--out", tmp_path / "one").code == 0
    one, two = (Delta.load(tmp_path / name / "delta.safetensors") for name in ("one", "two"))
    losses = [[h["loss"] for h in delta.provenance["history"]] for delta in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for key, change in one.changes.items():
        torch.testing.assert_close(two.changes[key].entries(), change.entries(), rtol=0.2, atol=2e-3)
    again = torchrun("run", file, "--out", tmp_path / "two")
    assert again.returncode == 0, again.stderr[-2000:]
    assert "Traceback" not in done.stderr + again.stderr
    assert "align: already done" in again.stderr


def test_two_processes_continue_where_they_stopped(tiny_target, tmp_path):
    """In the middle of an epoch whose last step has fewer examples than the processes hold at a time."""
    (tmp_path / "resumed.py").write_text(RESUMED)
    losses = tmp_path / "losses"
    done = launched(tmp_path / "resumed.py", tiny_target.name, tmp_path / "memo", losses)
    assert done.returncode == 0, done.stderr[-2000:]
    whole, continued = (line.split() for line in losses.read_text().splitlines())
    assert len(whole) == 6
    assert continued == whole


@pytest.mark.slow
@pytest.mark.parametrize("lmbda", [0.0, 1.0])
def test_two_processes_distil_what_one_does(recipe, uneven, pkt, tmp_path, lmbda):
    """Also on samples, at a temperature at which they do not depend on chance."""
    method = {
        "name": "gkd",
        "lmbda": lmbda,
        "temperature": 1e-3,
        "max_new_tokens": 6,
        "epochs": 2,
        "batch_size": 4,
        "micro_batch": 2,
        "lr": 1e-3,
    }
    file = recipe(method=method, task=uneven, evaluate={"arms": []})
    done = torchrun("run", file, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-2000:]
    assert pkt("run", file, "--out", tmp_path / "one").code == 0
    one, two = (Delta.load(tmp_path / name / "delta.safetensors") for name in ("one", "two"))
    losses = [[h["loss"] for h in delta.provenance["history"]] for delta in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_processes_leave_their_group_before_they_end(tmp_path):
    """One that is still in it at the interpreter's end aborts now and then."""
    (tmp_path / "witness.py").write_text(WITNESS)
    done = launched(tmp_path / "witness.py", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    words = {file.name: file.read_text() for file in tmp_path.glob("[01].*")}
    assert words == {"0.told": "True", "1.told": "True", "0.end": "left", "1.end": "left"}


def test_other_commands_refuse_several_processes(pkt, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = pkt("certify", recipe(method=METHOD), "--out", tmp_path / "c")
    assert refused.code == 2
    assert "`pkt certify` is one process, but the launcher started 2; start it without `torchrun`" in refused.err
    assert not (tmp_path / "c").exists()
