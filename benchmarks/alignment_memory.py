"""Memory of one alignment step against a plain version: `python benchmarks/alignment_memory.py`.

A random Llama target (8 layers, width 512, FFN 1376, vocabulary 8,000) and source (10 layers, width 640, FFN 1728), rate 0.1, 16
examples of 96 tokens. The plain version does what the published code does: target weights stay trainable, every delta
is scattered into a dense matrix that is added to the weight. Each version runs in a process of its own; peaks are of
resident memory above what is there before the first step.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from attribution import make, make_examples

from pkt.align import alignment
from pkt.align.alignment import Options, Schedule
from pkt.align.hypernetwork import Hypernetwork, penalty
from pkt.align.objectives import LanguageLoss, Passes
from pkt.extract.location import counts
from pkt.extract.neurons import NeuronSet
from pkt.extract.slices import place, read_slices
from pkt.models.families import KINDS
from pkt.models.lm import LM
from pkt.tasks.losses import encode_all, example_losses

RATE = 0.1


def choose(lm: LM, layers: list[int], num: dict[str, int]) -> NeuronSet:
    """Any neurons will do: memory does not depend on which."""
    index = {kind: torch.arange(num[kind]).repeat(len(layers), 1) for kind in KINDS}
    return NeuronSet(
        dict.fromkeys(KINDS, layers),
        index,
        {kind: torch.zeros_like(index[kind], dtype=torch.float32) for kind in KINDS},
    )


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def setup(folder: Path) -> tuple[LM, Hypernetwork, dict, NeuronSet, list]:
    source, target = make(folder / "source", 10, 640, 1728, 8000), make(folder / "target", 8, 512, 1376, 8000, heads=8)
    num = counts(target.dims, RATE)
    at = choose(target, list(range(target.dims.layers)), num)
    slices = read_slices(source, choose(source, list(range(target.dims.layers)), num))
    hyper = Hypernetwork(source.dims.width, target.dims.width, torch.Generator().manual_seed(0), init="fan_in")
    encoded = encode_all(make_examples(16, 96, 8000), "plain", target, loss_on_prompt=False)
    return target, hyper, slices, at, encoded


def ours(target: LM, hyper: Hypernetwork, slices: dict, at: NeuronSet, encoded: list, micro_batch: int) -> None:
    gen = torch.Generator().manual_seed(0)
    alignment.align(
        hyper, LanguageLoss(target, encoded[:1], encoded[1:], Passes(micro_batch), gen), lambda _step: slices,
        lambda changes, _step: place(changes, at, target.dims), Options(2, Schedule(1e-3, 20), 1000.0),
    )  # fmt: skip


def plain(target: LM, hyper: Hypernetwork, slices: dict, at: NeuronSet, encoded: list, micro_batch: int) -> None:
    """Dense deltas on trainable weights, the hypernetwork run anew for every micro-batch."""
    optimizer = torch.optim.AdamW(hyper.parameters())
    with target.loaded() as model:
        model.requires_grad_(True)
        for _ in range(2):
            for i in range(0, len(encoded), micro_batch):
                changes = hyper(slices)
                weights = {}
                for name, change in place(changes, at, target.dims).tensors(target):
                    weight = model.get_parameter(name)
                    dense = torch.zeros_like(weight).index_add(
                        change.axis, change.index, change.values if change.axis == 0 else change.values.T
                    )
                    weights[name] = weight + dense

                class Caller:
                    """The model with other weights."""

                    def get_submodule(self, path: str, weights: dict = weights):
                        module = model.get_submodule(path)
                        prefix = f"{path}."
                        own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
                        if not own:
                            return module
                        return lambda **inputs: torch.func.functional_call(module, own, kwargs=inputs)

                losses = example_losses(Caller(), target, encoded[i : i + micro_batch])
                (losses.sum() / len(encoded) + 1000 * penalty(changes)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def measure(version: str, micro_batch: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        target, hyper, slices, at, encoded = setup(Path(folder))
        with target.loaded() as model:
            with torch.no_grad():
                model(torch.zeros(1, 8, dtype=torch.long))
            before = peak_mib()
            {"pkt": ours, "plain": plain}[version](target, hyper, slices, at, encoded, micro_batch)
            weights = sum(p.numel() for p in model.parameters()) * 4
            hypernetwork = sum(p.numel() for p in hyper.parameters()) * 4
            held = sum(s.numel() for s in slices.values()) * 4
        sizes = [peak_mib() - before, weights / 2**20, hypernetwork / 2**20, held / 2**20]
        print(" ".join(f"{size:.1f}" for size in sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", choices=["pkt", "plain"])
    parser.add_argument("--micro-batch", type=int, default=4)
    args = parser.parse_args()
    if args.version:
        measure(args.version, args.micro_batch)
        return
    found = {}
    for version in ("pkt", "plain"):
        command = [sys.executable, __file__, "--version", version, "--micro-batch", str(args.micro_batch)]
        last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]
        found[version] = [float(x) for x in last.split()]
    peak, weights, hypernetwork, slices = found["pkt"]
    print(
        f"target weights {weights:.0f} MiB, hypernetwork {hypernetwork:.0f} MiB (with gradient and AdamW state {4 * hypernetwork:.0f}), slices {slices:.0f} MiB"
    )
    print(
        f"peak above that of the loaded models: pkt {peak:.0f} MiB, plain {found['plain'][0]:.0f} MiB, ratio {found['plain'][0] / peak:.1f}"
    )


if __name__ == "__main__":
    main()
