"""Rebuild the embedded models: `python -m pkt.nano.build [--only specialist] [--out DIR]`.

1. The tokenizer is trained on the world's text.
2. `target` learns the table entries of its groups, `source` (another shape) all of them and the skills.
3. `lineage-easy` and `lineage-hard` are function-preserving expansions of `target` with 2 % and 50 % noise between the
   copies, trained on everything. `expansion.json` keeps noise and seed, so the expanded weights before training, and with
   them the change that `expansion.contract` maps back, can be made again.
4. `source-2x` and `source-12x` learn what `source` learns, in shapes of about 2 and 12 times the target's parameters;
   `source` has 5 times.
5. `specialist` is `source` trained further on `gsm8k` alone, without a row of the other tasks.
6. Every model is stored, read back as stored, and scored on all test items; `card.json` keeps what was found.

A script above everything else: nothing imports it.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pkt.files import write_json
from pkt.models.checkpoint import NANO, Checkpoint, file_digest
from pkt.nano import world
from pkt.nano.expansion import contract, expand
from pkt.nano.train import Recipe, build_tokenizer, fit

log = logging.getLogger(__name__)

EVERYTHING = tuple(world.GROUPS)
EXPANSION_SEED = 0


@dataclass(frozen=True)
class Spec:
    """Shape and training of one embedded model."""

    recipe: Recipe
    dtype: str
    """Of the stored weights. The target stays in float32, so that no rounding stands between a delta and its effect."""
    shape: dict[str, int] | None = None
    noise: float | None = None
    """Symmetry-breaking noise of an expansion of the target, relative to the weights; None for models of their own shape."""
    base: str | None = None
    """The embedded model whose weights training starts from; None starts from random ones."""


SPECS = {
    "target": Spec(
        Recipe(groups=world.KNOWN_GROUPS, skill=False, steps=2600, lr=4e-3),
        "float32",
        {
            "hidden_size": 96,
            "num_hidden_layers": 4,
            "intermediate_size": 256,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    ),
    "source": Spec(
        Recipe(groups=EVERYTHING, skill=True, steps=3000, lr=3e-3),
        "bfloat16",
        {
            "hidden_size": 192,
            "num_hidden_layers": 6,
            "intermediate_size": 512,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
        },
    ),
    "lineage-easy": Spec(Recipe(groups=EVERYTHING, skill=True, steps=1500, lr=2e-3), "bfloat16", noise=0.02),
    "lineage-hard": Spec(Recipe(groups=EVERYTHING, skill=True, steps=1500, lr=2e-3), "bfloat16", noise=0.5),
    "source-2x": Spec(
        Recipe(groups=EVERYTHING, skill=True, steps=2600, lr=4e-3),
        "bfloat16",
        {
            "hidden_size": 144,
            "num_hidden_layers": 5,
            "intermediate_size": 288,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
        },
    ),
    "source-12x": Spec(
        Recipe(groups=EVERYTHING, skill=True, steps=2400, lr=2e-3),
        "bfloat16",
        {
            "hidden_size": 288,
            "num_hidden_layers": 8,
            "intermediate_size": 640,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
    ),
    "specialist": Spec(
        Recipe(groups=EVERYTHING, skill=True, steps=300, lr=1e-3, questions={"gsm8k": 38}, neutral_rows=0),
        "bfloat16",
        base="source",
    ),
}


def config(shape: dict[str, int], tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """A Llama of the given sizes with the nano tokenizer and a context of 4096."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        initializer_range=0.04,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **shape,
    )


def expanded(target: LlamaForCausalLM, noise: float) -> LlamaForCausalLM:
    """The target at twice its width, FFN size and heads, computing the same function."""
    c = target.config
    doubled = {
        name: 2 * getattr(c, name)
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    }
    model = LlamaForCausalLM(LlamaConfig.from_dict({**c.to_dict(), **doubled, "head_dim": c.head_dim}))
    weights = {name: w.float() for name, w in target.state_dict().items()}
    model.load_state_dict(expand(weights, noise, torch.Generator().manual_seed(EXPANSION_SEED)))
    return model


def true_change(source: Path, target: Path) -> dict[str, torch.Tensor]:
    """What a lineage source learnt, mapped back to the target's shapes: the delta that a perfect method would find."""
    noise = json.loads((source / "expansion.json").read_text())["noise"]
    before = expanded(LlamaForCausalLM.from_pretrained(target, dtype=torch.float32), noise).state_dict()
    after = load_file(source / "model.safetensors")
    return contract({name: w.float() - before[name] for name, w in after.items()})


