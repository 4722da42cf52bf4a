"""Models from the hub, with folders in its place: what is fetched when, and what is said where it cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from pkt.errors import DataError
from pkt.models.lm import LM

SHA = "0" * 40
CARD = "---\nlicense: apache-2.0\n---\n# A model\n"


class FakeHub:
    """Repositories that are folders, a cache of what was fetched of them, and who was asked for headers."""

    def __init__(self, folder: Path) -> None:
        self.repositories: dict[str, Path] = {}
        self.cache, self.fetched, self.asked = folder, [], []

    def snapshot_download(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        out = self.cache / name
        out.mkdir(parents=True, exist_ok=True)
        files = [path.name for path in self.repositories[name].iterdir()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            if not (out / file).exists():
                self.fetched.append(f"{name}/{file}")
                shutil.copyfile(self.repositories[name] / file, out / file)
        return str(out)

    def get_safetensors_metadata(self, name: str, *, revision: str | None) -> object:
        self.asked.append(name)
        return huggingface_hub.get_local_safetensors_metadata(self.repositories[name])

    @property
    def weights(self) -> set[str]:
        """The repositories whose weights were fetched."""
        return {path.rpartition("/")[0] for path in self.fetched if path.endswith(".safetensors")}


@pytest.fixture
def hub(monkeypatch, tmp_path, make_lm) -> FakeHub:
    made = FakeHub(tmp_path / "cache")
    for role in ("source", "target"):
        folder = Path(shutil.copytree(make_lm("llama", role).name, tmp_path / "remote" / role))
        (folder / "README.md").write_text(CARD, encoding="utf-8")
        made.repositories[f"some/{role}"] = folder
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", made.get_safetensors_metadata)
    return made


def pair(recipe, name: str, **more: object) -> Path:
    """A recipe for the pair of the hub."""
    options = {"laten": {"steps": 2}, "seeking": {"rank": 2}}[name]
    return recipe(source="some/source", target="some/target", method={"name": name, **options}, **more)


@pytest.mark.parametrize("name", ["laten", "seeking"])
def test_plans_and_dry_runs_fetch_no_weights(pkt, recipe, hub, tmp_path, name):
    path = pair(recipe, name, task={"name": "nano/gsm8k", "prompt_style": "plain"})
    out = ("--out", tmp_path / "out", "--dry-run")
    for command in (("plan", path), ("run", path, *out), ("certify", path, *out), ("sweep", path, "--seeds", 2, *out)):
        done = pkt(*command)
        assert done.code == 0, done.err
    assert set(hub.asked) == {"some/source", "some/target"}
    assert hub.weights == set()


def test_the_headers_are_those_of_the_files(hub, make_lm):
    for shard in ("5GB", "20KB"):
        with make_lm("llama", "target").loaded() as model:
            shutil.rmtree(hub.repositories["some/target"])
            model.save_pretrained(hub.repositories["some/target"], max_shard_size=shard)
        shutil.rmtree(hub.cache, ignore_errors=True)
        lm = LM("some/target", device="cpu")
        told, parameters, shape = lm.checkpoint.headers, lm.parameters(), lm.shape(1, "down")
        lm.check()
        assert hub.weights == set()
        local = LM(hub.repositories["some/target"], device="cpu")
        assert (told, parameters, shape) == (local.checkpoint.headers, local.parameters(), local.shape(1, "down"))
    assert hub.asked == ["some/target"] * 2


@pytest.mark.parametrize(
    "read",
    [
        lambda lm: lm.digest,
        lambda lm: lm.tensor("model.norm.weight"),
        lambda lm: lm.slices("up", {0: [1]}),
        lambda lm: lm.loaded().__enter__(),
    ],
)
def test_weights_are_fetched_when_they_are_read(hub, read):
    lm = LM("some/target", device="cpu")
    assert lm.parameters() > 0
    assert hub.weights == set()
    read(lm)
    assert hub.weights == {"some/target"}


def test_the_hub_is_not_asked_for_headers_of_what_the_cache_holds(hub):
    _ = LM("some/target").digest
    assert LM("some/target").parameters() > 0
    assert hub.asked == []


@pytest.fixture
def offline(monkeypatch, tmp_path, make_lm) -> Callable[..., LM]:
    """`offline("*.json")`: a model of which the cache holds files, and the list of all; HF_HUB_OFFLINE is set for all tests."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = Path(make_lm("llama", "target").name)

    def made(*patterns: str) -> LM:
        name = f"some/model{len(list(tmp_path.iterdir()))}"
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        kept = {path for pattern in patterns for path in model.glob(pattern)}
        for path in kept:
            (folder / "snapshots" / SHA).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / "snapshots" / SHA / path.name)
        files = {name: {"size": 1, "blob_id": SHA} for name in ("README.md", *(path.name for path in model.iterdir()))}
        for path, text in (
            ("refs/main", SHA),
            (f"trees/{SHA}.json", json.dumps({"format_version": 1, "files": files})),
        ):
            (folder / path).parent.mkdir()
            (folder / path).write_text(text)
        return LM(name, device="cpu")

    return made


def test_a_cache_with_weights_serves_offline(offline):
    lm = offline("*")  # the card is not in it: earlier versions fetched none
    assert lm.parameters() > 0
    lm.check()
    assert len(lm.digest) == 64


def test_a_cache_without_weights_says_so_offline(offline):
    lm = offline("*.json")
    with pytest.raises(DataError, match="neither a folder here nor in the hub cache, and the hub could not be reached"):
        lm.parameters()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.OfflineModeIsEnabled("offline"), "some/target is neither .* and the hub could not be reached"),
        (errors.HTTPError("no route"), "some/target is neither .* and the hub could not be reached"),
        (errors.NotASafetensorsRepoError("none"), "no model.safetensors and no index; expected safetensors weights"),
    ],
)
def test_headers_that_cannot_be_had_are_one_line(hub, monkeypatch, error, said):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", fail)
    if isinstance(error, errors.NotASafetensorsRepoError):
        (hub.repositories["some/target"] / "model.safetensors").unlink()
    with pytest.raises(DataError, match=said) as found:
        LM("some/target").parameters()
    assert "\n" not in str(found.value)


def test_headers_that_the_hub_cannot_read_are_read_from_the_files(hub, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise errors.SafetensorsParsingError("header too long")

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", fail)
    assert LM("some/target").parameters() > 0
    assert hub.weights == {"some/target"}


def test_the_licence_is_the_target_s_own(pkt, recipe, hub, tmp_path):
    done = pkt("run", pair(recipe, "laten"), "--out", tmp_path / "out", "--set", "evaluate.arms=[result]")
    assert done.code == 0, done.err
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert "\nlicense: apache-2.0\n" in card
    assert "# A model" not in card
