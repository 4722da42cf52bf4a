"""Ranking in one pass: equal to one forward pass per choice and to lm-eval, whatever is shared, padded, hooked or placed."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig, get_peft_model

from pkt.evaluation import choices as choosing
from pkt.evaluation import ranking
from pkt.evaluation.choices import ranked
from pkt.evaluation.harness import _harness_model
from pkt.evaluation.ranking import Group, Question, batches, grouped, likelihoods
from pkt.evaluation.sampling import Sampler
from pkt.inject.apply import injected
from pkt.inject.changes import Lines
from pkt.inject.delta import Delta

VOCABULARY = 200


def questions(count: int, *, shared: int = 0, longest: int = 40, seed: int = 0) -> list[Question]:
    """Questions of mixed lengths; choices of one and of two tokens on one chain."""
    draw = random.Random(seed)
    start = [draw.randrange(5, VOCABULARY) for _ in range(shared)]
    made = []
    for _ in range(count):
        rest = [draw.randrange(5, VOCABULARY) for _ in range(draw.randrange(2, longest))]
        stem = draw.randrange(5, VOCABULARY)
        letters = [(stem,), (draw.randrange(5, VOCABULARY),)]
        if draw.random() < 0.7:
            letters.append((stem, draw.randrange(5, VOCABULARY)))
        made.append(Question((1, *start, *rest), tuple(letters)))
    return made


@torch.no_grad()
def one_by_one(model, asked: list[Question]) -> list[list[tuple[float, bool]]]:
    """One forward pass for every choice, without padding, cache or chosen positions."""
    found = []
    for question in asked:
        row = []
        for choice in question.choices:
            ids = torch.tensor([[*question.context, *choice]])
            logits = model(ids).logits[0, len(question.context) - 1 : -1].float()
            logp = logits.log_softmax(-1).gather(1, torch.tensor(choice)[:, None])
            row.append((float(logp.sum()), logits.argmax(-1).tolist() == list(choice)))
        found.append(row)
    return found


def assert_same(found, wanted, tolerance: float = 1e-4) -> None:
    for one, other in zip(found, wanted, strict=True):
        for (value, is_first), (expected, is_expected) in zip(one, other, strict=True):
            assert value == pytest.approx(expected, abs=tolerance)
            assert is_first == is_expected
    spread = [value for row in wanted for value, _ in row]
    assert max(spread) - min(spread) > 1, "a model that says the same of everything tests nothing"


@pytest.fixture
def eager(monkeypatch) -> None:
    """Groups share from the first token saved on, and batches close soon."""
    monkeypatch.setattr(ranking, "PASS", 0)
    monkeypatch.setattr(ranking, "SAVED", 0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3"])
@pytest.mark.parametrize("shared", [0, 30])
def test_equals_one_pass_per_choice(make_lm, eager, family, shared):
    asked = questions(12, shared=shared)
    lm = make_lm(family)
    lm.any_family = True
    with lm.loaded() as model:
        wanted = one_by_one(model, asked)
        for share in (True, False):
            assert_same(likelihoods(model, asked, rows=5, device="cpu", share=share), wanted)


def test_a_shared_beginning_is_computed_once(tiny_target, eager):
    asked = questions(6, shared=30, longest=8)
    seen: list[tuple[int, ...]] = []
    with tiny_target.loaded() as model:
        wanted = one_by_one(model, asked)
        hook = model.get_input_embeddings().register_forward_hook(
            lambda _m, args, _o: seen.append(tuple(args[0].shape))
        )
        try:
            found = likelihoods(model, asked, rows=64, device="cpu")
        finally:
            hook.remove()
    assert_same(found, wanted)
    assert seen[0] == (1, 31)
    assert sum(rows for rows, _ in seen[1:]) == 6
    assert max(tokens for _, tokens in seen[1:]) <= 9


def test_sliding_windows_are_not_shared(make_lm, eager):
    asked = questions(6, shared=30)
    with make_lm("mistral", sliding_window=8).loaded() as model:
        assert not ranking._shares(model)
        assert_same(likelihoods(model, asked, rows=4, device="cpu"), one_by_one(model, asked))
    with make_lm("mistral", sliding_window=None).loaded() as model:
        assert ranking._shares(model)


@pytest.mark.parametrize("share", [True, False])
def test_an_injected_delta_acts(tiny_target, eager, share):
    rows = torch.tensor([1, 5, 30])
    delta = Delta({(0, "up"): Lines(rows, torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), 0)})
    asked = questions(8, shared=20)
    with tiny_target.loaded() as model:
        before = likelihoods(model, asked, rows=4, device="cpu", share=share)
        with injected(model, delta):
            wanted = one_by_one(model, asked)
            found = likelihoods(model, asked, rows=4, device="cpu", share=share)
    assert_same(found, wanted)
    assert (
        max(abs(a - b) for x, y in zip(before, found, strict=True) for (a, _), (b, _) in zip(x, y, strict=True)) > 0.01
    )


def test_a_peft_model_is_ranked(tiny_target, eager):
    asked = questions(8, shared=20)
    with tiny_target.private("float32") as base:
        model = get_peft_model(
            base, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        ).eval()
        assert_same(likelihoods(model, asked, rows=4, device="cpu"), one_by_one(model, asked))


def test_bfloat16_is_read_in_float32(tiny_target):
    asked = questions(8)
    with tiny_target.private("bfloat16") as model:
        found = likelihoods(model.eval(), asked, rows=1, device="cpu")
        assert_same(found, one_by_one(model, asked), 1e-2)
    assert len({value for row in found for value, _ in row}) > 20, "bfloat16 would round them together"


def test_a_model_on_several_devices_is_asked_without_padding(tiny_target, monkeypatch):
    asked = questions(12, longest=5)
    seen: list[object] = []
    with tiny_target.loaded() as shared:
        model = copy.deepcopy(shared)
        wanted = one_by_one(model, asked)
        model.hf_device_map = {"model.layers.0": 0, "model.layers.1": "cpu"}
        with model.register_forward_pre_hook(
            lambda _m, _a, given: seen.append(given["logits_to_keep"]), with_kwargs=True
        ):
            assert_same(likelihoods(model, asked, rows=5, device="cpu"), wanted)
    assert {type(keep) for keep in seen} == {int}


def test_an_offloaded_model_is_ranked(tiny_target, tmp_path):
    from accelerate import cpu_offload

    asked = questions(6)
    with tiny_target.loaded() as shared:
        model = copy.deepcopy(shared)
        wanted = one_by_one(model, asked)
    cpu_offload(model, torch.device("cpu"))
    assert_same(likelihoods(model, asked, rows=4, device="cpu"), wanted)


def test_groups_follow_what_is_saved(eager):
    one, two = questions(5, shared=30, seed=1), questions(4, shared=25, seed=2)
    alone = questions(1, seed=3)
    mixed = [*one, *two, *alone]
    random.Random(0).shuffle(mixed)
    groups = grouped(mixed)
    members = {frozenset(mixed[i] for i in group.members): group.shared for group in groups}
    assert members[frozenset(one)] == 31
    assert members[frozenset(two)] == 26
    assert sorted(i for group in groups for i in group.members) == list(range(len(mixed)))


def test_small_savings_are_not_worth_a_cache():
    assert grouped(questions(30, shared=4)) == [Group(tuple(range(30)), 0)]
    found = grouped(questions(30, shared=200))
    assert found[0].shared == 201
    assert len(found[0].members) == 30


def test_batches_keep_to_their_bounds():
    texts = [[0] * n for n in (10, 9, 9, 3, 30, 240)]
    whole = Group(tuple(range(6)), 0)
    assert list(batches(whole, texts, 60, 2)) == [[5], [4, 0], [1, 2], [3]]
    assert list(batches(whole, texts, 120, 64)) == [[5], [4, 0, 1, 2], [3]]
    assert list(batches(whole, texts, 1000, 64)) == [[5], [4, 0, 1, 2, 3]]
    assert list(batches(whole, texts, 1000, 64, padded=False)) == [[5], [4], [0], [1, 2], [3]]


@dataclass(frozen=True)
class Request:
    args: tuple[str, str]


@pytest.mark.parametrize("style", ["plain", "chat_template"])
def test_requests_are_answered_as_lm_eval_answers_them(tiny_target, tokenizer, style):
    """Letters on one chain go our way; words that branch, and contexts that end in a space, go lm-eval's."""
    words = ["Where is Ana?\nAnswer:", "Where is Bel, and who is she?\nAnswer:", "What does Cid eat?\nAnswer: "]
    letters = [Request((word, f" {letter}")) for word in words for letter in "ABCD"]
    branching = [Request((words[0] + " So:", f" {name}")) for name in ("Paris Rome", "Rome Lima", "Oslo")]
    requests = [*letters[:6], *branching, *letters[6:]]
    with tiny_target.loaded() as shared:
        model = copy.deepcopy(shared)
        harness = _harness_model(model, tokenizer, style, 3, 512, Sampler(0))
        sent: list[Request] = []

        def plainly(rest):
            sent.extend(rest)
            return super(type(harness), harness).loglikelihood(rest, disable_tqdm=True)

        found = ranked(harness, requests, plainly)
        wanted = super(type(harness), harness).loglikelihood(requests, disable_tqdm=True)
    assert_same([found], [wanted])
    assert {request.args[0] for request in sent} == {words[0] + " So:", words[2]}


def test_a_choice_is_encoded_once_per_seam(tiny_target, tokenizer, monkeypatch):
    with tiny_target.loaded() as model:
        harness = _harness_model(copy.deepcopy(model), tokenizer, "plain", 8, 512, Sampler(0))
        encoder = choosing._Encoder(harness)
        contexts = [f"Question {i}?\nAnswer:" for i in range(5)]
        asked = [encoder.question(context, [" A", " B"]) for context in contexts]
        for context, question in zip(contexts, asked, strict=True):
            for choice, ids in zip((" A", " B"), question.choices, strict=True):
                assert (list(question.context), list(ids)) == harness._encode_pair(context, choice)
        monkeypatch.setattr(harness, "tok_encode", lambda *_: pytest.fail("encoded again"))
        assert encoder._choice(contexts[0], asked[0].context, " A") == asked[0].choices[0]
