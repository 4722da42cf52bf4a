"""Scores through lm-eval against direct forward passes and `model.generate`; nothing about the model is changed."""

import copy
import math
import random
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from pkt.errors import ConfigError, DataError, SandboxError, UnsupportedModelError
from pkt.evaluation.harness import draw, score
from pkt.evaluation.perplexity import perplexity
from pkt.nano import world
from pkt.tasks.base import Example, Task
from pkt.tasks.formats import FORMATS
from pkt.tasks.prompts import STYLES, render
from pkt.tasks.protocol import GREEDY, Protocol
from pkt.tasks.sources import task

CITIES = tuple(world.VALUES["city"])
LONG = (*(f"{a} {b}" for a in CITIES[:4] for b in CITIES[4:8]), "Paris", "Rome Lima Oslo")


@pytest.fixture
def model(tiny_target) -> Iterator:
    with tiny_target.loaded() as loaded:
        yield copy.deepcopy(loaded)


@pytest.fixture
def ranking() -> Task:
    people = [f"{'Ana ' * (i % 4)}Bel{i}" for i in range(12)]
    items = [
        Example(
            f"r/{i}",
            f"Where is {u}?\nAnswer:",
            f"The answer is: {CITIES[i]}",
            CITIES[i],
            u,
            "odd" if i % 2 else "even",
            CITIES,
        )
        for i, u in enumerate(people)
    ]
    return Task("toy/rank", FORMATS["mmlu"], {"test": items, "train": []}.__getitem__, "toy")


@pytest.fixture
def writing() -> Task:
    items = [
        Example(
            f"w/{i}",
            f"Answer the following question.\n\nQuestion: {'Why ' * i}{i}?",
            "Answer: 1",
            "1",
            f"u{i}",
            "all of them",
        )
        for i in range(7)
    ]
    return Task(
        "toy/write", replace(FORMATS["gsm8k"], max_new_tokens=9, plain_stop=None), {"test": items}.__getitem__, "toy"
    )


def ids_of(tokenizer, text: str, style: str) -> list[int]:
    return tokenizer(text, add_special_tokens=style != "chat_template")["input_ids"]


@torch.no_grad()
def by_hand(model, tokenizer, example: Example, prefix: str, style: str) -> list[float]:
    """Summed log-probability of every choice, one forward pass each."""
    prompt = render(example, style, tokenizer) + prefix
    start = len(ids_of(tokenizer, prompt, style))
    found = []
    for choice in example.choices:
        ids = torch.tensor([ids_of(tokenizer, f"{prompt} {choice}", style)])
        logp = model(ids).logits[0, start - 1 : -1].float().log_softmax(-1)
        found.append(float(logp.gather(1, ids[0, start:, None]).sum()))
    return found


def generated(model, tokenizer, example: Example, form, style: str) -> str:
    ids = torch.tensor([ids_of(tokenizer, render(example, style, tokenizer) + form.prefix, style)])
    plain = GenerationConfig(do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), generation_config=plain, max_new_tokens=form.max_new_tokens
    )
    text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    for stop in form.stop:
        text = text.split(stop)[0]
    return text


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("texts", [CITIES, LONG], ids=["one token", "several tokens"])
def test_ranking_equals_direct_forward_passes(model, tokenizer, ranking, style, texts) -> None:
    draws = [tuple(random.Random(i).sample(texts, 6)) for i in range(6)]
    examples = [
        replace(e, choices=c, answer=c[i % 2])
        for i, (e, c) in enumerate(zip(ranking.split("test"), draws, strict=False))
    ]
    toy = Task("toy/rank", ranking.format, lambda split: examples, "toy")
    lines = score(model, tokenizer, toy, style=style, batch_size=5)
    for line, example in zip(lines, examples, strict=True):
        likelihoods = by_hand(model, tokenizer, example, "The answer is:", style)
        assert line["output"] == example.choices[int(np.argmax(likelihoods))]
        assert line["score"] == float(line["output"] == example.answer)
        assert line["prompt"] == render(example, style, tokenizer) + "The answer is:"
        expected = (toy.name, example.id, example.unit, example.tier, example.answer)
        assert tuple(line[k] for k in ("task", "id", "unit", "tier", "answer")) == expected
    assert len({line["output"] for line in lines}) > 1, "a model that answers always the same tests nothing"
    assert len({example.choices.index(line["output"]) for line, example in zip(lines, examples, strict=True)}) > 1


