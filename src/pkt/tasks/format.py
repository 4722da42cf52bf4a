"""What a benchmark's format is: how rows become examples, and how outputs are graded.

Split rows have `messages`, one user's and one assistant's; nano rows add `id`, `unit`, `tier`, `answer` and `choices`.
Any split row may have `paraphrases`, other user texts with the same response. Test rows have the fields of the public test sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pkt.errors import DataError
from pkt.tasks.base import Example, Plain
from pkt.tasks.protocol import GREEDY, Protocol

Row = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """One benchmark's format."""

    name: str
    prefix: str
    """Forced start of the response: evaluation appends it to the prompt."""
    answer_of: Callable[[str], str]
    """The gold answer in an assistant's text."""
    from_test: Callable[[Row, str], Example]
    """A row of the public test set, with where it stands, to an example."""
    grade: Callable[[Example, str], float]
    """Score in [0, 1] of an output."""
    ranks: bool = False
    """Whether choices are ranked by likelihood; else the model generates."""
    choices: tuple[str, ...] = ()
    """The choices of rows that list none."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    plain_stop: tuple[str, ...] | None = None
    """The same in the plain style; None: `stop`."""
    max_new_tokens: int = 512
    protocol: Protocol = GREEDY
    """How the benchmark is asked, unless a recipe says otherwise."""
    shown: Callable[[Example, Sequence[Example]], Example] | None = None
    """A question with worked examples before it; None: the benchmark is asked without."""
    from_worked: Callable[[Row, str], Example] | None = None
    """A row of the worked examples, with where it stands, to an example; None: as `from_test`."""
    shots_of_unit: bool = False
    """Whether the worked examples are those of the question's unit."""
    shots_room: int | None = None
    """Tokens that a prompt with worked examples may have, where that is less than the context."""
    plain: Callable[[str, str], Plain] | None = None
    """User's and assistant's text to those of the plain style; None: both as they are, with a line break between."""
    seconds: int = 0
    """CPU time of one program, where grading runs programs."""
    packages: tuple[str, ...] = ()
    """Installed packages that the tests import."""
    version: int = 1
    """Of prompts and grades: raise it when one of them changes."""

    @property
    def later_version(self) -> list[int]:
        """The version as part of a key: nothing for the first, so that older keys stay."""
        return [self.version] if self.version > 1 else []

    def one_style(self, max_new_tokens: int) -> Format:
        """The format as the nano world has it: greedy, without stop texts or worked examples, and the same text in every style."""
        return replace(
            self,
            max_new_tokens=max_new_tokens,
            stop=(),
            plain_stop=None,
            protocol=GREEDY,
            shown=None,
            plain=None,
            version=1,
        )

    def executes(self, example: Example) -> bool:
        """Whether grading runs code that the model wrote: real code items have tests, nano ones are evaluated by their text."""
        return bool(self.seconds and example.tests)

    def stops(self, style: str) -> tuple[str, ...]:
        """Texts that end an answer in a prompt style."""
        return self.plain_stop if style == "plain" and self.plain_stop is not None else self.stop

    def opening(self, example: Example, style: str) -> str:
        """Forced start of the response, appended to the prompt of a style."""
        return "" if style == "plain" and example.plain else example.opening or self.prefix

    def laid_out(self, example: Example) -> Example:
        """The example with its plain style made anew from prompt and response."""
        return replace(example, plain=self.plain(example.prompt, example.response)) if self.plain else example

    def answered(self, example: Example, text: str, style: str) -> Example:
        """The example with another response: the forced start and what was written after it."""
        if style == "plain" and example.plain:
            whole = (example.opening or self.prefix) + example.plain.given + text
            return replace(example, response=whole, plain=replace(example.plain, response=text))
        return self.laid_out(replace(example, response=self.opening(example, style) + text))

    def from_messages(self, row: Row, where: str) -> Example:
        """A row of the published split layout.

        Raises:
            DataError: with `where`, the field, and what was expected.
        """
        user, response = _contents(row, ["user", "assistant"], where)
        if "tier" not in row:  # the published rows; the nano world's texts stand as the models learnt them
            user, response = user.strip(), response.strip()
        name = _optional(row, "id", str, where, where)
        choices = tuple(_optional(row, "choices", list, where, self.choices))
        answer = _optional(row, "answer", str, where, None)
        answer = self.answer_of(response) if answer is None else answer
        if not answer or (self.ranks and answer not in choices):
            expected = f"one of {', '.join(map(str, choices))}" if self.ranks else f"{self.prefix!r} and an answer"
            raise DataError(
                f"{where}: field messages: no answer in the assistant's {response[-60:]!r}; expected {expected}"
            )
        paraphrases = _optional(row, "paraphrases", list, where, [])
        if not all(isinstance(text, str) and text.strip() for text in paraphrases):
            raise DataError(f"{where}: field paraphrases holds {paraphrases!r}, expected user texts that are not empty")
        example = Example(
            id=name,
            prompt=user,
            response=response,
            answer=answer,
            unit=_optional(row, "unit", str, where, _optional(row, "category", str, where, name)),
            tier=_optional(row, "tier", str, where, ""),
            choices=choices,
            paraphrases=tuple(text.strip() for text in paraphrases),
        )
        return self.laid_out(example)

    def from_prompt(self, row: Row, where: str) -> Example:
        """A row of one user's message: a prompt without a label. Its response is the forced prefix alone.

        Raises:
            DataError: as `from_messages`.
        """
        (user,) = _contents(row, ["user"], where)
        name = _optional(row, "id", str, where, where)
        unit = _optional(row, "unit", str, where, name)
        text = user if "tier" in row else user.strip()
        return self.laid_out(Example(id=name, prompt=text, response=self.prefix, answer="", unit=unit))


def _contents(row: Row, expected: list[str], where: str) -> list[str]:
    """The texts of a row's messages, whose roles must be as expected."""
    messages = field(row, "messages", list, where)
    roles = [m.get("role") if isinstance(m, dict) else None for m in messages]
    if roles != expected:
        raise DataError(f"{where}: field messages has roles {roles}, expected {expected}")
    return [field(m, "content", str, where) for m in messages]


def field(row: Row, name: str, kind: type, where: str) -> Any:
    """A field of a row, checked.

    Raises:
        DataError: missing or of another type.
    """
    if name not in row:
        raise DataError(f"{where}: no field {name!r}; found {', '.join(map(repr, row)) or 'none'}")
    if not isinstance(row[name], kind) or isinstance(row[name], bool):
        raise DataError(f"{where}: field {name} is {type(row[name]).__name__}, expected {kind.__name__}")
    return row[name]


def _optional(row: Row, name: str, kind: type, where: str, default: Any) -> Any:
    return field(row, name, kind, where) if name in row else default