def train(
    name: str, out: Path, tokenizer: PreTrainedTokenizerFast, device: str, *, checks: int, compile_: bool
) -> None:
    """Train one model and store it in `out/name`."""
    spec = SPECS[name]
    torch.manual_seed(spec.recipe.seed)
    if spec.noise is not None:
        model = expanded(LlamaForCausalLM.from_pretrained(out / "target", dtype=torch.float32), spec.noise)
    elif spec.base:
        model = LlamaForCausalLM.from_pretrained(out / spec.base, dtype=torch.float32)
    else:
        assert spec.shape is not None
        model = LlamaForCausalLM(config(spec.shape, tokenizer))
    seconds = fit(model.to(device), tokenizer, spec.recipe, name=name, checks=checks, compile_=compile_)
    model.to("cpu", dtype=getattr(torch, spec.dtype))
    with tempfile.TemporaryDirectory(dir=out) as temporary:
        folder = Path(temporary) / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if spec.noise is not None:
            write_json(
                folder / "expansion.json",
                {"of": "nano/target", "noise": spec.noise, "seed": EXPANSION_SEED, "factor": 2},
            )
        write_json(folder / "card.json", {"training": {"device": device, "seconds": round(seconds)}})
        for path in folder.iterdir():
            path.chmod(0o644)
        shutil.rmtree(out / name, ignore_errors=True)
        folder.rename(out / name)


def write_card(name: str, out: Path) -> dict[str, Any]:
    """Score the stored model on every test item and write its card."""
    from pkt.evaluation.harness import score
    from pkt.evaluation.statistics import summarise
    from pkt.models.lm import LM
    from pkt.tasks.sources import task

    spec, folder = SPECS[name], out / name
    lm = LM(folder, dtype="float32", device="cpu")
    scores = {}
    with lm.loaded() as model:
        for task_name in world.TASKS:
            lines = score(model, lm.tokenizer, task(f"nano/{task_name}"), style="plain")
            rows = summarise([{"arm": name, "seed": 0, "task": task_name, **line} for line in lines])
            tests = world.splits(task_name)["test"]
            scores[task_name] = {
                row["tier"]: {
                    "score": round(row["score"], 4),
                    "standard_error": round(row["standard_error"], 4),
                    "chance": round(
                        world.best_guess(task_name, [r for r in tests if row["tier"] in (r["tier"], "all")]), 4
                    ),
                    "num_items": row["num_items"],
                    "num_units": row["num_units"],
                }
                for row in rows
            }
    known = json.loads((folder / "card.json").read_text())
    card = {
        "model": f"nano/{name}",
        "parameters": lm.parameters(),
        "stored_dtype": spec.dtype,
        "expansion_noise": spec.noise,
        "recipe": asdict(spec.recipe),
        "training": known["training"],
        "scores": scores,
        "sha256": {path.name: file_digest(path) for path in [*Checkpoint(folder).shards, folder / "tokenizer.json"]},
    }
    if spec.base:
        card["base"] = {"model": f"nano/{spec.base}"} | {
            path.name: file_digest(path) for path in Checkpoint(out / spec.base).shards
        }
    write_json(folder / "card.json", card)
    return card


def check_bars(cards: dict[str, dict[str, Any]]) -> list[str]:
    """Bars that the embedded models must meet on the tasks that they were trained on; returns those that they miss."""
    missed = []
    for name, card in cards.items():
        for task_name in card["recipe"]["questions"]:
            tiers = card["scores"][task_name]
            known, new = tiers["known"], tiers["new"]
            at_least = {"known": known["score"]} | ({} if name == "target" else {"new": new["score"]})
            missed += [f"{name} {task_name} {tier} {value} < 0.95" for tier, value in at_least.items() if value < 0.95]
            if name == "target" and new["score"] > new["chance"] + 0.10:
                missed.append(f"target {task_name} new {new['score']} > chance {new['chance']} + 0.10")
    return missed


def main() -> None:
    """Train, store, score."""
    parser = argparse.ArgumentParser(prog="python -m pkt.nano.build", description="Rebuild the embedded nano models.")
    parser.add_argument("--out", type=Path, default=NANO, help="folder for the models (default: the package)")
    parser.add_argument(
        "--only",
        choices=SPECS,
        action="append",
        help="build this model only; lineages need the target in --out, the specialist the source",
    )
    parser.add_argument("--cards", action="store_true", help="score the stored models anew, train nothing")
    parser.add_argument("--steps", type=int, help="train this many steps instead (for a quick try)")
    parser.add_argument(
        "--checks", type=int, default=10, help="how often training logs accuracies; no weight depends on it"
    )
    parser.add_argument("--threads", type=int, default=1, help="more change the rounding, and so the weights")
    parser.add_argument("--no-compile", action="store_true", help="run eagerly; slower, but needs no C++ compiler")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    names = args.only or list(SPECS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not args.cards:
        tokenizer = build_tokenizer()
        for name in names:
            if args.steps:
                SPECS[name] = replace(SPECS[name], recipe=replace(SPECS[name].recipe, steps=args.steps))
            train(name, args.out, tokenizer, device, checks=args.checks, compile_=not args.no_compile)
    cards = {name: write_card(name, args.out) for name in names}
    missed = check_bars(cards)
    for name, card in cards.items():
        shown = {t: {tier: row["score"] for tier, row in tiers.items()} for t, tiers in card["scores"].items()}
        print(name, json.dumps(shown))
    print("bars missed: " + "; ".join(missed) if missed else "all bars met")


if __name__ == "__main__":
    main()
