"""Tiny random models that differ in every size, so that code for equal sizes fails."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from pkt.errors import SandboxError
from pkt.evaluation import sandbox
from pkt.models.lm import LM
from pkt.nano.train import build_tokenizer

DATA = Path(__file__).parents[2] / "shared" / "data"
SOURCE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
TARGET = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="session")
def data_folder() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"benchmark data not found at {DATA}")
    return DATA


@pytest.fixture(scope="session")
def bubblewrap() -> None:
    """Programs can be run in the sandbox here."""
    try:
        sandbox.check()
    except SandboxError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def make_model(folder: Path, tokenizer: PreTrainedTokenizerFast, family: str, sizes: dict, seed: int, **more) -> Path:
    """A random model with weights large enough that its parts matter."""
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), max_position_embeddings=512, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, initializer_range=0.2,
        **{**sizes, "tie_word_embeddings": False, **more},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_lm(tmp_path_factory, tokenizer):
    """`make_lm("qwen2", "source")`: a handle on a tiny random model, made once per session."""
    made: dict[tuple, Path] = {}

    def make(family: str = "llama", role: str = "target", **more) -> LM:
        if family == "qwen3":
            more = {"head_dim": 12, **more}
        key = (family, role, *sorted(more.items()))
        if key not in made:
            sizes = SOURCE if role == "source" else TARGET
            made[key] = make_model(
                tmp_path_factory.mktemp(f"{family}-{role}"), tokenizer, family, sizes, len(made), **more
            )
        return LM(made[key], device="cpu")

    return make


@pytest.fixture
def tiny_source(make_lm) -> LM:
    return make_lm("llama", "source")


@pytest.fixture
def tiny_target(make_lm) -> LM:
    return make_lm("llama", "target")
