"""Draws follow the distribution, and depend on seed and prompt alone; pass@k is the share of subsets with a right answer."""

import itertools

import pytest
import torch

from pkt.errors import ConfigError
from pkt.evaluation.sampling import Sampler, drawn
from pkt.evaluation.statistics import pass_at, summarise
from pkt.tasks.formats import FORMATS
from pkt.tasks.protocol import GREEDY, Protocol, resolved


def shares(scores: list[float], temperature: float, top_p: float, steps: int = 20_000) -> list[float]:
    """Share of each token over evenly spaced uniform numbers."""
    uniform = (torch.arange(steps) + 0.5) / steps
    tokens = drawn(torch.tensor([scores]).expand(steps, -1), uniform, temperature, top_p)
    return (torch.bincount(tokens, minlength=len(scores)) / steps).tolist()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_draws_have_the_probabilities_of_the_softmax(temperature) -> None:
    scores = [0.5, -1.0, 2.0, 2.0, -30.0]
    expected = torch.tensor(scores).div(temperature).softmax(0).tolist()
    assert shares(scores, temperature, 1.0) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, [0]), (0.5, [0, 1]), (0.79, [0, 1]), (0.81, [0, 1, 2]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, kept) -> None:
    probabilities = [0.45, 0.35, 0.15, 0.05]
    total = sum(probabilities[i] for i in kept)
    expected = [p / total if i in kept else 0.0 for i, p in enumerate(probabilities)]
    assert shares([float(torch.tensor(p).log()) for p in probabilities], 1.0, top_p) == pytest.approx(
        expected, abs=1e-3
    )


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_unit_interval(uniform) -> None:
    scores = torch.tensor([[0.0, -200.0, 1.0, -300.0]])
    (token,) = drawn(scores, torch.tensor([uniform]), 1.0, 1.0).tolist()
    assert token == (2 if uniform == 0 else 0), "never one of no probability"


def numbers(sampler: Sampler, prompts: list[list[int]], pad: int = 0) -> list[list[float]]:
    """The first uniform numbers of each row of a padded batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    settings = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "attention_mask": mask, "use_cache": True}
    made = sampler.taking_over(ids, settings)
    assert made.keys() == {"do_sample", "attention_mask", "use_cache", "logits_processor"}
    assert made["do_sample"] is False
    return [[stream.random() for _ in range(3)] for stream in made["logits_processor"][0].streams]


def test_streams_depend_on_seed_prompt_and_number_alone() -> None:
    one, two = [1, 2, 3], [4, 5]
    together = numbers(Sampler(0), [one, one, two])
    sampler = Sampler(0)
    apart = [numbers(sampler, [prompt])[0] for prompt in (two, one, one)]
    assert apart == [together[2], together[0], together[1]], "neither the batch nor the order counts"
    assert len({tuple(row) for row in together}) == 3
    assert numbers(Sampler(1), [one, one, two]) != together


def test_greedy_settings_are_left_alone() -> None:
    settings = {"do_sample": False, "attention_mask": torch.ones(1, 2)}
    assert Sampler(0).taking_over(torch.ones(1, 2), settings) is settings


@pytest.mark.parametrize("samples", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(samples) -> None:
    for correct in range(samples + 1):
        answers = [i < correct for i in range(samples)]
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(answers, k))
            assert pass_at(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets)), (correct, k)


def test_summary_has_pass_at_k_with_an_error_over_tasks() -> None:
    lines = [
        {
            "arm": "target",
            "seed": 0,
            "tier": "",
            "id": str(i),
            "unit": str(i),
            "outputs": [""] * 6,
            "correct": c,
            "score": c / 6,
        }
        for i, c in enumerate((0, 1, 6, 3))
    ]
    (row,) = summarise(lines)
    assert [at["k"] for at in row["pass_at"]] == [1, 5]
    assert [row["pass_at"][0]["score"], row["score"]] == pytest.approx([10 / 24] * 2)
    found = torch.tensor([0, 5 / 6, 1, 1], dtype=torch.float64)
    assert row["pass_at"][1]["score"] == pytest.approx(float(found.mean()))
    assert row["pass_at"][1]["standard_error"] == pytest.approx(float(found.std() / 2))


def test_a_recipe_overrides_the_format() -> None:
    code = FORMATS["humaneval"]
    assert resolved(code, "humaneval", shots=None, samples=None, temperature=None, top_p=None) == code.protocol
    assert resolved(code, "humaneval", samples=1, temperature=0.0) == Protocol(0, 1, 0.0, 0.95)
    assert resolved(FORMATS["gsm8k"], "gsm8k", shots=8, too_long="cut") == Protocol(shots=8, too_long="cut")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("humaneval", {"temperature": 0.0}, "evaluate.samples is 20, but humaneval is answered greedily"),
        ("gsm8k", {"samples": 4}, "set evaluate.temperature above 0, or evaluate.samples to 1"),
        ("mbpp", {"shots": 3}, "evaluate.shots is 3, but mbpp has no worked examples; set it to 0"),
        ("gsm8k", {"top_p": 0.5}, "evaluate.top_p is 0.5, but gsm8k is answered greedily"),
        ("mmlu", {"samples": 2, "temperature": 1.0}, "mmlu ranks its choices"),
        ("mmlu", {"temperature": 0.5}, "leave evaluate.samples, temperature and top_p out"),
    ],
)
def test_what_a_task_cannot_be_asked(name, given, message) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(FORMATS[name], name, **given)


def test_only_what_differs_is_told() -> None:
    assert GREEDY.differs() == {}
    assert Protocol(shots=5, too_long="cut").differs() == {"shots": 5, "too_long": "cut"}
