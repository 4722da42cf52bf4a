"""Tiny random models that differ in every size, so that code for equal sizes fails."""

from __future__ import annotations

import os
from pathlib import Path
from zlib import crc32

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from chat_tokenizers import chat_tokenizer
from tiny_models import FAMILIES, SOURCE, TARGET, make_model
from transformers import PreTrainedTokenizerFast

from pkt.errors import SandboxError
from pkt.evaluation import sandbox
from pkt.models.lm import LM
from pkt.nano.train import build_tokenizer

DATA = Path(__file__).parents[2] / "shared" / "data"


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


@pytest.fixture(scope="session")
def make_lm(tmp_path_factory, tokenizer):
    """`make_lm("qwen2", "source")`: a handle on a tiny random model, made once per session; `speaks="chatml"`: with that tokenizer."""
    made: dict[tuple, Path] = {}

    def make(family: str = "llama", role: str = "target", **more) -> LM:
        more = {**FAMILIES[family], **more}
        speaks = more.pop("speaks", None)
        key = (family, role, *([speaks] if speaks else []), *sorted(more.items()))
        if key not in made:
            sizes = SOURCE if role == "source" else TARGET
            words = chat_tokenizer(speaks) if speaks else tokenizer
            folder = tmp_path_factory.mktemp(f"{family}-{role}")
            made[key] = make_model(folder, words, family, sizes, crc32(repr(key).encode()), **more)
        return LM(made[key], device="cpu")

    return make


@pytest.fixture
def tiny_source(make_lm) -> LM:
    return make_lm("llama", "source")


@pytest.fixture
def tiny_target(make_lm) -> LM:
    return make_lm("llama", "target")