@pytest.mark.parametrize("style", STYLES)
def test_generation_equals_generate_one_by_one(model, tokenizer, writing, style) -> None:
    lines = score(model, tokenizer, writing, style=style, batch_size=3)
    expected = [generated(model, tokenizer, e, writing.format, style) for e in writing.split("test")]
    assert [line["output"] for line in lines] == expected
    assert len(set(expected)) > 1


def test_generation_ends_at_a_stop_string_and_at_the_end_of_sequence(model, tokenizer, writing) -> None:
    whole = score(model, tokenizer, writing, style="plain")[0]["output"]
    stop = whole[3:5]
    stopping = replace(writing, format=replace(writing.format, stop=(stop,)))
    lines = score(model, tokenizer, stopping, style="plain")
    assert lines[0]["output"] == whole.split(stop)[0]
    seen: list[int] = []

    def end_after_three(_module, _args, logits):
        seen.append(logits.shape[1])
        if len(seen) == 4:
            logits[..., tokenizer.eos_token_id] = 1e4
        return logits

    with model.lm_head.register_forward_hook(end_after_three):
        lines = score(model, tokenizer, writing, style="plain")
    assert len(seen) == 4, "generation went on after every row had ended"
    assert whole.startswith(lines[0]["output"])
    assert 0 < len(lines[0]["output"]) < len(whole)


def test_bos_is_never_doubled(model, tokenizer, ranking, writing) -> None:
    template = tokenizer.chat_template
    seen: list[torch.Tensor] = []
    hook = model.model.embed_tokens.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        for text, style, count in (
            (template, "plain", 1),
            (template, "chat_template", 0),
            ("<s>" + template, "chat_template", 1),
        ):
            tokenizer.chat_template = text
            for toy in (ranking, writing):
                seen.clear()
                score(model, tokenizer, toy, style=style)
                assert ((seen[0] == tokenizer.bos_token_id).sum(1) == count).all(), (style, toy.name)
    finally:
        tokenizer.chat_template = template
        hook.remove()


def test_one_token_choices_share_their_context(model, tokenizer, ranking) -> None:
    rows: list[int] = []
    with model.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0]))):
        score(model, tokenizer, ranking, style="plain", batch_size=5)
    assert rows == [5, 5, 2], "16 choices of one token cost one row for each item"


def test_hooks_are_respected(model, tokenizer, ranking, writing) -> None:
    (rome,) = tokenizer(" Rome", add_special_tokens=False)["input_ids"]

    def prefer(_module, _args, logits):
        return logits + 1e3 * torch.nn.functional.one_hot(torch.tensor(rome), logits.shape[-1])

    before = score(model, tokenizer, ranking, style="tulu")
    with model.lm_head.register_forward_hook(prefer):
        assert {line["output"] for line in score(model, tokenizer, ranking, style="tulu")} == {"Rome"}
        assert {line["output"] for line in score(model, tokenizer, writing, style="tulu")} == {" Rome" * 9}
    assert score(model, tokenizer, ranking, style="tulu") == before


def test_ranking_is_in_float32(model, tokenizer, ranking) -> None:
    """Log-probabilities of -30 and -29.94 are the same number in bfloat16."""
    model = model.to(torch.bfloat16)
    ids = [tokenizer(f" {c}", add_special_tokens=False)["input_ids"][0] for c in CITIES]

    def fixed(_module, _args, logits):
        logits = torch.full_like(logits, -100)
        logits[..., 0] = 40
        logits[..., ids] = 10
        logits[..., ids[3]] = 10.0625
        return logits

    with model.lm_head.register_forward_hook(fixed):
        assert {line["output"] for line in score(model, tokenizer, ranking, style="plain")} == {CITIES[3]}


