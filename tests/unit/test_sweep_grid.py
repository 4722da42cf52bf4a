"""The grid of a sweep: axes, names, shipped sweeps, and a line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from pkt.errors import ConfigError
from pkt.machine import Machine
from pkt.recipe_files import RECIPES, load_recipe
from pkt.sweeping.engine import check_points, planned
from pkt.sweeping.grid import SWEEPS, folder_name, load_sweep, parse_over, points

FEW = {"method.steps": [2, 8]}


def test_axes_are_read_as_yaml():
    found = parse_over(["method.steps=2,4", "task.name=nano/mmlu,'a, b'", "method.hidden=null,true,1e-4,plain"])
    assert found == {
        "method.steps": [2, 4],
        "task.name": ["nano/mmlu", "a, b"],
        "method.hidden": [None, True, 1e-4, "plain"],
    }
    assert type(found["method.steps"][0]) is int


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["method.steps"], "expected KEY=V1,V2"),
        (["method.steps="], "expected KEY=V1,V2"),
        (["=1,2"], "expected KEY=V1,V2"),
        (["method.steps=1,1"], "1 stands twice"),
        (["method.steps=[1,2]"], r"found \[1, 2\] among the values of method.steps; expected scalars"),
        (["method.steps={a: 1}"], "expected scalars"),
        (["method.steps=1]"], "not valid YAML"),
        (["method.steps=1", "method.steps=2"], "stands twice; put all its values into one"),
        (["seed=1,2"], "seed cannot be swept: say how many with --seeds"),
        (["name=a,b"], "name cannot be swept"),
        (["method.lr=2020-01-01"], "expected scalars"),
    ],
)
def test_bad_axes(texts, message):
    with pytest.raises(ConfigError, match=message) as e:
        parse_over(texts)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"method.stepz": [2]}, "point stepz=2: .*unknown key 'method.stepz'; did you mean 'steps'"),
        ({"method.steps": [2, 0]}, "point steps=0: .*method.steps: found 0"),
        ({"method.steps": [2, "many"]}, "point steps=many: .*method.steps: found 'many'"),
        ({"task.labls": [2]}, "point labls=2: unknown key 'task.labls'; did you mean 'labels'"),
        ({"seed.x": [2]}, "point x=2, --over seed.x: seed holds 0, not keys"),
        ({"method.name": ["latten"]}, "point name=latten: unknown method 'latten'; did you mean 'laten'"),
        ({"method.transfer_rate": [float("nan")]}, "over.method.transfer_rate"),
        ({"method.steps": []}, "method.steps has no values"),
        ({"method.steps": list(range(1, 10_002))}, "the sweep has 10,001 runs"),
    ],
)
def test_bad_points_are_named(over, message):
    with pytest.raises(ConfigError, match=message):
        points(load_sweep(["nano_tuned"], over))


def test_points_stand_in_the_order_of_the_grid_with_readable_names():
    found = points(load_sweep(["nano_tuned"], {**FEW, "method.transfer_rate": [0.05, 0.1]}, ["method.lr=1e-3"], 2))
    assert [point.name for point in found] == [
        f"steps={steps},transfer_rate={rate}" for steps in (2, 8) for rate in (0.05, 0.1)
    ]
    assert [point.recipe.method["steps"] for point in found] == [2, 2, 8, 8]
    assert {point.recipe.method["lr"] for point in found} == {1e-3}
    assert {point.recipe.name for point in found} == {"nano_tuned"}


def test_methods_side_by_side_have_their_own_options():
    found = points(load_sweep(["nano_tuned"], {"method.name": ["laten", "direct"]}, ["method.transfer_rate=0.3"]))
    assert [point.recipe.method["name"] for point in found] == ["laten", "direct"]
    assert "steps" in found[0].recipe.method
    assert found[1].recipe.method == {"name": "direct", "transfer_rate": 0.3}


def test_several_recipes_are_told_apart_by_name():
    found = points(load_sweep(["nano_tuned", "nano_sft"], {"task.labels": [16, 32]}))
    assert [point.name for point in found] == [
        "nano_tuned,labels=16",
        "nano_tuned,labels=32",
        "nano_sft,labels=16",
        "nano_sft,labels=32",
    ]
    assert [point.name for point in points(load_sweep(["nano_tuned"]))] == ["nano_tuned"]
    with pytest.raises(ConfigError, match="two recipes have the name 'nano_sft'"):
        points(load_sweep(["nano_sft", "nano_sft"]))


def test_keys_with_one_last_part_are_shown_in_full():
    found = points(load_sweep(["nano_tuned"], {"source.name": ["a"], "target.name": ["b/c"]}))
    assert found[0].name == "source.name=a,target.name=b/c"
    assert folder_name(found[0].name) == "source.name=a,target.name=b-c"


def test_folder_names_are_safe_short_and_distinct():
    assert folder_name("a=../../x y") == "a=..-..-x-y"
    assert len(folder_name("a=" + "x" * 500)) <= 120
    assert folder_name("a=" + "x" * 500) != folder_name("a=" + "x" * 501)
    found = points(load_sweep(["nano_tuned"], {"source": ["a/b", "a-b"]}))
    assert len({folder_name(point.name) for point in found}) == 2


def test_recipes_whose_names_differ_in_odd_characters_have_folders_of_their_own(tmp_path):
    text = (RECIPES / "nano_tuned.yaml").read_text(encoding="utf-8")
    files = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    for path, name in zip(files, ("a/b", "a-b"), strict=True):
        path.write_text(f"{text}\nname: {name}\n", encoding="utf-8")
    found = points(load_sweep([str(path) for path in files], {"method.steps": [2]}))
    assert len({folder_name(point.name) for point in found}) == 2


def test_seeds_count_on_and_share_the_test_items():
    sweep = load_sweep(["nano_tuned"], FEW, ["seed=5", "evaluate.limit=3"], 2)
    runs = planned(sweep, Path("out"), certify=False)
    assert [str(run.folder) for run in runs] == [
        f"out/steps={steps}/seed-{seed}" for steps in (2, 8) for seed in (5, 6)
    ]
    assert [(run.recipe.seed, run.recipe.scoring_seed) for run in runs[:2]] == [(5, 5), (6, 5)]


def test_certificates_have_their_seeds_inside():
    sweep = load_sweep(["nano_tuned"], FEW, (), 3)
    runs = planned(sweep, Path("out"), certify=True)
    assert [str(run.folder) for run in runs] == ["out/steps=2", "out/steps=8"]
    assert {run.recipe.certificate.seeds for run in runs} == {3}
    with pytest.raises(ConfigError, match="two seeds at least"):
        planned(load_sweep(["nano_tuned"], FEW, (), 1), Path("out"), certify=True)
    usual = planned(load_sweep(["nano_tuned"], FEW), Path("out"), certify=True)
    assert usual[0].recipe.certificate.seeds == 5


def test_certificates_of_different_numbers_of_seeds_are_no_table():
    both = load_sweep(["nano_tuned", "nano_demo"])
    with pytest.raises(
        ConfigError,
        match="certificates on nano/mmlu have 3, 5 seeds, but points are compared seed by seed; say --seeds 5",
    ):
        planned(both, Path("out"), certify=True)
    assert len(planned(both, Path("out"), certify=False)) == 2
    assert len(planned(load_sweep(["nano_tuned", "nano_demo"], seeds=4), Path("out"), certify=True)) == 2


def test_a_sweep_needs_scores_of_target_and_result(tmp_path):
    text = (RECIPES / "llama2_13b_to_7b_mbpp.yaml").read_text(encoding="utf-8")
    (tmp_path / "unscored.yaml").write_text(f"{text}evaluate: {{arms: []}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="a sweep compares the result with the target"):
        points(load_sweep([str(tmp_path / "unscored.yaml")], FEW))


def test_what_is_set_is_not_swept():
    with pytest.raises(ConfigError, match="method.steps is both set and swept"):
        points(load_sweep(["nano_tuned"], FEW, ["method.steps=3"]))


# sweeps as files


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_takes_more_from_the_command_line(tmp_path):
    text = "question: Why?\nrecipes: [nano_tuned]\nover: {method.steps: [2]}\nset: [method.lr=1e-3]\nseeds: 3\n"
    found = load_sweep([write(tmp_path, text)], {"method.bias": [True], "method.steps": [4, 8]}, ["seed=1"], 2)
    assert found.over == {"method.steps": [4, 8], "method.bias": [True]}
    assert (found.set, found.seeds, found.question) == (["method.lr=1e-3", "seed=1"], 2, "Why?")


def test_recipes_lie_beside_a_sweep(tmp_path, monkeypatch):
    (tmp_path / "own.yaml").write_text((RECIPES / "nano_tuned.yaml").read_text())
    sweep = write(tmp_path, "recipes: [own.yaml]\nover: {method.steps: [2]}\n")
    monkeypatch.chdir("/")
    assert points(load_sweep([sweep]))[0].recipe.name == "own"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipes: [nano_tuned]\novr: {a: [1]}\n", "unknown key 'ovr'; did you mean 'over'"),
        ("recipes: []\n", "recipes: found"),
        ("recipes: [nano_tuned]\nseeds: 0\n", "seeds: found 0"),
        ("recipes: [nano_tuned]\nover: {seed: [1]}\n", "seed cannot be swept"),
        ("recipes: [nano_tuned]\nover: {method.steps: [[1]]}\n", "expected scalars"),
        ("recipes: [nano_tuned]\nover: {a.b: [1]}\nover: {a.b: [1]}\n", "'over' stands twice"),
        ("over: {method.steps: [1]}\n", "missing key 'recipes'"),
        ("recipes: [nano_tune]\n", "mine.yaml: no recipe 'nano_tune'.*did you mean 'nano_tuned'"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as e:
        load_sweep([write(tmp_path, text)])
    assert "\n" not in str(e.value)


def test_unknown_names_and_mixed_names():
    with pytest.raises(ConfigError, match="no recipe or sweep 'stepz'.*did you mean 'steps'"):
        points(load_sweep(["stepz"]))
    with pytest.raises(ConfigError, match="there/mine.yaml: no such file; give a recipe's file"):
        points(load_sweep(["there/mine.yaml"]))
    with pytest.raises(ConfigError, match="is a sweep, which stands alone"):
        load_sweep(["steps", "nano_tuned"])


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_sweeps_are_right(path, tmp_path):
    """As far as that can be said without a model's weights: `pkt sweep NAME` starts."""
    sweep = load_sweep([path.stem])
    assert sweep.question.endswith("?")
    assert sweep.seeds == 3
    assert len(points(sweep)) > 1
    assert load_sweep([str(path)]) == sweep
    check_points(planned(sweep, tmp_path / "out", certify=False), Machine("cpu"), certify=False)


def test_every_question_of_the_papers_has_a_sweep():
    assert {path.stem for path in SWEEPS.glob("*.yaml")} == {
        "steps", "transfer_rate", "learning_rate", "hypernetwork", "penalty", "extract_examples", "low_resource",
        "specialist", "scale",
    }  # fmt: skip
    assert {"llama2_70b_to_13b", "wizardmath_13b_to_llama2_7b_gsm8k"} <= {path.stem for path in RECIPES.glob("*.yaml")}
    assert load_recipe("wizardcoder_13b_to_llama2_7b_mbpp").source.name == "WizardLMTeam/WizardCoder-Python-13B-V1.0"
