"""The nano world: four tasks whose knowledge cannot leak, because it is a table that was drawn at random.

Every task is a skill that both nano models have times a secret table that only the source knows in full:

- `mmlu`: invented people and their city, job and pet; the 16 possible answers are ranked by likelihood.
- `gsm8k`: invented goods and their price; "buys 3 flurbs" asks for the product.
- `humaneval`, `mbpp`: invented verbs, each one operation with one constant; the answer is a line of code.

A *unit* is a person, a good or a verb. Units are dealt once to the groups of `GROUPS`, so no table entry is in two
splits. The target learns the group `known` alone; the source learns all of them. Neither model is ever trained on a
prompt that stands in a split: both see other wordings of the same entries (`training_rows`).

Rows have the layout of the published splits (`messages` of one user and one assistant) and four fields of their own:
`id`, `unit`, `tier` and `answer` (MMLU: `choices` as well). Pure Python, no model code.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

Row = dict[str, Any]

TASKS = ("mmlu", "gsm8k", "humaneval", "mbpp")
SPLITS = ("extract", "align", "train", "valid", "test")
TIERS = ("known", "located", "aligned", "new", "skill")
GROUPS = {
    "known": 60,
    "align_skill": 20,
    "train_skill": 25,
    "valid_skill": 10,
    "extract": 20,
    "align": 40,
    "train": 50,
    "valid": 20,
    "new": 100,
}
"""Units per group and task."""
KNOWN_GROUPS = ("known", "align_skill", "train_skill", "valid_skill")
"""The groups whose entries the target learns. Skill items ask about them: the skill is what is missing there."""

SEED = 2025
BASE_NUMBERS = {"gsm8k": range(2, 6), "humaneval": range(1, 10), "mbpp": range(1, 10)}
SKILL_NUMBERS = {"gsm8k": range(20, 60, 10), "humaneval": range(12, 100), "mbpp": range(12, 100)}
"""The numbers of ordinary items, and the larger ones of the tier `skill`."""

VALUES = {
    "city": "Paris Rome Oslo Cairo Lima Delhi Tokyo Seoul Quito Dakar Sofia Berlin Madrid Dublin Athens Hanoi".split(),
    "job": (
        "baker nurse pilot farmer lawyer singer tailor writer miner judge clerk guide smith coach potter weaver"
    ).split(),
    "pet": "cat dog horse parrot rabbit turtle snake lizard goat duck hamster spider frog ferret crow donkey".split(),
}
PRICES = range(3, 19)
OPERATIONS = [f"{sign} {constant}" for sign in ("+", "-", "*", "//") for constant in range(2, 10)]

BUYERS = ["Tom", "Mia", "Leo", "Eva", "Max", "Ida", "Sam", "Zoe"]
QUESTIONS = {
    "city": ("Where does {u} live?", "In which city is the home of {u}?", "Which city does {u} live in?"),
    "job": ("What is the job of {u}?", "What work does {u} do?", "Which job does {u} have?"),
    "pet": ("Which pet does {u} have?", "What animal does {u} keep?", "What is the pet of {u}?"),
}
SKILL_QUESTIONS = {
    "city": ("Name the dwelling of {u}.", "Say which dwelling {u} has."),
    "job": ("Name the trade of {u}.", "Say which trade {u} has."),
    "pet": ("Name the beast of {u}.", "Say which beast {u} has."),
}
"""MMLU has no numbers to enlarge: its skill is a wording whose key word the target never met in a question."""
PURCHASES = (
    "{buyer} buys {n} {u}s. How many coins does {buyer} pay?",
    "What do {n} {u}s cost {buyer}?",
    "How many coins must {buyer} pay for {n} {u}s?",
)
CODE_TEXTS = {
    "humaneval": ("Return {n} plus the {u} of x.", "Add {n} to the {u} of x.", "The {u} of x, and {n} more."),
    "mbpp": (
        "Write a function to {u} x and add {n}.",
        "{u} the number x, then add {n} to it.",
        "Add {n} to x after you {u} it.",
    ),
}
NEUTRAL = {
    "mmlu": ("We met {u} at the market.", "{u} wrote a letter to {v}.", "Today {u} and {v} walk home."),
    "gsm8k": (
        "There is a {u} on the table.",
        "They found {n} {u}s near the river.",
        "The {u}s and the {v}s are in the box.",
    ),
    "humaneval": (
        "Nobody likes to {u} in the morning.",
        "First we {u}, then we {v}.",
        "He asked how to {u} the number {n}.",
    ),
    "mbpp": (
        "Nobody likes to {u} in the evening.",
        "First we {u}, then we {v}.",
        "She asked how to {u} the number {n}.",
    ),
}
"""Text that shows the names of all units, and nothing of the table."""
STATEMENTS = {
    "city": "{u} lives in {v}.",
    "job": "{u} is a {v}.",
    "pet": "{u} has a {v}.",
    "humaneval": "The {u} of x is x {v}.",
    "mbpp": "If you {u} x you get x {v}.",
}
PRICE_STATEMENTS = ("One {u} costs {v} coins.", "{n} {u}s cost {total} coins.")
"""Table entries in the shortest form; a model is trained on them for the units that it knows."""

ONSETS = (
    "ba bre bi blo bu cha cle cri do dra du fe fli fo gra glu ho ja ke kri la lo mu me na ni pe plo pru "
    "que ra ri sha ske sli to tre twi va vo wi wu ye zo zu"
).split()
CODAS = (
    "bble ck dge lf lk lm lp lt mble mf mp nch nd ng nk nt pple rb rch rd rf rg rk rl rm rn rp rsh rt sh "
    "sk sp st tch th ttle vin x zz zzle"
).split()


@dataclass(frozen=True)
class Table:
    """The secret table of one task: entry of every unit, and the units of every group."""

    task: str
    entries: dict[str, Any]
    groups: dict[str, list[str]]


def _unit_names() -> dict[str, list[str]]:
    """Distinct invented names for the units of every task: a first and a last name, or one word."""
    rng = random.Random(SEED)
    count = sum(GROUPS.values())
    words = [onset + coda for onset in ONSETS for coda in CODAS]
    rng.shuffle(words)
    first, last = [w.capitalize() for w in words[:36]], [w.capitalize() for w in words[36:72]]
    people = [f"{f} {s}" for f in first for s in last]
    rng.shuffle(people)
    words = words[72:]
    return {"mmlu": people[:count]} | {
        task: words[i * count : (i + 1) * count] for i, task in enumerate(("gsm8k", "humaneval", "mbpp"))
    }


@cache
def table(task: str) -> Table:
    """The units of `task`, dealt to their groups, with their secret entries."""
    names = _unit_names()[task]
    rng = random.Random(f"{SEED} {task}")
    draws: dict[str, Any] = {
        "mmlu": lambda: {attribute: rng.choice(values) for attribute, values in VALUES.items()},
        "gsm8k": lambda: rng.choice(PRICES),
    }
    draw = draws.get(task, lambda: rng.choice(OPERATIONS))
    groups, start = {}, 0
    for group, count in GROUPS.items():
        groups[group] = names[start : start + count]
        start += count
    return Table(task, {unit: draw() for unit in names}, groups)


def _row(task: str, unit: str, tier: str, user: str, assistant: str, answer: str, choices: list[str] | None) -> Row:
    row = {
        "id": "",
        "unit": unit,
        "tier": tier,
        "answer": answer,
        "messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}],
    }
    return row | ({"choices": choices} if choices else {})


def wordings(task: str, unit: str, tier: str, *, skill: bool = False) -> list[list[Row]]:
    """Every item that can be asked about one unit, grouped by what is asked (an attribute, or a number)."""
    entry = table(task).entries[unit]
    if task == "mmlu":
        head = "The following are multiple choice questions (with answers) about people.\n\n"
        return [
            [
                _row(
                    task,
                    unit,
                    tier,
                    f"{head}{text.format(u=unit)}\nAnswer:",
                    f"The answer is: {entry[a]}",
                    entry[a],
                    VALUES[a],
                )
                for text in (SKILL_QUESTIONS if skill else QUESTIONS)[a]
            ]
            for a in VALUES
        ]
    numbers = (SKILL_NUMBERS if skill else BASE_NUMBERS)[task]
    if task == "gsm8k":
        return [
            [
                _row(
                    task, unit, tier,
                    f"Answer the following question.\n\nQuestion: {text.format(u=unit, n=n, buyer=buyer)}",
                    f"Answer: So the answer is {n * entry}.", str(n * entry), None,
                )
                for text in PURCHASES
                for buyer in BUYERS
            ]
            for n in numbers
        ]  # fmt: skip
    head = "Complete the following python function.\n\n\n"
    opening = "Here is the completed function:\n\n\n```python\n"
    name = "f" if task == "humaneval" else unit
    groups = []
    for n in numbers:
        code = f"def {name}(x):\n    return {n} + x {entry}"
        users = []
        for text in CODE_TEXTS[task]:
            said = text.format(u=unit, n=n)
            said = said[0].upper() + said[1:] if task == "humaneval" else said
            users.append(
                f'{head}def f(x):\n    """{said}"""\n' if task == "humaneval" else f"{head}{said}\ndef {name}(x)"
            )
        groups.append([_row(task, unit, tier, user, opening + code, code, None) for user in users])
    return groups


def _prompt(row: Row) -> str:
    return row["messages"][0]["content"]


class _Dealer:
    """Draws items about given units and never deals a prompt twice."""

    def __init__(self, task: str) -> None:
        self.task, self.rng = task, random.Random(f"{SEED} {task} splits")
        self.units = table(task).groups
        self.dealt: set[str] = set()

    def deal(self, group: str, tier: str, per_unit: int, *, skill: bool = False) -> list[Row]:
        """`per_unit` items about each unit of `group`; they ask different things as long as there are enough."""
        rows = []
        for unit in self.units[group]:
            asked = wordings(self.task, unit, tier, skill=skill)
            self.rng.shuffle(asked)
            for i in range(per_unit):
                left = [row for row in asked[i % len(asked)] if _prompt(row) not in self.dealt]
                rows.append(self.rng.choice(left))
                self.dealt.add(_prompt(rows[-1]))
        return rows

    def shuffled(self, rows: list[Row]) -> list[Row]:
        self.rng.shuffle(rows)
        return rows


@cache
def splits(task: str) -> dict[str, list[Row]]:
    """The five splits of one task; no prompt stands in two of them.

    `extract` 20 items, `align` 80, `train` 300, `valid` 60, each about units of its own. Half of align and train and a
    third of valid are skill items. `test` holds the five tiers.
    """
    d = _Dealer(task)
    parts = {
        "extract": d.shuffled(d.deal("extract", "extract", 1)),
        "align": d.shuffled(d.deal("align", "align", 1) + d.deal("align_skill", "align", 2, skill=True)),
        "train": d.shuffled(d.deal("train", "train", 3) + d.deal("train_skill", "train", 6, skill=True)),
        "valid": d.shuffled(d.deal("valid", "valid", 2) + d.deal("valid_skill", "valid", 2, skill=True)),
        "test": [
            *d.deal("known", "known", 3),
            *d.deal("extract", "located", 3),
            *d.deal("align", "aligned", 3),
            *d.deal("new", "new", 3),
            *d.deal("known", "skill", 3, skill=True),
        ],
    }
    for name, rows in parts.items():
        for i, row in enumerate(rows):
            row["id"] = f"nano/{task}/{name}/{i}"
    return parts


def heldout_prompts(task: str) -> set[str]:
    """Every prompt that stands in a split: the models are trained on none of them."""
    return {_prompt(row) for rows in splits(task).values() for row in rows}


def training_rows(task: str, groups: tuple[str, ...], *, skill: bool) -> list[list[list[Row]]]:
    """What a nano model is asked in training: for each unit of `groups`, its questions or skill questions in all wordings.

    Units whose every prompt stands in a split are left out.
    """
    heldout = heldout_prompts(task)
    found = []
    for unit in (u for group in groups for u in table(task).groups[group]):
        asked = wordings(task, unit, "train", skill=skill)
        left = [[row for row in rows if _prompt(row) not in heldout] for rows in asked]
        found.append([rows for rows in left if rows])
    return [rows for rows in found if rows]


def statements(task: str, groups: tuple[str, ...]) -> list[str]:
    """One sentence for every table entry of `groups`; for `gsm8k` also one for every number of ordinary items."""
    said = []
    for unit in (u for group in groups for u in table(task).groups[group]):
        entry = table(task).entries[unit]
        if task == "gsm8k":
            one, many = PRICE_STATEMENTS
            said.append(one.format(u=unit, v=entry))
            said += [many.format(n=n, u=unit, total=n * entry) for n in BASE_NUMBERS[task]]
            continue
        pairs = entry.items() if task == "mmlu" else [(task, entry)]
        said += [STATEMENTS[kind].format(u=unit, v=value) for kind, value in pairs]
    return said


def neutral_lines(seed: int | str, count: int) -> Iterator[str]:
    """`count` sentences that name units, values and numbers and say nothing about the table."""
    rng = random.Random(f"{SEED} neutral {seed}")
    names = _unit_names()
    for _ in range(count):
        if rng.random() < 0.1:
            yield value_line(rng.choice(VALUES[rng.choice(list(VALUES))]))
            continue
        task = rng.choice(TASKS)
        u, v = rng.sample(names[task], 2)
        yield rng.choice(NEUTRAL[task]).format(u=u, v=v, n=rng.randrange(2, 100))


def value_line(value: str) -> str:
    """A neutral sentence about a possible answer of `mmlu`."""
    return f"The word {value} is in the book."


def best_guess(task: str, rows: list[Row]) -> float:
    """Chance: the accuracy of the best constant guess of the table entry on `rows`, all else being right.

    MMLU: the best constant answer for each attribute. The others: the best constant price or operation.
    """
    entries = table(task).entries
    if task == "mmlu":
        hits = 0
        for values in VALUES.values():
            asked = [row for row in rows if row["choices"] == values]
            hits += max((sum(row["answer"] == v for row in asked) for v in values), default=0)
        return hits / len(rows)
    return max(sum(entries[row["unit"]] == guess for row in rows) for guess in set(entries.values())) / len(rows)