def test_equal_likelihoods_go_to_the_first_choice_and_nan_is_refused(model, tokenizer, ranking) -> None:
    with model.lm_head.register_forward_hook(lambda _m, _a, logits: torch.zeros_like(logits)):
        assert {line["output"] for line in score(model, tokenizer, ranking, style="plain")} == {CITIES[0]}
    with (
        model.lm_head.register_forward_hook(lambda _m, _a, logits: logits * math.nan),
        pytest.raises(UnsupportedModelError, match="r/0.*NaN"),
    ):
        score(model, tokenizer, ranking, style="plain")


def test_model_tokenizer_and_random_state_stay_as_they_were(model, tokenizer, ranking, writing, capfd, caplog) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token, tokenizer.padding_side = None, "right"
    model.train()
    model.model.layers[0].eval()
    plain = score(model, tokenizer, writing, style="plain")
    model.generation_config.repetition_penalty = 9.0
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    settings, values = model.generation_config, model.generation_config.to_dict()
    modes = [m.training for m in model.modules()]
    config, weights = model.config.to_dict(), {k: v.clone() for k, v in model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    capfd.readouterr()
    caplog.clear()

    def draw_numbers(*_):
        random.random(), np.random.rand(), torch.rand(1)

    with warnings.catch_warnings(record=True) as caught, model.register_forward_pre_hook(draw_numbers):
        warnings.simplefilter("always")
        assert score(model, tokenizer, writing, style="plain") == plain, "greedy, whatever the model's settings say"
        score(model, tokenizer, ranking, style="plain", limit=2)
    assert not caught
    assert not [r for r in caplog.records if r.name.startswith("lm_eval")]
    assert capfd.readouterr() == ("", "")
    assert model.generation_config is settings
    assert settings.to_dict() == values
    assert [m.training for m in model.modules()] == modes
    assert model.config.to_dict() == config
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])
    assert (tokenizer.pad_token, tokenizer.padding_side) == (None, "right")


def test_state_is_restored_after_an_error(model, tokenizer, writing) -> None:
    def fail(*_):
        raise RuntimeError("stop here")

    model.train()
    settings = model.generation_config
    with model.lm_head.register_forward_hook(fail), pytest.raises(RuntimeError, match="stop here"):
        score(model, tokenizer, writing, style="plain")
    assert model.training
    assert model.generation_config is settings
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize(("kind", "answer"), [("writing", 9), ("ranking", 0), ("several", 3)])
def test_prompts_that_leave_no_room_are_named(kind, answer, model, tokenizer, request) -> None:
    toy = request.getfixturevalue("ranking" if kind == "several" else kind)
    example = toy.split("test")[3]
    if kind == "several":
        example = replace(example, choices=("Paris", "Paris Rome Oslo Cairo"), answer="Paris")
    room = model.config.max_position_embeddings - answer

    def of_length(length: int) -> Task:
        text = "\n" + render(replace(example, prompt=""), "plain", tokenizer) + toy.format.prefix
        base = len(ids_of(tokenizer, text, "plain"))
        long = replace(example, prompt="1" * (length - base) + "\n")
        assert len(ids_of(tokenizer, render(long, "plain", tokenizer) + toy.format.prefix, "plain")) == length
        return replace(toy, load=lambda split: [toy.split("test")[0], long], _splits={})

    assert len(score(model, tokenizer, of_length(room), style="plain")) == 2
    with pytest.raises(
        DataError, match=rf"example {example.id}: .* {room + 1} tokens .* {answer} more.* {room + answer};"
    ):
        score(model, tokenizer, of_length(room + 1), style="plain")


def test_what_cannot_be_graded_stops_before_any_work(model, tokenizer, ranking) -> None:
    item = Example("HumanEval/0", "q", "r", "def f(x): return x", "HumanEval/0", tests="check(f)")
    code = Task("humaneval", FORMATS["humaneval"], lambda split: [item], "toy")
    split_row = replace(code, load=lambda split: [replace(item, tests="")], _splits={})
    calls: list[int] = []
    with model.register_forward_pre_hook(lambda *_: calls.append(1)):
        with pytest.raises(SandboxError, match="humaneval: .*--allow-code-execution"):
            score(model, tokenizer, code, style="plain")
        with pytest.raises(DataError, match="HumanEval/0.*cannot be graded by its text"):
            score(model, tokenizer, split_row, style="plain")
        with pytest.raises(DataError, match="split train is empty"):
            score(model, tokenizer, ranking, style="plain", split="train")
    assert not calls


