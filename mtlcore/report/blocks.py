"""What a part of the page is made of; the template knows how each kind looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from markupsafe import Markup

Tone = Literal["", "good", "bad", "warn", "quiet", "hidden"]


@dataclass(frozen=True)
class Cell:
    """A cell of a table: text, a colour for it, and a smaller second line."""

    text: str
    tone: Tone = ""
    under: str = ""
    pill: bool = False


@dataclass(frozen=True)
class Table:
    """A table; the columns that are not in `text_columns` are aligned to the right."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    text_columns: Sequence[int] = (0,)

    @property
    def cells(self) -> list[list[Cell]]:
        """Every cell as a `Cell`."""
        return [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in self.rows]


@dataclass(frozen=True)
class Figure:
    """A chart with a line below it."""

    kind: ClassVar[str] = "figure"
    title: str
    svg: Markup
    caption: str = ""


@dataclass(frozen=True)
class Charts:
    """Figures side by side."""

    kind: ClassVar[str] = "charts"
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    kind: ClassVar[str] = "words"
    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Heading:
    """The title of what follows within a part."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Lines:
    """A list, folded away when it is long."""

    kind: ClassVar[str] = "lines"
    title: str
    items: Sequence[str]
    tone: Tone = ""
    folded: bool = False


@dataclass(frozen=True)
class Listing:
    """Text in a fixed width, folded away or not."""

    kind: ClassVar[str] = "listing"
    title: str
    text: str
    folded: bool = True


@dataclass(frozen=True)
class Answer:
    """One row with the outputs before and after."""

    heading: str
    pills: Sequence[Cell]
    prompt: str
    texts: Sequence[tuple[str, str]]  # (what it is, the text)
    scores: str = ""


@dataclass(frozen=True)
class Answers:
    """Rows of one task, side by side."""

    kind: ClassVar[str] = "answers"
    title: str
    items: Sequence[Answer]
    more: str = ""


@dataclass(frozen=True)
class Token:
    """A piece of text with its class on the scale and its value in words."""

    text: str
    step: str
    tip: str
    breaks: bool = False


@dataclass(frozen=True)
class Tokens:
    """A text whose pieces are tinted by a number."""

    kind: ClassVar[str] = "tokens"
    title: str
    tokens: Sequence[Token]
    facts: Sequence[str] = ()
    strongest: str = ""


@dataclass(frozen=True)
class Card:
    """A headline number."""

    label: str
    value: str
    detail: str = ""
    tone: Tone = ""


@dataclass
class Part:
    """A section of the page; those with one topic are made one."""

    title: str
    blocks: list[Any] = field(default_factory=list)
    id: str = ""
    topic: str = ""


@dataclass(frozen=True)
class Missing:
    """What was not measured, and the command that measures it."""

    what: str
    how: str
    command: str = ""
