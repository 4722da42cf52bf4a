"""Ranking of MMLU's letters against plain lm-eval, in one run: `python benchmarks/ranking.py --data DIR`.

The same questions go through `pkt.evaluation.choices.ranked` (one pass for all letters, logits where they decide, shared
beginnings read once), through the same without sharing, and through lm-eval's HFLM. Prints seconds, the ratio, and how far
the log-likelihoods are apart. `--whole` times `pkt.evaluate` on the whole test set, loading included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

import pkt
from pkt.evaluation import choices, ranking
from pkt.evaluation.asking import Asking
from pkt.evaluation.harness import _harness_model
from pkt.evaluation.sampling import Sampler
from pkt.quiet import errors_only
from pkt.tasks.base import Example, Task


@dataclass(frozen=True)
class Request:
    """What lm-eval's model reads of a request."""

    args: tuple[str, str]


def drawn(task: Task, subjects: int, each: int) -> list[Example]:
    """The first questions of some subjects, spread over the list: as in the whole set, many questions share a subject."""
    names = list(dict.fromkeys(example.unit for example in task.split("test")))
    kept = names[:: max(1, len(names) // subjects)][:subjects]
    return [e for name in kept for e in [e for e in task.split("test") if e.unit == name][:each]]


def requests(task: Task, lm: pkt.LM, style: str, shots: int, examples: list[Example]) -> list[Request]:
    """Every question with every letter, as the harness sends them."""
    protocol = replace(task.format.protocol, shots=shots, too_long="cut")
    asking = Asking(task, style, lm.tokenizer, lm.dims.context, protocol)
    asked = asking.all(examples)
    return [Request((item.text, f" {choice}")) for item in asked for choice in item.example.choices]


@dataclass(frozen=True)
class Time:
    """Seconds on the clock, and of all cores: on a machine that does other work too, the latter compare."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} s ({self.cpu:.1f} s of CPU)"


def timed(ask: Callable[[], list[Any]]) -> tuple[Time, list[Any]]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = ask()
    return Time(time.perf_counter() - wall, time.process_time() - cpu), found


def unshared(lm: HFLM, asked: list[Request]) -> list[Any]:
    """As `ranked`, every question from its first token on."""
    pays, ranking._pays = ranking._pays, lambda *_: False
    try:
        return choices.ranked(lm, asked, lambda rest: HFLM.loglikelihood(lm, rest, disable_tqdm=True))
    finally:
        ranking._pays = pays


def best(found: list[Any]) -> list[int]:
    """The letter of every question."""
    values = torch.tensor([value for value, _ in found]).view(-1, 4)
    return values.argmax(-1).tolist()


def compare(lm: pkt.LM, task: Task, style: str, shots: int, examples: list[Example], rows: int) -> None:
    asked = requests(task, lm, style, shots, examples)
    with lm.loaded() as model, errors_only("lm_eval"):
        harness = _harness_model(model, lm.tokenizer, style, rows, lm.dims.context, Sampler(0))

        def plainly(rest: list[Request]) -> list[Any]:
            return HFLM.loglikelihood(harness, rest, disable_tqdm=True)

        choices.ranked(harness, asked[:8], plainly)  # the first pass of a process is slow
        ours, fast = timed(lambda: choices.ranked(harness, asked, plainly))
        alone, _ = timed(lambda: unshared(harness, asked))
        theirs, slow = timed(lambda: plainly(asked))
    apart = max(abs(a - b) for (a, _), (b, _) in zip(fast, slow, strict=True))
    differ = sum(a != b for a, b in zip(best(fast), best(slow), strict=True))
    print(
        f"{shots} shots, {len(asked) // 4} questions: pkt {ours}, without sharing {alone}, lm-eval {theirs}; "
        f"ratio {theirs.wall / ours.wall:.1f} (CPU {theirs.cpu / ours.cpu:.1f}); "
        f"log-likelihoods apart by {apart:.1e} at most, {differ} other letters",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="nano/target")
    parser.add_argument("--style", default="plain")
    parser.add_argument("--shots", type=int, nargs="*", default=[0, 5])
    parser.add_argument("--subjects", type=int, default=5)
    parser.add_argument("--each", type=int, default=80, help="questions of a subject at most")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--whole", action="store_true")
    args = parser.parse_args()
    start = time.perf_counter()
    task, lm = pkt.task("mmlu", args.data), pkt.LM(args.model, device=args.device, dtype=args.dtype)
    print(f"{args.model} on {lm.torch_device}, {torch.get_num_threads()} threads", flush=True)
    if args.whole:
        lines = pkt.evaluate(lm, task, style=args.style, batch_size=args.batch_size)
        score = sum(line["score"] for line in lines) / len(lines)
        took = Time(time.perf_counter() - start, time.process_time())
        print(f"whole test set: {len(lines)} questions, {took}, score {score:.4f}")
        return
    examples = drawn(task, args.subjects, args.each)
    for shots in args.shots:
        compare(lm, task, args.style, shots, examples, args.batch_size)


if __name__ == "__main__":
    main()
