"""Can the certificate tell? Methods whose truth is planted, certified again and again: `python benchmarks/planted_truth.py`.

- transfer: the exact difference of a source of the target's shape that was fine-tuned on the new units; and, across scale, the
  change of the lineage sources through the inverse of their expansion. All must come out as transfer.
- null: LaTen fed with noise that the source's bytes only seed, so that the arms differ and are exchangeable; and a method that
  does not look at its source. At most 11 of 200 may come out as transfer. The tier is one that tuning lifts (`skill`), so that
  the comparison with the target does not decide alone.
- harm: rows buried in noise must raise the flag.

Prints the rates with the bars, and exits with 1 where one is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Generator

from pkt.config import Recipe
from pkt.errors import UnsupportedModelError
from pkt.evidence import certify
from pkt.inject.changes import Dense, Lines
from pkt.inject.delta import Delta, Key
from pkt.machine import Machine
from pkt.methods.base import MethodConfig, fork, method
from pkt.methods.laten import LatenConfig, laten
from pkt.models.controls import RandomSource
from pkt.models.families import PARTS
from pkt.models.lm import LM
from pkt.nano.build import expanded
from pkt.nano.expansion import contract
from pkt.pool import Pool, cores
from pkt.tasks.base import Task
from pkt.tasks.losses import encode_all, example_losses
from pkt.tasks.sources import task as find_task

LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
WHOLE = ("embed", "unembed", "final_norm")
STYLE = "plain"


class NoOptions(MethodConfig):
    """A planted method has none."""


def anything(source: LM, target: LM, cfg: Any) -> None:
    """Needs nothing of a pair."""


def same_shape(source: LM, target: LM, cfg: Any) -> None:
    """Needs equal sizes."""
    if source.dims != target.dims:
        raise UnsupportedModelError(f"{source.name} and {target.name} differ in shape")


def names(target: LM) -> dict[Key, str]:
    """The tensors that a planted transfer changes: all but the norms within layers."""
    found: dict[Key, str] = {
        (layer, part): f"{target.family.module(part, layer)}.weight"
        for layer in range(target.dims.layers)
        for part in LINEAR
    }
    return found | {(None, part): f"{getattr(target.family, part)}.weight" for part in WHOLE}


@method(config=NoOptions, kind="planted", paper="", requires=same_shape, splits=())
def planted_difference(source: LM, target: LM, task: Task, cfg: NoOptions, gen: Generator, *, style: str) -> Delta:
    """What a fine-tuned copy of the target differs in."""
    return Delta({key: Dense(source.tensor(name) - target.tensor(name)) for key, name in names(target).items()})


@method(
    config=NoOptions,
    kind="planted",
    paper="",
    requires=anything,
    splits=(),
    without={"self_source": "the target is no expansion of itself"},
)
def planted_expansion(source: LM, target: LM, task: Task, cfg: NoOptions, gen: Generator, *, style: str) -> Delta:
    """What a lineage source learnt, through the inverse of its expansion."""
    before = before_training(source.checkpoint.folder, target)
    changes = {name: source.tensor(name) - before[name] for name in names(target).values()}
    mapped = contract(changes)
    return Delta({key: Dense(mapped[name]) for key, name in names(target).items()})


@cache
def before_training(folder: Path, target: LM) -> dict[str, torch.Tensor]:
    """The weights of a lineage source right after its expansion."""
    noise = json.loads((folder / "expansion.json").read_text())["noise"]
    with target.loaded() as model:
        return expanded(model, noise).state_dict()  # type: ignore[arg-type]


@method(config=NoOptions, kind="planted", paper="", requires=anything, splits=("extract", "align"))
def planted_null(source: LM, target: LM, task: Task, cfg: NoOptions, gen: Generator, *, style: str) -> Delta:
    """LaTen fed with noise that is seeded by the source's bytes: tuning, whatever the source."""
    total = hashlib.sha256()
    for part in PARTS:
        total.update(source.slices(part, {0: [0, 1, 2, 3]})[0].numpy().tobytes())
    seed = int.from_bytes(total.digest()[:6]) ^ int(torch.randint(2**40, (), generator=fork(gen)))
    options = LatenConfig(steps=6, lr=1e-2, init="fan_in")
    return laten(RandomSource(target, seed), target, task, options, fork(gen), style=style)


@method(config=NoOptions, kind="planted", paper="", requires=anything, splits=())
def planted_deaf(source: LM, target: LM, task: Task, cfg: NoOptions, gen: Generator, *, style: str) -> Delta:
    """A small random change that has nothing to do with any source."""
    return random_rows(target, gen, 0.02)


@method(config=NoOptions, kind="planted", paper="", requires=anything, splits=())
def planted_harm(source: LM, target: LM, task: Task, cfg: NoOptions, gen: Generator, *, style: str) -> Delta:
    """Noise of three times the weights on half of the FFN rows of every layer."""
    return random_rows(target, gen, 3.0)


def random_rows(target: LM, gen: Generator, size: float) -> Delta:
    """Noise on half of the rows of `up` in every layer, its standard deviation `size` times that of the weights."""
    rows, changes = target.dims.ffn // 2, {}
    for layer in range(target.dims.layers):
        scale = size * target.tensor(f"{target.family.module('up', layer)}.weight").std()
        index = torch.randperm(target.dims.ffn, generator=gen)[:rows].sort().values
        changes[layer, "up"] = Lines(index, scale * torch.randn(rows, target.dims.width, generator=gen), 0)
    return Delta(changes)


