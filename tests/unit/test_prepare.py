"""`pkt data prepare`: splits from raw files and from a small hub, what is left out, what is refused."""

from __future__ import annotations

import csv
import gzip
import json
import os
import sys
from pathlib import Path

import hub_data
import pytest

from pkt import cli
from pkt.errors import ConfigError, DataError
from pkt.tasks.prepare import prepare
from pkt.tasks.sources import task

COUNTS = {"extract": 3, "align": 4, "valid": 5, "train": 1000}
SPLITS = ("extract", "align", "valid", "train")


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def raw_gsm8k(folder: Path) -> Path:
    write(folder / "train.jsonl", [*hub_data.gsm8k_rows(0, 40), *hub_data.gsm8k_rows(0, 2)])
    write(folder / "test.jsonl.gz", hub_data.gsm8k_rows(35, 20))
    return folder


def sizes(folder: Path, name: str) -> tuple[int, ...]:
    found = task(name, folder)
    found.check_disjoint(*SPLITS, "test")
    return tuple(len(found.split(s)) for s in (*SPLITS, "test"))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_gsm8k_from_files(tmp_path):
    made = prepare("gsm8k", tmp_path / "out", place=raw_gsm8k(tmp_path / "raw"), counts=COUNTS)
    assert sizes(tmp_path / "out", "gsm8k") == (3, 4, 5, 23, 20)
    found = task("gsm8k", tmp_path / "out")
    for split in SPLITS:
        for example in found.split(split):
            number = int(example.id.removeprefix("gsm_"))
            assert example.prompt == f"Answer the following question.\n\nQuestion: What is {number} and {number}?"
            assert example.response == f"Answer: It is {2 * number}. So the answer is {2 * number}."
    assert [row["reason"] for row in made.contamination["dropped"]] == [
        *["a test item of gsm8k: question, exact"] * 5,
        *["another row again: question"] * 2,
    ]
    assert {row["id"] for row in made.contamination["dropped"]} == {f"gsm_{i}" for i in (35, 36, 37, 38, 39, 40, 41)}
    assert all(row["normalised"] == 0 for row in made.contamination["overlaps"])
    assert json.loads((tmp_path / "out/splits/gsm8k/contamination.json").read_text()) == made.contamination
    card = (tmp_path / "out/splits/gsm8k/README.md").read_text()
    assert "Seed 0" in card
    assert "MIT" in card
    assert "- 5 rows: a test item of gsm8k" in card
    assert sorted(path.name for path in made.files) == sorted(
        ["README.md", "contamination.json", "extract.jsonl", "align.jsonl", "valid.jsonl", "train.jsonl", "test.jsonl"]
    )
    assert not list((tmp_path / "out").glob(".*")), "nothing temporary stays"