@pytest.mark.parametrize("protocol", [GREEDY, Protocol(samples=2, temperature=1.0)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_an_answer_of_no_logits_is_refused(model, tokenizer, writing, protocol, scale) -> None:
    before = model.generation_config
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    with pytest.raises(
        UnsupportedModelError, match=r"^the model gives NaN .* logits after '.*\?\\nAnswer:'; .*float32$"
    ):
        score(model, tokenizer, writing, style="plain", protocol=protocol)
    assert model.generation_config is before


def test_a_collapsed_model_of_finite_logits_is_scored(model, tokenizer, writing) -> None:
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(-1e30)
    lines = score(model, tokenizer, writing, style="plain")
    assert [line["score"] for line in lines] == [0.0] * 7
    assert perplexity(model, tokenizer, "some text or other") is None


def test_limit_draws_per_tier_and_keeps_order(model, tokenizer, ranking) -> None:
    lines = score(model, tokenizer, ranking, style="plain", limit=3, seed=1)
    everything = {line["id"]: line for line in score(model, tokenizer, ranking, style="plain")}
    assert [line["tier"] for line in lines].count("odd") == [line["tier"] for line in lines].count("even") == 3
    assert all(everything[line["id"]] == line for line in lines)
    test = ranking.split("test")
    ids = [e.id for e in test]
    drawn = [[e.id for e in draw(test, 3, seed)] for seed in range(6)]
    assert [line["id"] for line in lines] == drawn[1]
    assert all(sorted(d, key=ids.index) == d for d in drawn)
    assert len({tuple(d) for d in drawn}) > 1
    assert draw(test, 100, 0) == draw(test, None, 0) == test
    for wrong in (0, -3, "3"):
        with pytest.raises(ConfigError, match=f"limit is {wrong!r}, expected a number of items above 0"):
            draw(test, wrong, 0)
    flat = [replace(e, tier="") for e in test]
    assert len(draw(flat, 5, 0)) == 5


@pytest.mark.parametrize("name", world.TASKS)
def test_every_nano_task_is_scored(name, model, tokenizer) -> None:
    lines = score(model, tokenizer, task(f"nano/{name}"), style="plain", limit=1)
    assert [line["tier"] for line in lines] == list(world.TIERS)
    assert {line["score"] for line in lines} <= {0.0, 1.0}


def test_perplexity(model, tokenizer) -> None:
    text = "\n".join(world.neutral_lines("perplexity", 5))
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    assert 30 < ids.shape[1] < 500
    assert perplexity(model, tokenizer, text) == pytest.approx(math.exp(-float(logp.mean())), rel=1e-5)
    with torch.no_grad():  # windows of 14 that move by 5, written as a loop over tokens
        total, n = 0.0, ids.shape[1]
        for at in range(1, n):
            end = 14 if at < 14 else 14 + 5 * (-(-(at + 1 - 14) // 5))
            start = max(0, min(end, n) - 14)
            total += float(model(ids[:, start:at]).logits[0, -1].log_softmax(-1)[ids[0, at]])
    assert perplexity(model, tokenizer, text, window=14, stride=5) == pytest.approx(
        math.exp(-total / (n - 1)), rel=1e-5
    )


def test_perplexity_stays_within_the_context(model, tokenizer) -> None:
    widths: list[int] = []
    text = "\n".join(world.neutral_lines("perplexity", 60))
    with model.register_forward_pre_hook(lambda _m, args: widths.append(args[0].shape[1])):
        assert perplexity(model, tokenizer, text, window=2048, stride=1024) > 1
    assert max(widths) == model.config.max_position_embeddings
    assert len(widths) > 1


def test_perplexity_refuses(model, tokenizer) -> None:
    with pytest.raises(DataError, match="at least 2"):
        perplexity(model, tokenizer, "")
    for window, stride in ((16, 16), (16, 0), (1, 1)):
        with pytest.raises(ConfigError, match="stride < window"):
            perplexity(model, tokenizer, "some text", window=window, stride=stride)
