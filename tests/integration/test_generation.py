"""Answers and logits of a source through its handle, real and in its control arms."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch

from pkt.align.answers import answered
from pkt.errors import DataError
from pkt.models.controls import RandomSource, ShuffledSource
from pkt.models.generation import Decoding
from pkt.models.lm import LM
from pkt.tasks.sources import task

TEXTS = ["How much are 3 flurbs?\nAnswer:", "Who?\nAnswer:", "In which city is the home of Zorp Blick?\nThe answer is:"]
HOW = Decoding(max_new_tokens=8, batch_size=2)


@pytest.fixture
def source(make_lm, tmp_path) -> LM:
    return LM(make_lm("llama", "source").name, device="cpu", memo=tmp_path / "memo")


@torch.no_grad()
def one_by_one(lm: LM, model, text: str, count: int) -> str:
    """Greedy decoding without batches, padding or cache."""
    ids = lm.tokenizer(text)["input_ids"]
    start = len(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == lm.tokenizer.eos_token_id:
            break
    return lm.tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_answers_are_greedy_whatever_the_models_own_settings_say(source):
    with source.loaded() as model:
        expected = [one_by_one(source, model, text, 8) for text in TEXTS]
        settings = model.generation_config
        settings.repetition_penalty, settings.do_sample, settings.temperature = 3.0, True, 2.0
        found = source.generate(TEXTS, HOW)
        assert model.generation_config is settings
        assert not model.training
    assert found == expected
    assert len(set(found)) == 3


def test_a_stop_text_ends_an_answer(source):
    (whole,) = source.generate(TEXTS[:1], HOW)
    middle = whole[3:5]
    (cut,) = source.generate(TEXTS[:1], replace(HOW, stop=(middle, "\n\n\n")))
    assert cut == whole[: whole.index(middle)]


def test_a_stop_text_that_the_prompt_begins_ends_nothing(source):
    """As `\\ndef` behind the fence that opens a program."""
    text = f"{TEXTS[0]}\n"
    (whole,) = source.generate([text], HOW)
    assert source.generate([text], replace(HOW, stop=(f"\n{whole[:3]}",))) == [whole]


def test_answers_are_read_again(source, monkeypatch, caplog):
    first = source.generate(TEXTS, HOW)
    monkeypatch.setattr(LM, "loaded", lambda self: pytest.fail("the model was loaded"))
    assert LM(source.name, device="cpu", memo=source.memo).generate(TEXTS, HOW) == first
    for texts, how, lm in (
        (TEXTS[:2], HOW, source),
        (TEXTS, replace(HOW, max_new_tokens=7), source),
        (TEXTS, HOW, LM(source.name, device="cpu", memo=source.memo, dtype="bfloat16")),
    ):
        with pytest.raises(pytest.fail.Exception, match="was loaded"):
            lm.generate(texts, how)


@pytest.mark.parametrize("damage", ["edit", "cut", "bytes", "other"])
def test_damaged_answers_are_made_anew(source, caplog, damage):
    first = source.generate(TEXTS, HOW)
    (path,) = source.memo.glob("answers-*.jsonl")
    text = path.read_text(encoding="utf-8")
    changes = {
        "edit": lambda: path.write_text(text.replace("Who?", "Whom?")),
        "cut": lambda: path.write_text(text[: len(text) // 2]),
        "bytes": lambda: path.write_bytes(b"\xff" + path.read_bytes()),
        "other": lambda: path.write_text("[]\n"),
    }
    changes[damage]()
    with caplog.at_level(logging.WARNING):
        assert source.generate(TEXTS, HOW) == first
    assert f"{path} is damaged; made anew" in caplog.text
    assert path.read_text(encoding="utf-8") == text


def test_no_room_for_an_answer(source):
    with pytest.raises(
        DataError, match=r"answer up to 505 more, but the context holds 512; lower method.max_new_tokens"
    ):
        source.generate(TEXTS, Decoding(max_new_tokens=505))


def test_the_nano_source_answers_as_it_is_graded():
    """Prompt, forced prefix and style are those of the evaluation, in which this source is right throughout."""
    source = LM("nano/source", device="cpu")
    for name in ("nano/mmlu", "nano/gsm8k"):
        found = task(name)
        examples = found.split("train")[:24]
        got = answered(source, found, examples, "plain", max_new_tokens=None, batch_size=24)
        assert sum(a.response == b.response for a, b in zip(got.examples, examples, strict=True)) >= 23
        assert got.empty == 0


def test_empty_answers_are_dropped_and_counted(source, monkeypatch, caplog):
    found = task("nano/mmlu")
    examples = found.split("extract")[:3]
    monkeypatch.setattr(LM, "generate", lambda *_: [" Oslo", " \n", " Rome"])
    with caplog.at_level(logging.WARNING):
        got = answered(source, found, examples, "plain", max_new_tokens=None, batch_size=4)
    assert [(e.id, e.response) for e in got.examples] == [
        (examples[0].id, "The answer is: Oslo"),
        (examples[2].id, "The answer is: Rome"),
    ]
    assert got.empty == 1
    assert "1 of 3 answers are empty" in caplog.text
    monkeypatch.setattr(LM, "generate", lambda *_: ["", " ", "\n"])
    with pytest.raises(DataError, match="all 3 answers to nano/mmlu are empty"):
        answered(source, found, examples, "plain", max_new_tokens=None, batch_size=4)


def test_a_re_initialised_source_answers_and_gives_logits(source):
    real = source.generate(TEXTS, HOW)
    noise = RandomSource(source, 0).generate(TEXTS, HOW)
    state = torch.get_rng_state()
    assert noise == RandomSource(source, 0).generate(TEXTS, HOW)
    assert noise not in (real, RandomSource(source, 1).generate(TEXTS, HOW))
    assert len(list(source.memo.glob("answers-*.jsonl"))) == 3
    ids = torch.tensor([source.tokenizer(TEXTS[0])["input_ids"]])
    with source.loaded() as model, RandomSource(source, 0).teacher([]) as teacher:
        new = dict(teacher.model.named_parameters())
        assert {k: w.shape for k, w in new.items()} == {k: w.shape for k, w in model.named_parameters()}
        assert all(not torch.equal(w, new[k]) for k, w in model.named_parameters())
        assert float(new["lm_head.weight"].std()) == pytest.approx(source.config.initializer_range, rel=0.05)
        assert (teacher(ids, torch.ones_like(ids), [0]) - model(ids).logits).abs().max() > 0.1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_re_initialised_source_has_the_sources_dtype_each_time(source, tmp_path):
    folder = shutil.copytree(source.name, tmp_path / "narrow")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    lm = LM(folder, device="cpu")
    for seed in (0, 0, 1):
        with RandomSource(lm, seed).initialised() as model:
            assert model.dtype == torch.bfloat16


def test_shuffled_answers_are_the_real_ones_to_other_prompts(source):
    texts = [f"{text} {i}" for i in range(4) for text in TEXTS]
    real, mixed = source.generate(texts, HOW), ShuffledSource(source, 0).generate(texts, HOW)
    assert sorted(mixed) == sorted(real)
    assert mixed != real
    assert mixed == ShuffledSource(source, 0).generate(texts, HOW)
    assert mixed != ShuffledSource(source, 1).generate(texts, HOW)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_shuffled_teacher_reads_the_same_completion_after_another_prompt(source, side):
    prompts = [source.tokenizer(text)["input_ids"] for text in TEXTS]
    ends = [[30, 31], [40, 41, 42, 43], [50]]
    shuffled = ShuffledSource(source, 1)
    order = shuffled.elsewhere("prompts", 3)
    assert sorted(order) == [0, 1, 2] != order
    rows = [2, 0, 1]
    texts = [prompts[i] + ends[i] for i in rows]
    width = max(map(len, texts))
    pads = [[0] * (width - len(text)) for text in texts]
    ids = torch.tensor([pad + text if side == "left" else text + pad for pad, text in zip(pads, texts, strict=True)])
    mask = torch.tensor(
        [
            pad + [1] * len(text) if side == "left" else [1] * len(text) + pad
            for pad, text in zip(pads, texts, strict=True)
        ]
    )
    with shuffled.teacher(prompts) as teacher, source.loaded() as model, torch.no_grad():
        found = teacher(ids, mask, rows)
        for row, i in enumerate(rows):
            other = prompts[order[i]]
            expected = model(torch.tensor([other + ends[i]])).logits[0, len(other) - 1 :]
            first = int(mask[row].nonzero()[0]) + len(prompts[i]) - 1
            torch.testing.assert_close(found[row, first : first + len(ends[i]) + 1], expected, rtol=0, atol=1e-4)
        assert teacher.config is not model.config


def test_an_ordinary_teacher_gives_the_models_logits(source):
    ids = torch.tensor([source.tokenizer(TEXTS[0])["input_ids"]])
    with source.teacher([]) as teacher, source.loaded() as model:
        assert torch.equal(teacher(ids, torch.ones_like(ids), [0]), model(ids).logits)
        assert teacher.model is model
