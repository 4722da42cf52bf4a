"""Every mistake in a recipe gives its one line."""

from __future__ import annotations

import pytest

from pkt.config import validate
from pkt.errors import ConfigError
from pkt.methods import METHODS, method_of
from pkt.methods.laten import LatenConfig
from pkt.recipe_files import RECIPES, load_recipe
from pkt.strict_yaml import read_yaml, yaml_text

GOOD = """
source: nano/source
target: {name: nano/target}
task: {name: nano/mmlu, prompt_style: plain}
method: {name: laten, lr: 3e-5}
"""


@pytest.fixture
def recipe(tmp_path):
    def write(text: str, *overrides: str):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return load_recipe(str(path), overrides)

    return write


def test_defaults_and_short_forms(recipe):
    found = recipe(GOOD, "method.steps=4", "source.revision=main", "seed=3")
    assert (found.name, found.source.name, found.source.revision, found.seed) == ("mine", "nano/source", "main", 3)
    assert found.method == {"name": "laten", "lr": 3e-5, "steps": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "sed: 1\n", "unknown key 'sed'; did you mean 'seed'"),
        (GOOD.replace("prompt_style", "promt_style"), "unknown key 'task.promt_style'; did you mean 'prompt_style'"),
        (GOOD.replace("plain", "plane"), "task.prompt_style: found 'plane'"),
        (GOOD + "seed: one\n", "seed: found 'one'"),
        (GOOD + "seed: 1.5\n", "seed: found 1.5"),
        (GOOD + "seed: true\n", "seed: found True"),
        (GOOD.replace("source: nano/source\n", ""), "missing key 'source'"),
        (GOOD + "seed: 1\nseed: 2\n", "'seed' stands twice .line 7"),
        (GOOD + "evaluate: {limit: 0}\n", "evaluate.limit: found 0"),
        ("- 1\n", "expected keys and values, found list"),
        ("a: [\n", "not valid YAML"),
        (GOOD.replace("name: laten, ", ""), "needs a `name`"),
    ],
)
def test_bad_recipes(recipe, text, message):
    with pytest.raises(ConfigError, match=message) as e:
        recipe(text)
    assert "mine.yaml" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transfer_rat": 0.1}, "unknown key 'method.transfer_rat'; did you mean 'transfer_rate'"),
        ({"transfer_rate": 0.0}, "method.transfer_rate: found 0.0"),
        ({"transfer_rate": 1.5}, "method.transfer_rate: found 1.5"),
        ({"transfer_rate": "0.1"}, "method.transfer_rate: found '0.1'"),
        ({"steps": 0}, "method.steps: found 0"),
        ({"attribution": {"scal": "exact"}}, "unknown key 'method.attribution.scal'; did you mean 'scale'"),
        ({"init": "xavier"}, "method.init: found 'xavier'"),
    ],
)
def test_bad_method_options(options, message):
    with pytest.raises(ConfigError, match=message):
        validate(LatenConfig, options, "here", "method")


def test_bad_overrides(recipe):
    with pytest.raises(ConfigError, match="expected key.path=value"):
        recipe(GOOD, "seed")
    with pytest.raises(ConfigError, match="seed holds 0, not keys"):
        recipe(GOOD + "seed: 0\n", "seed.x=1")


def test_another_method_starts_from_its_own_defaults():
    found = load_recipe("nano_tuned", ["method.epochs=2", "method.name=seeking"])
    assert (found.name, found.method) == ("nano_tuned_seeking", {"name": "seeking", "epochs": 2})
    assert load_recipe("nano_tuned", ["name=mine", "method.name=seeking"]).name == "mine"
    assert load_recipe("nano_tuned", ["method.name=laten"]) == load_recipe("nano_tuned")


def test_the_message_of_a_bad_key_holds_the_override_that_brought_it():
    with pytest.raises(ConfigError, match=r"nano_tuned\.yaml --set steps=3: unknown key 'steps'"):
        load_recipe("nano_tuned", ["steps=3"])


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_can_replace_that_of_a_recipe(name):
    method_of(load_recipe("nano_tuned", [f"method.name={name}"]))


def test_unknown_names_say_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'nano_tuned'"):
        load_recipe("nano_tune")
    with pytest.raises(ConfigError, match="unknown method 'latten'; did you mean 'laten'"):
        METHODS.get("latten")


def test_numbers_in_scientific_notation_are_numbers():
    assert read_yaml("a: 1e-4\nb: 3e5\nc: 1.e3\nd: e5\n", "x") == {"a": 1e-4, "b": 3e5, "c": 1e3, "d": "e5"}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_right(path):
    found = load_recipe(str(path))
    options = dict(found.method)
    method = METHODS.get(options.pop("name"))
    validate(method.config, options, str(path), "method")
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("text", ["1e-4", "7e12345", ".5e3", "1E5", "null", "2024-01-01", "0x1f"])
def test_texts_that_look_like_numbers_stay_texts(text):
    """`7e12345` is a commit."""
    assert read_yaml(yaml_text({"revision": text}), "x") == {"revision": text}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: {{ name }}", r"key .* is no text \(line 1\); put it in quotes"),
        ("? [a]\n: 1", "is no text"),
        ("name: 2024-13-45", "not valid YAML: month must be in 1..12"),
        ("a: !!int abc", "not valid YAML: "),
        ("a: " + "[" * 3000 + "]" * 3000, "not valid YAML: "),
    ],
)
def test_slips_are_one_line(text, message):
    with pytest.raises(ConfigError, match=message) as e:
        read_yaml(text, "x")
    assert "\n" not in str(e.value)


def test_merge_keys_are_yaml():
    assert read_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}", "x")["b"] == {"x": 1, "y": 2}
