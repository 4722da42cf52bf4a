"""Tokenizers whose special tokens are not all there, or have no row in the model's embedding."""

from __future__ import annotations

import json

import pytest
import torch

import pkt
from pkt.errors import UnsupportedModelError
from pkt.models.generation import Decoding
from pkt.models.lm import LM

TEXTS = ["Who?\nAnswer:", "How much are 3 flurbs?\nAnswer:"]


def changed(lm: LM, folder, **special) -> LM:
    """The same model beside a tokenizer with other special tokens; None takes one away."""
    tokenizer = lm.tokenizer.__class__.from_pretrained(lm.name)
    tokenizer.add_special_tokens({name: token for name, token in special.items() if token})
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if special.get(key, "") is not None}))
    for file in ("config.json", "model.safetensors"):
        (folder / file).symlink_to(f"{lm.name}/{file}")
    return LM(str(folder), device="cpu")


@pytest.fixture(params=["padding without a row", "neither padding nor an end"])
def other(request, tiny_source, tmp_path) -> LM:
    is_added = request.param == "padding without a row"
    special = {"pad_token": "[PAD]"} if is_added else {"pad_token": None, "eos_token": None, "bos_token": None}
    found = changed(tiny_source, tmp_path, **special)
    raw = tiny_source.tokenizer.__class__.from_pretrained(tmp_path)
    assert raw.pad_token_id == (tiny_source.dims.vocab if is_added else None)
    return found


def test_padding_is_a_token_that_the_model_has(other, tiny_source):
    """What stands there counts nothing: answers are those of the model with its own tokenizer."""
    assert 0 <= other.tokenizer.pad_token_id < other.dims.vocab
    how = Decoding(max_new_tokens=5)
    assert other.generate(TEXTS, how) == tiny_source.generate(TEXTS, how)


def test_such_a_model_is_scored_and_a_source(other, tiny_source, tiny_target):
    small = pkt.task("nano/gsm8k").first({"test": 4, "train": 4})
    assert pkt.evaluate(other, small, style="plain") == pkt.evaluate(tiny_source, small, style="plain")
    one, two = (
        pkt.transfer("seqkd", source=lm, target=tiny_target, task=small, style="plain", epochs=1)
        for lm in (other, tiny_source)
    )
    assert all(torch.equal(change.entries(), two.changes[key].entries()) for key, change in one.changes.items())


def test_an_end_of_sequence_without_a_row_is_refused(tiny_source, tmp_path):
    lm = changed(tiny_source, tmp_path, eos_token="<over>")
    size = tiny_source.dims.vocab
    with pytest.raises(
        UnsupportedModelError, match=rf"writes '<over>' as token {size}, but the model has {size} tokens"
    ):
        assert lm.tokenizer