def test_same_seed_same_bytes_another_seed_other_rows(tmp_path):
    raw = raw_gsm8k(tmp_path / "raw")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare("gsm8k", tmp_path / name, place=raw, seed=seed, counts=COUNTS)
    a, b, c = (tree(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert a["splits/gsm8k/train.jsonl"] != c["splits/gsm8k/train.jsonl"]
    assert a["test/gsm8k/test.jsonl"] == c["test/gsm8k/test.jsonl"]


def mmlu_csv(folder: Path, rows: dict[str, list[dict]], *, header: bool) -> None:
    """MMLU's layout: a folder for each part, a file for each subject."""
    for part, of_part in rows.items():
        for subject in {row["subject"] for row in of_part}:
            path = folder / part / f"{subject}_{part}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                if header:
                    writer.writerow(["question", "A", "B", "C", "D", "answer"])
                for row in of_part:
                    if row["subject"] == subject:
                        answer = row["answer"] if header else "ABCD"[row["answer"]]
                        writer.writerow([row["question"], *row["choices"], answer])


MMLU = {
    "dev": hub_data.mmlu_rows(0, 5),
    "val": [*hub_data.mmlu_rows(10, 30), hub_data.LOST, {**hub_data.mmlu_rows(50, 1)[0], "question": 'A "b",\nc'}],
    "test": hub_data.mmlu_rows(38, 4),
}


def test_mmlu_in_every_layout_gives_the_same_bytes(tmp_path):
    layouts = ("csv", "csv with header", "jsonl", "jsonl.gz")
    one, *others = [mmlu_in(tmp_path / layout, layout) for layout in layouts]
    assert all(other == one for other in others)


def mmlu_in(folder: Path, layout: str) -> dict[str, bytes]:
    """The splits made from one layout of the same rows."""
    raw, out = folder / "raw", folder / "out"
    if layout.startswith("csv"):
        mmlu_csv(raw / "data", MMLU, header="header" in layout)
    else:
        for part, rows in MMLU.items():
            by_subject = sorted(rows, key=lambda row: row["subject"])
            write(raw / f"{part}.{layout}", by_subject)
    made = prepare("mmlu", out, place=raw, counts=COUNTS | {"train": 10})
    assert sizes(out, "mmlu") == (3, 4, 5, 10, 4)
    rows = [e for split in SPLITS for e in task("mmlu", out).split(split)]
    assert all("B. None\n" in e.prompt for e in rows), "a choice `None` stays a text"
    assert {e.unit for e in rows} == {"astronomy"}
    assert all(e.id.startswith("astronomy_validation_") for e in rows), "dev rows stay for few-shot prompts"
    assert [row["id"] for row in made.contamination["dropped"]][:1] == ["virology_validation_0"]
    assert len(task("mmlu", out).shots(rows[0], 5)) == 5
    return {name: data for name, data in tree(out).items() if name.endswith(".jsonl")}


def test_mmlu_takes_dev_rows_where_validation_is_not_enough(tmp_path):
    for part, rows in MMLU.items():
        write(tmp_path / "raw" / f"{part}.jsonl", rows)
    made = prepare("mmlu", tmp_path / "out", place=tmp_path / "raw", counts=COUNTS)
    ids = {e.id for split in SPLITS for e in made.splits[split]}
    assert sum("_dev_" in name for name in ids) == 5
    used = [row["normalised"] for row in made.contamination["overlaps"] if row["test"] == "mmlu few-shot examples"]
    assert sum(used) == 5, "and the report says so"


def test_a_broken_csv_row_is_named(tmp_path):
    mmlu_csv(tmp_path, {"val": hub_data.mmlu_rows(0, 2)}, header=False)
    path = tmp_path / "val" / "astronomy_val.csv"
    path.write_text(path.read_text() + "a,b,c\n")
    with pytest.raises(DataError, match=r"astronomy_val.csv:2: 3 cells.*expected a question, four choices"):
        prepare("mmlu", tmp_path / "out", place=tmp_path, counts=COUNTS)


def test_mbpp_by_ids(tmp_path):
    rows = hub_data.mbpp_rows(range(1, 975))
    rows[605 - 1] |= {"text": rows[20 - 1]["text"]}
    path = write(tmp_path / "mbpp.jsonl", rows)
    made = prepare("mbpp", tmp_path / "out", place=path, counts=COUNTS | {"valid": 100})
    assert sizes(tmp_path / "out", "mbpp") == (3, 4, 100, 356, 500)
    ids = {split: {int(e.id.split("/")[1]) for e in examples} for split, examples in made.splits.items()}
    assert ids["extract"] | ids["align"] | ids["train"] < set(range(601, 975))
    assert ids["valid"] >= set(range(511, 601)), "the validation range first"
    assert len(ids["valid"] & set(range(601, 975))) == 10
    assert [(row["id"], row["like"]) for row in made.contamination["dropped"]] == [("mbpp/605", "mbpp/20")]
    assert [e.id for e in task("mbpp", tmp_path / "out").split("test")] == [f"mbpp/{i}" for i in range(11, 511)]


def test_mbpp_plus_is_free_of_both_test_sets(tmp_path):
    write(tmp_path / "mbpp.jsonl", hub_data.mbpp_rows(range(1, 975)))
    write(tmp_path / "mbpp_plus.jsonl.gz", hub_data.mbpp_plus_rows())
    prepare("mbpp_plus", tmp_path / "out", place=tmp_path, counts=COUNTS)
    found = task("mbpp_plus", tmp_path / "out")
    numbers = {int(e.id.split("/")[1]) for split in SPLITS for e in found.split(split)}
    assert numbers.isdisjoint(range(202, 757, 2)), "ids of the scored rows, 100 to 377"
    assert numbers >= {757, 758, 760}
    assert [e.id for e in found.split("test")][:2] == ["mbpp_plus/202", "mbpp_plus/204"]
    assert len(task("mbpp", tmp_path / "out").split("test")) == 500


@pytest.mark.parametrize("layout", ["folders", "jsonl"])
def test_math(tmp_path, layout):
    raw = tmp_path / "raw"
    for part, start, count in (("train", 0, 12), ("test", 11, 3)):
        rows = [row for subject in ("algebra", "geometry") for row in hub_data.math_rows(subject, start, count)]
        if layout == "jsonl":
            write(raw / f"{part}.jsonl", rows)
        else:
            for i, row in enumerate(rows):
                path = raw / part / ("algebra" if i < count else "geometry") / f"{i}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(row))
    made = prepare("math", tmp_path / "out", place=raw, counts=COUNTS)
    assert sizes(tmp_path / "out", "math") == (3, 4, 5, 10, 6)
    assert {row["id"] for row in made.contamination["dropped"]} == {"math_11", "math_23"}


def test_humaneval_from_rows_of_ones_own(tmp_path):
    item = hub_data.humaneval_rows(1)[0] | {
        "prompt": 'def f0(x):\n    """Return x with the number one added to it, whatever x may be at that time."""\n'
    }
    rows = [
        {"messages": [{"role": "user", "content": f"Write {i}"}, {"role": "assistant", "content": f"def g{i}(): pass"}]}
        for i in range(20)
    ]
    rows[7]["messages"][1]["content"] = item["prompt"] + "    return 1 + x"
    own, test = write(tmp_path / "own.jsonl", rows), write(tmp_path / "he" / "HumanEval.jsonl.gz", [item])
    made = prepare("humaneval", tmp_path / "out", place=own, test=test, counts=COUNTS)
    assert sizes(tmp_path / "out", "humaneval") == (3, 4, 5, 7, 1)
    (dropped,) = made.contamination["dropped"]
    assert (dropped["id"], dropped["like"]) == ("own.jsonl:8", "HumanEval/0")
    assert "prompt" in dropped["reason"]
    with pytest.raises(DataError, match="humaneval has no public training data; give rows of your own .*--from FILE"):
        prepare("humaneval", tmp_path / "other", counts=COUNTS)
    with pytest.raises(DataError, match="no test set beside the training data; give its file with --test FILE"):
        prepare("humaneval", tmp_path / "other", place=own, counts=COUNTS)
    with pytest.raises(DataError, match="its rows have no `messages`"):
        prepare("humaneval", tmp_path / "other", place=test, counts=COUNTS)
    assert not (tmp_path / "other").exists(), "what is refused leaves nothing"


def test_a_test_set_that_is_there_is_used_and_kept(tmp_path):
    raw = raw_gsm8k(tmp_path / "raw")
    out = tmp_path / "out"
    test = write(out / "test" / "gsm8k" / "test.jsonl", hub_data.gsm8k_rows(30, 3))
    before = test.read_bytes()
    with pytest.raises(ConfigError, match="test.jsonl holds another test set than the one that was read"):
        prepare("gsm8k", out, place=raw, counts=COUNTS)
    assert not (out / "splits").exists() or not any((out / "splits").iterdir())
    (raw / "test.jsonl.gz").unlink()
    prepare("gsm8k", out, place=raw, counts=COUNTS)
    assert test.read_bytes() == before
    assert sizes(out, "gsm8k") == (3, 4, 5, 25, 3)


def test_a_place_that_is_taken_is_refused_and_other_tasks_stay(tmp_path):
    out = tmp_path / "out"
    prepare("gsm8k", out, place=raw_gsm8k(tmp_path / "raw"), counts=COUNTS)
    before = tree(out)
    with pytest.raises(ConfigError, match="out/splits/gsm8k is not empty; remove it, or give another folder"):
        prepare("gsm8k", out, place=tmp_path / "raw", seed=1, counts=COUNTS)
    for part, rows in MMLU.items():
        write(tmp_path / "mmlu" / f"{part}.jsonl", rows)
    made = prepare("mmlu", out, place=tmp_path / "mmlu", counts=COUNTS)
    assert {row["test"] for row in made.contamination["overlaps"]} == {"mmlu", "mmlu few-shot examples", "gsm8k"}
    assert {name: data for name, data in tree(out).items() if name in before} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is a file"):
        prepare("gsm8k", tmp_path / "file", place=tmp_path / "raw", counts=COUNTS)


def test_a_failure_while_writing_leaves_no_splits(tmp_path, monkeypatch):
    raw, out = raw_gsm8k(tmp_path / "raw"), tmp_path / "out"
    real = os.replace

    def fail(one: Path, two: Path) -> None:
        if Path(two).name == "README.md":
            raise OSError(28, "No space left on device", str(two))
        real(one, two)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        prepare("gsm8k", out, place=raw, counts=COUNTS)
    monkeypatch.undo()
    assert not list(out.glob(".*"))
    assert not (out / "splits" / "gsm8k").exists()
    prepare("gsm8k", out, place=raw, counts=COUNTS)
    assert sizes(out, "gsm8k") == (3, 4, 5, 23, 20)


def test_what_cannot_be_prepared(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="nano/mmlu is embedded"):
        prepare("nano/mmlu", out)
    with pytest.raises(ConfigError, match="unknown task 'gms8k'; did you mean 'gsm8k'"):
        prepare("gms8k", out)
    with pytest.raises(DataError, match="--from .*nowhere: no such file or folder"):
        prepare("gsm8k", out, place=tmp_path / "nowhere")
    with pytest.raises(DataError, match="no training data of gsm8k in it; expected train.jsonl"):
        prepare("gsm8k", out, place=tmp_path)
    with pytest.raises(
        DataError, match="35 rows can be used .*, but extract, align and valid take 200 and train needs one"
    ):
        prepare("gsm8k", out, place=raw_gsm8k(tmp_path / "raw"), counts={**COUNTS, "extract": 191})
    assert not out.exists()


@pytest.mark.parametrize("name", ["gsm8k", "mmlu", "mbpp", "mbpp_plus", "math"])
def test_from_the_hub(monkeypatch, tmp_path, name):
    hub_data.serve(monkeypatch, tmp_path)
    if name.startswith("mbpp"):  # a data set must hold the whole test set
        rows = hub_data.mbpp_rows(range(11, 511))
        (tmp_path / "hub" / "mbpp" / "full" / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    made = prepare(name, tmp_path / "out", counts=COUNTS)
    expected = {
        "gsm8k": (3, 4, 5, 23, 20),
        "mmlu": (3, 4, 5, 8, 9),  # every dev row is a row of validation again
        "mbpp": (3, 4, 5, 33, 500),
        "mbpp_plus": (3, 4, 5, 11, 278),
        "math": (3, 4, 5, 30, 14),
    }
    assert sizes(tmp_path / "out", name) == expected[name]
    assert all("hub " in line for line in _sources(made.folder, name))


def _sources(folder: Path, name: str) -> list[str]:
    text = (folder / "splits" / name.removesuffix("_plus") / "README.md").read_text()
    return text.split("## Sources")[1].split("## Files")[0].strip().split("\n")[2:]


def test_the_command_says_that_worked_examples_were_dealt(tmp_path, monkeypatch, capfd):
    mmlu_csv(tmp_path / "raw", {"dev": hub_data.mmlu_rows(0, 5), "test": hub_data.mmlu_rows(38, 4)}, header=False)
    line = f"pkt data prepare mmlu --out {tmp_path / 'out'} --from {tmp_path / 'raw'} --extract 1 --align 1 --valid 1"
    monkeypatch.setattr(sys, "argv", line.split())
    cli.main()
    assert "5 rows are worked examples of few-shot prompts too" in capfd.readouterr().out


def test_the_command(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", "200")
    raw = raw_gsm8k(tmp_path / "raw")
    line = f"pkt data prepare gsm8k --out {tmp_path / 'out'} --from {raw} --extract 3 --align 4 --valid 5 --seed 2"
    monkeypatch.setattr(sys, "argv", line.split())
    cli.main()
    out = capfd.readouterr().out
    assert "23 of 1000" in out
    assert "in gsm8k" in out
    assert "a test item of gsm8k: question, exact" in out
    assert f"next: pkt tasks gsm8k --data {tmp_path / 'out'}" in out
    monkeypatch.setattr(sys, "argv", line.split())
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    err = capfd.readouterr().err.strip()
    assert err.startswith("error: ")
    assert "\n" not in err
