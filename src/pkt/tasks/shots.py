"""Worked examples that may stand before a question: rows of a data folder or of the hub, or a file of the package.

MMLU's are its dev rows. GSM8K's are the eight chains of thought of Wei et al. 2022 (arXiv:2201.11903, Table 20), MATH's the four of Minerva's prompt
(Lewkowycz et al. 2022, arXiv:2206.14858, appendix D.2), without the sentence `Final Answer: ...` after the box. Both are embedded.
A data folder's own file, `test/TASK/NAME`, comes before an embedded one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pkt.errors import DataError
from pkt.tasks.base import Example
from pkt.tasks.format import Format
from pkt.tasks.jsonl import read_jsonl

NAMES = {"mmlu": ("dev.jsonl", "dev.jsonl.gz"), "gsm8k": ("cot_exemplars.jsonl",)}
"""Files of a data folder."""
EMBEDDED = {name: Path(__file__).parent / f"{name}_cot.jsonl" for name in ("gsm8k", "math")}


def worked_in(form: Format, folder: Path) -> Sequence[Example]:
    """The worked examples for a data folder.

    Raises:
        DataError: there are none, or a row is wrong.
    """
    places = [folder / "test" / form.name / name for name in NAMES.get(form.name, ())]
    path = next((place for place in places if place.is_file()), EMBEDDED.get(form.name))
    if path is None:
        raise DataError(f"{form.name}: no worked examples; put them into {places[0]}, or set evaluate.shots=0")
    return _read(form, path)


def worked_on_hub(form: Format, dev: Callable[[], Sequence[Example]]) -> Sequence[Example]:
    """The worked examples beside a data set of the hub.

    Args:
        dev: reads the data set's own, where none are embedded.
    """
    return _read(form, EMBEDDED[form.name]) if form.name in EMBEDDED else dev()


def _read(form: Format, path: Path) -> Sequence[Example]:
    read = form.from_worked or form.from_test
    return [read(row, f"{path.name}:{number}") for number, (_, row) in enumerate(read_jsonl(path), 1)]
