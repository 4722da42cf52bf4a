"""What a task is: a format pointed at data in five splits, and prompts without labels where there are some."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from pkt.errors import DataError

if TYPE_CHECKING:
    from pkt.tasks.format import Format
    from pkt.tasks.reading import Dropped

log = logging.getLogger(__name__)

SPLITS = ("extract", "align", "train", "valid", "test")
LATER_FIELDS = ("paraphrases", "opening", "header", "tests", "plain", "wordings")
"""Of examples: where empty they are left out of fingerprints, so that older ones stay."""
_WORKED = "worked examples"
UNLABELLED = "unlabelled"
"""Prompts that no split asks, without labels: read like a split, by the methods that are told to."""


@dataclass(frozen=True, slots=True)
class Plain:
    """An item in the plain style, where that is not the user's text, a line break and the assistant's."""

    prompt: str
    """Everything up to where the model goes on, with no forced start after it."""
    response: str
    given: str = ""
    """Code at the end of the prompt that belongs to the answer: it is put back before grading."""


@dataclass(frozen=True, slots=True)
class Example:
    """One item: what is asked, the right response, and how it is graded."""

    id: str
    prompt: str
    """The user's text."""
    response: str
    """The assistant's text; it starts with the format's forced prefix, if the format has one."""
    answer: str
    """What grading compares with: a number, the right choice, or code."""
    unit: str
    """What the item asks about (a person, a good, a word, a subject): items of one unit are not independent."""
    tier: str = ""
    """Group of test items that is reported by itself (nano: known, located, aligned, new, skill)."""
    choices: tuple[str, ...] = ()
    """The texts that are ranked by likelihood; empty where the model generates."""
    paraphrases: tuple[str, ...] = ()
    """Other users' texts that ask the same and have the same response, where the data has some."""
    opening: str = ""
    """Forced start of this item's response, in place of the format's."""
    header: str = ""
    """Code that stands before what the model writes, in the program that is graded."""
    tests: str = ""
    """Code that stands after it, and ends in an error where it is wrong."""
    plain: Plain | None = None
    """How it is asked in the plain style; None: the user's text, a line break and the response."""
    wordings: tuple[Example, ...] = ()
    """The item in other words, laid out by its format, where a locator asks for them."""


