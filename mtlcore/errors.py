"""Errors that tell the user what was wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class MtlcoreError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line ends with."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where (file, line, key, task), what, and the fix."""

    where: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  fix: {self.fix}" if self.fix else text


class UserError(MtlcoreError):
    """Something in the recipe, the data, the model or the command that its author can mend."""

    exit_code = 2
    fix = ""
    """What helps with all problems together."""

    def __init__(self, message: str, *, where: str = "", fix: str = "") -> None:
        self.set_problems([Problem(where, message, fix)])

    def set_problems(self, problems: Iterable[Problem]) -> None:
        """Tell these problems instead of those so far; `problem` is the first."""
        self.problems = list(problems)
        self.problem = self.problems[0]
        lines = [*map(str, self.problems), *([f"  fix: {self.fix}"] if self.fix else [])]
        self.args = ("\n".join(lines),)


class RecipeError(UserError):
    """All problems of one recipe at once; `fix` is what helps with all of them."""

    def __init__(self, problems: Iterable[Problem], fix: str = "") -> None:
        self.fix = fix
        self.set_problems(problems)


def counted(count: int, noun: str, plural: str = "") -> str:
    """ "1 row", "2 rows"."""
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"


MORE_WORDS = {"text": "text, in quotes"}
"""How a kind of value is written, where its name does not say so."""
NEAR = 0.6
"""How alike two spellings are that may be meant for each other, of 1."""


MOST_NAMED = 3
"""So many spellings are named that are equally near."""


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The spelling among `words` that comes nearest to `word`, if any is near.

    Case and signs do not count: Nash-MTL is nash_mtl. Of equals, the last by the alphabet.
    """
    return max(_all_nearest(word, words), default=None)


def _all_nearest(word: str, words: Iterable[str]) -> list[str]:
    """Those that are equally near, in their order."""
    matcher = difflib.SequenceMatcher(b=_plain(word))
    alike: dict[float, list[str]] = {NEAR: []}
    for known in words:
        matcher.set_seq1(_plain(known))
        alike.setdefault(matcher.ratio(), []).append(known)
    return alike[max(alike)]


def _plain(word: str) -> str:
    """Its letters and digits in lower case; a word without any stays as it is."""
    return "".join(filter(str.isalnum, word.lower())) or word


def nearest_file(name: str, names: Iterable[str]) -> str | None:
    """The same for files: their names must be alike without their endings too."""

    def alike(other: str) -> bool:
        stems = name.partition(".")[0], other.partition(".")[0]
        short = max(map(len, stems)) <= 2  # one wrong letter leaves nothing that is alike
        return short or difflib.SequenceMatcher(None, *stems).ratio() >= NEAR

    return nearest(name, filter(alike, names))


def name_one_in(folder: Path | str) -> str:
    """A fix line for what is not there, and like nothing that is."""
    return f"put it into {folder}, or name one that is there"


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """A fix line: the nearest spelling, or the list of all when none is near."""
    words = sorted({*words})
    if matches := _all_nearest(word, words):
        return f"did you mean {' or '.join(map(repr, matches[:MOST_NAMED]))}?"
    return f"known: {', '.join(words) or 'none'}"


PLAIN_RULES = {
    "string_type": "be text",
    "list_type": "be a list",
    "tuple_type": "be a list",
    "dict_type": "be a mapping of keys to values",
    "int_type": "be a whole number",
    "int_parsing": "be a whole number",
    "int_from_float": "be a whole number",
    "float_type": "be a number",
    "float_parsing": "be a number",
    "number_type": "be a number",
    "finite_number": "be a finite number",
    "bool_type": "be true or false",
    "bool_parsing": "be true or false",
}


def rule_of(error: Mapping[str, Any], modal: str) -> str:
    """What one of pydantic's errors asks for, without its jargon; modal: "should" or "must"."""
    kind, ctx = error["type"], error.get("ctx", {})
    if kind in PLAIN_RULES:
        return f"{modal} {PLAIN_RULES[kind]}"
    if kind == "string_too_short":
        return f"{modal} not be empty"
    if kind == "too_short":
        return f"{modal} have at least {counted(ctx['min_length'], 'item')}"
    message: str = error["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", f"{modal} be")
    return message[:1].lower() + message[1:]


def fix_of_rule(rule: str) -> str:
    """The fix for a value that breaks a rule: "should be greater than 0" -> "give a number ..."."""
    asked = re.match(r"(?:should|must) (?:be|have) (.*?)(?:, unable to .*)?$", rule)
    if asked is None:
        return "give it another value, or remove the key"
    what = asked[1]
    if what.startswith(("greater than", "less than")):
        return f"give a number {what}"
    if what.startswith("'") and " or " in what:
        return "choose one of these"
    return f"give {MORE_WORDS.get(what, what)}"


def is_quoted_number(value: object) -> bool:
    """Whether it is a text that would be a number without its quotes.

    1e-4 is none: a reader of YAML 1.1, such as PyYAML, gives it as text where there were none.
    """
    return isinstance(value, str) and bool(
        re.fullmatch(r"\s*[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)\s*", value)
    )


def require_tasks(names: Iterable[str], known: Collection[str], where: str = "") -> None:
    """Refuse a name that is no task of the recipe; `where` is the key that gives the names."""
    for name in names:
        if name not in known:
            raise UserError(
                f"the recipe has no task {name!r}", where=where, fix=did_you_mean(name, known)
            )


def require_free(path: Path, overwrite: bool) -> None:
    """Refuse to write over a file unless told to."""
    if path.exists() and not overwrite:
        raise UserError(
            f"{path} exists already", fix="give another file with --out, or add --force"
        )