def finetuned_target(folder: Path, task_name: str, steps: int) -> Path:
    """The target, its linear maps trained on the test items about new units, among known ones: a source that knows them."""
    import shutil

    target, task = LM("nano/target", dtype="float32", device="cpu"), find_task(task_name)
    items = [e for e in task.split("test") if e.tier == "new"] * 2 + [
        e for e in task.split("test") if e.tier == "known"
    ]
    examples = encode_all(items, STYLE, target, loss_on_prompt=False)
    gen = Generator().manual_seed(0)
    with target.loaded() as model:
        trained = [
            model.get_submodule(name.removesuffix(".weight")).weight
            for (at, _), name in names(target).items()
            if at is not None
        ]
        for weight in trained:
            weight.requires_grad_()
        optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        for _ in range(steps):
            batch = [examples[i] for i in torch.randperm(len(examples), generator=gen)[:32].tolist()]
            example_losses(model, target, batch).mean().backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        after = {name: w.detach().clone() for name, w in model.state_dict().items()}
    shutil.copytree(target.checkpoint.folder, folder)
    assert load_file(folder / "model.safetensors").keys() == after.keys()
    save_file(after, folder / "model.safetensors", {"format": "pt"})
    return folder


def certificate_of(
    name: str, source: str, out: Path, repetition: int, *, task: str, tier: str = "new", limit: int = 20, seeds: int = 5
) -> dict[str, Any]:
    """One certificate of a planted method, with seeds and items of its own."""
    recipe = Recipe.model_validate(
        {
            "name": name,
            "source": source,
            "target": "nano/target",
            "task": {"name": task, "prompt_style": STYLE},
            "method": {"name": f"planted_truth:{name}"},
            "evaluate": {"limit": limit},
            "certificate": {"learning_rates": "recipe", "tier": tier, "seeds": seeds, "keep_deltas": False},
            "dtype": "float32",
            "seed": 1000 * repetition,
        }
    )
    return certify(recipe, out, Machine(device="cpu", workers=1))


def campaigns(finetuned: Path, repetitions: int) -> dict[str, tuple[Callable[..., dict[str, Any]], int]]:
    """Name -> (certificate of a folder and a repetition, repetitions)."""
    few = max(1, repetitions // 10)
    return {
        "transfer, same shape": (partial(certificate_of, "planted_difference", str(finetuned), task="nano/gsm8k"), few),
        "transfer, lineage-easy": (partial(certificate_of, "planted_expansion", "nano/lineage-easy", task="nano/gsm8k"), few),
        "transfer, lineage-hard": (partial(certificate_of, "planted_expansion", "nano/lineage-hard", task="nano/gsm8k"), few),
        "harm": (partial(certificate_of, "planted_harm", "nano/source", task="nano/gsm8k"), few),
        "null, source ignored": (
            partial(certificate_of, "planted_deaf", "nano/source", task="nano/gsm8k"), repetitions
        ),
        "null, source seeds": (
            partial(certificate_of, "planted_null", "nano/source", task="nano/gsm8k", tier="skill"), repetitions
        ),
    }  # fmt: skip


def judged(found: list[dict[str, Any]], name: str) -> tuple[str, bool]:
    """What came out, in words, and whether it meets its bar."""
    total = len(found)
    verdicts = {v: sum(c["verdict"] == v for c in found) for v in ("transfer", "tuning", "no_effect", "undecided")}
    harm = sum(bool(c["harm"]) for c in found)
    shown = ", ".join(f"{v} {n}" for v, n in verdicts.items() if n)
    if name.startswith("transfer"):
        return f"{shown} of {total} (bar: transfer in at least 95 %)", verdicts["transfer"] >= 0.95 * total
    if name == "harm":
        return f"flag raised in {harm} of {total} (bar: all); {shown}", harm == total
    arms = [row["arm"] for row in found[0]["comparisons"]]
    above = {arm: sum(row["low"] > 0 for c in found for row in c["comparisons"] if row["arm"] == arm) for arm in arms}
    single = ", ".join(f"{arm} {n}" for arm, n in above.items())
    bar = 11 * total / 200
    return f"{shown} of {total} (bar: at most {bar:.0f} transfer); L > 0 against {single}", verdicts["transfer"] <= bar


def _make() -> None:
    torch.set_num_threads(1)


def _work(_: None, job: tuple[str, Callable[..., dict[str, Any]], int]) -> dict[str, Any]:
    _, certificate, repetition = job
    with tempfile.TemporaryDirectory() as folder:
        return certificate(Path(folder) / "run", repetition)


def main() -> int:
    """Run the campaigns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200, help="of the null methods; a tenth of the others")
    parser.add_argument("--only", action="append", help="a campaign by the beginning of its name; repeatable")
    args = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        _make()
        source = finetuned_target(Path(folder) / "finetuned", "nano/gsm8k", 300)
        for name, (certificate, count) in campaigns(source, args.repetitions).items():
            if args.only and not name.startswith(tuple(args.only)):
                continue
            start = time.perf_counter()
            with Pool(_make, _work, cores(), 1) as pool:
                found = [result for _, result in pool.run([(name, certificate, i) for i in range(count)])]
            words, met = judged(found, name)
            missed += not met
            print(f"{'ok    ' if met else 'MISSED'} {name}: {words}; {time.perf_counter() - start:.0f} s", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