@dataclass(frozen=True)
class Task:
    """A format pointed at a source of data. Splits are read when they are first asked for."""

    name: str
    format: Format
    load: Callable[[str], list[Example]]
    """Reads one split; raises DataError where the source does not have it."""
    origin: str
    """Where the data comes from, for provenance: `nano`, a folder, or a data set on the hub."""
    rephrase: Callable[[Example], Sequence[str]] | None = None
    """Other user's texts that ask what an example asks; None means those that the example holds."""
    located_on: Sequence[Example] | None = None
    """Examples to locate with in place of the extract split, for a control arm."""
    worked: Callable[[], Sequence[Example]] | None = None
    """Reads the worked examples that may stand before a question, in their order; None: there are none."""
    dropped: list[Dropped] = field(default_factory=list, repr=False)
    """Rows that were left out when splits were read."""
    _splits: dict[str, list[Example]] = field(default_factory=dict, repr=False)

    @property
    def location(self) -> list[Example]:
        """The examples to locate with."""
        return self.split("extract") if self.located_on is None else list(self.located_on)

    def located_with(self, examples: Sequence[Example] | None) -> Task:
        """This task, located with other examples."""
        return replace(self, located_on=examples)

    def split(self, name: str) -> list[Example]:
        """The examples of one split, in the order of the source."""
        if name not in (*SPLITS, UNLABELLED):
            raise DataError(f"{self.name}: no split {name!r}; there are {', '.join(SPLITS)}")
        if name not in self._splits:
            self._splits[name] = self.load(name)
        return self._splits[name]

    def paraphrases(self, example: Example) -> list[Example]:
        """The example asked in other words, with the same response. None of them stands in a split that the example does not."""
        texts = self.rephrase(example) if self.rephrase else example.paraphrases
        if not texts:
            return []
        held = [{e.prompt for e in self._present(name)} for name in SPLITS]
        known = {example.prompt}.union(*(prompts for prompts in held if example.prompt not in prompts))
        found = [text for text in dict.fromkeys(texts) if text not in known]
        return [
            self.format.laid_out(replace(example, id=f"{example.id}, wording {i}", prompt=text, paraphrases=()))
            for i, text in enumerate(found, 1)
        ]

    def shots(self, example: Example, count: int) -> list[Example]:
        """The first `count` worked examples for a question; of its own unit alone where the format says so.

        Raises:
            DataError: there are fewer.
        """
        if not count:
            return []
        if _WORKED not in self._splits:
            self._splits[_WORKED] = list(self.worked()) if self.worked else []
        found = [e for e in self._splits[_WORKED] if e.unit == example.unit or not self.format.shots_of_unit]
        if len(found) < count:
            of = f" about {example.unit}" if self.format.shots_of_unit else ""
            raise DataError(
                f"{self.name}: evaluate.shots is {count}, but there are {len(found)} worked examples{of}; set it to {len(found)} or less"
            )
        return found[:count]

    def _present(self, name: str) -> list[Example]:
        """A split, or nothing where the data has none of that name."""
        try:
            return self.split(name)
        except DataError:
            return []

    def unlabelled(self, count: int) -> list[Example]:
        """The first `count` prompts without labels, in their fixed order; their response is the forced prefix alone.

        Raises:
            DataError: there are fewer.
        """
        if not count:
            return []
        found = self.split(UNLABELLED)
        if count > len(found):
            raise DataError(
                f"{self.name}: method.unlabelled is {count}, but there are {len(found)} unlabelled prompts; set it to {len(found)} "
                f"or less"
            )
        return found[:count]

    def without_test_items(self) -> Task:
        """This task with all other splits rid of examples that are test items; says which were dropped, and notes them.

        Test items are told by `contamination`, those of the nano world by their prompt.
        """
        from pkt.tasks.contamination import repeats
        from pkt.tasks.reading import Dropped

        def load(name: str) -> list[Example]:
            examples = self.split(name)
            if name == "test":
                return examples
            test = self.split("test")
            if self.origin == "nano":
                asked = {e.prompt for e in test}
                found = {
                    i: Dropped(name, e.id, "prompt stands in test") for i, e in enumerate(examples) if e.prompt in asked
                }
            else:
                found = repeats(self.format.name, examples, self.format.name, test)
            if found:
                ids = ", ".join(examples[i].id for i in sorted(found))
                log.warning("%s: dropped from %s, for they stand in test: %s", self.name, name, ids)
            self.dropped.extend(replace(row, where=name) for _, row in sorted(found.items()))
            return [e for i, e in enumerate(examples) if i not in found]

        return replace(self, load=load, _splits={})

    def limited(self, num: int, names: Sequence[str]) -> Task:
        """This task with `num` examples in the splits `names` together, and the other splits as they are.

        They are dealt in proportion to the splits' sizes, at least one to each; the first of each split stay.

        Raises:
            DataError: there are fewer, a split would get none, or there is no split to deal them to.
        """
        sizes = {name: len(self.split(name)) for name in dict.fromkeys(names)}
        held = ", ".join(f"{name} {size}" for name, size in sizes.items())
        if not sizes:
            raise DataError(
                f"{self.name}: task.labels is {num}, but the method reads no labelled example; leave it out"
            )
        if num > sum(sizes.values()):
            raise DataError(
                f"{self.name}: task.labels is {num}, but the method's splits hold {sum(sizes.values())} examples ({held}); lower it, "
                f"or set it to null for all"
            )
        if num < len(sizes) or not all(sizes.values()):
            raise DataError(
                f"{self.name}: task.labels is {num}, but every split that the method reads needs an example ({held}); set it to "
                f"{len(sizes)} at least"
            )
        return self.first(_dealt(num, sizes))

    def with_extract(self, num: int, names: Sequence[str]) -> Task:
        """This task with the first `num` examples of the extract split, for a method that reads the splits `names`.

        Raises:
            DataError: there are fewer, or the method does not read that split.
        """
        if "extract" not in names:
            raise DataError(
                f"{self.name}: task.extract is {num}, but the method does not read the extract split; leave it out"
            )
        if num > (held := len(self.split("extract"))):
            raise DataError(
                f"{self.name}: task.extract is {num}, but the extract split holds {held} examples; lower it, or set it to null for all"
            )
        return self.first({"extract": num})

    def first(self, numbers: Mapping[str, int]) -> Task:
        """This task with the first examples alone of the splits that `numbers` names."""

        def load(name: str) -> list[Example]:
            return self.split(name)[: numbers.get(name)]

        return replace(self, load=load, _splits={})

    def check_disjoint(self, *names: str) -> None:
        """Raise DataError if an example, judged by its prompt, stands in two of the splits `names`."""
        seen: dict[str, tuple[str, str]] = {}
        for name in names:
            for example in self.split(name):
                other, other_id = seen.get(example.prompt, (name, ""))
                if other != name:
                    drop = ", or set task.drop_overlap=true" if name == "test" else ""
                    raise DataError(
                        f"{self.name}: splits {other} and {name} overlap: examples {other_id} and {example.id} have the "
                        f"same prompt; remove one of them{drop}"
                    )
                seen[example.prompt] = (name, example.id)


def _dealt(num: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """`num` in shares proportional to `sizes`, each at least 1: whole parts first, then by the largest remainder."""
    total = sum(sizes.values())
    shares = {name: max(1, num * size // total) for name, size in sizes.items()}
    rests = {name: num * size / total - shares[name] for name, size in sizes.items()}
    while sum(shares.values()) != num:
        up = sum(shares.values()) < num
        open_ = [name for name in sizes if (shares[name] < sizes[name] if up else shares[name] > 1)]
        name = max(open_, key=lambda n: rests[n]) if up else min(open_, key=lambda n: rests[n])
        shares[name] += 1 if up else -1
        rests[name] -= 1 if up else -1
    return shares


_NAMES = [one.name for one in fields(Example)]


def _content(example: Example) -> dict[str, Any]:
    """The fields of an example as JSON values: `asdict` would copy each, which takes ten times longer."""
    found = {name: getattr(example, name) for name in _NAMES} | {"wordings": [_content(e) for e in example.wordings]}
    return found if example.plain is None else {**found, "plain": asdict(example.plain)}


def fingerprint(examples: list[Example]) -> str:
    """Hash of the content of examples, in order."""
    rows = [{k: v for k, v in _content(e).items() if k not in LATER_FIELDS or v} for e in examples]
    text = json.dumps(rows, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
