"""Paired words of two groups, and texts with the groups swapped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlcore.errors import did_you_mean

FOLDER = Path(__file__).parent / "lexicons"
KEYS = ("groups", "pairs", "articles", "one_way", "not_before_noun")
VOWELS = "aeiou"
NEXT_WORD = re.compile(r"[ \t]+([^\W\d_]+)")


@dataclass(frozen=True)
class Entry:
    """A word: its group (0 or 1), its partner, and the partner where a noun follows."""

    group: int
    partner: str
    before_noun: str
    capital: bool
    """Whether it matches only with a capital: names, nationalities."""


@dataclass(frozen=True)
class Lexicon:
    """Words of two groups in pairs. `swap` exchanges the groups in a text.

    Whole words only, the longest first; case is kept (she -> he, She -> He, SHE -> HE). Where the
    partner of a word depends on what follows ("her book" -> "his book", "saw her" -> "saw him"),
    the rule looks at the next word alone: a word that is not in `not_before_noun`, with only
    spaces before it, counts as the beginning of a noun phrase. It errs where a verb or a second
    object follows ("saw her leave" -> "saw his leave"). With `articles` (before a consonant, before
    a vowel) the one before a word follows its first letter: "a young" -> "an old".
    """

    groups: tuple[str, str]
    entries: Mapping[str, Entry]
    not_before_noun: frozenset[str] = frozenset()
    articles: tuple[str, str] | None = None
    pattern: re.Pattern[str] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        words = sorted(self.entries, key=len, reverse=True)
        either = "|".join(r"\s+".join(map(re.escape, word.split())) for word in words)
        article = "|".join(map(re.escape, self.articles or ()))
        before = rf"(?:(?<!\w)(?P<article>{article})(?P<space>\s+))?" if article else ""
        pattern = rf"{before}(?<!\w)(?P<word>{either})(?!\w)"
        object.__setattr__(self, "pattern", re.compile(pattern, re.IGNORECASE))

    def entry(self, word: str) -> Entry | None:
        """What a word of a text is, None if it is none of ours."""
        found = self.entries.get(" ".join(word.lower().split()))
        return None if found is None or (found.capital and word[0].islower()) else found

    def count(self, text: str) -> tuple[int, int]:
        """How many words of each group a text has."""
        found = [self.entry(match["word"]) for match in self.pattern.finditer(text)]
        groups = [entry.group for entry in found if entry is not None]
        return groups.count(0), groups.count(1)

    def occurs_in(self, text: str) -> bool:
        """Whether a text has a word of either group."""
        return any(self.count(text))

    def swap(self, text: str) -> str:
        """The text with every word replaced by its partner."""

        def partner(match: re.Match[str]) -> str:
            entry = self.entry(match["word"])
            if entry is None:
                return match[0]
            word = entry.partner
            if entry.before_noun != word and self._before_noun(text, match.end()):
                word = entry.before_noun
            new = _with_case_of(match["word"], word)
            return self._article(match, new) + new

        return self.pattern.sub(partner, text)

    def swap_all(self, value: Any) -> Any:
        """The same for all texts in a value of JSON; keys stay."""
        if isinstance(value, str):
            return self.swap(value)
        if isinstance(value, Mapping):
            return {key: self.swap_all(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.swap_all(inner) for inner in value]
        return value

    def _article(self, match: re.Match[str], new: str) -> str:
        """What stands before the word, fitted to its partner."""
        if self.articles is None or match["article"] is None:
            return ""
        old, article = match["word"], match["article"]
        if (old[0].lower() in VOWELS) != (new[0].lower() in VOWELS):
            article = _with_case_of(article, self.articles[new[0].lower() in VOWELS])
        return article + match["space"]

    def _before_noun(self, text: str, end: int) -> bool:
        following = NEXT_WORD.match(text, end)
        return following is not None and following[1].lower() not in self.not_before_noun


def read_lexicon(name: str) -> Lexicon:
    """One that is shipped, by name, or a YAML file; ValueError says what is wrong with it.

    A file is a list of pairs, or a mapping with `pairs` and, where wanted, `groups` (two names),
    `one_way` (word -> {group, to, before_noun}), `not_before_noun` (words) and `articles`.
    """
    shipped = {path.stem: path for path in FOLDER.glob("*.yaml")}
    path = shipped.get(name, Path(name).expanduser())
    if not path.is_file():
        raise ValueError(
            f"lexicon {name!r} is neither shipped nor a file; {did_you_mean(name, shipped)}"
        )
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ValueError(f"lexicon {name}: is no readable YAML: {_one_line(error)}") from None
    try:
        return parse_lexicon(data)
    except ValueError as error:
        raise ValueError(f"lexicon {name}: {error}") from None


def parse_lexicon(data: Any) -> Lexicon:
    """The lexicon of plain data; ValueError says what is wrong with it."""
    data = {"pairs": data} if isinstance(data, list) else data
    if not isinstance(data, dict) or "pairs" not in data:
        raise ValueError("must be a list of pairs, or a mapping with `pairs`")
    for key in data:
        if key not in KEYS:
            raise ValueError(f"has an unknown key {key!r}; {did_you_mean(str(key), KEYS)}")
    groups = data.get("groups", ["first", "second"])
    if not _are_words(groups, 2) or groups[0] == groups[1]:
        raise ValueError(f"groups must be two names, found {groups!r}")
    pairs, special = data["pairs"], data.get("one_way", {})
    if not isinstance(pairs, list) or not pairs:
        raise ValueError("pairs must be a list of [word, partner]")
    entries: dict[str, Entry] = {}
    for pair in pairs:
        if not _are_words(pair, 2):
            raise ValueError(f"a pair must be two words (quote yes, no and numbers), found {pair}")
        for group, (word, partner) in enumerate((pair, reversed(pair))):
            _add(entries, word, Entry(group, partner, partner, word[0].isupper()))
    if not isinstance(special, dict):
        raise ValueError("one_way must be a mapping: word -> {group: name, to: word}")
    for word, forms in special.items():
        if not _is_one_way(forms) or forms["group"] not in groups:
            raise ValueError(
                f"one_way.{word} must be {{group: {' or '.join(groups)}, to: word, before_noun: "
                f"word}} (before_noun may be left out), found {forms!r}"
            )
        group, partner = groups.index(forms["group"]), forms["to"]
        before_noun = forms.get("before_noun", partner)
        _add(entries, word, Entry(group, partner, before_noun, word[0].isupper()))
    others = data.get("not_before_noun", [])
    if not _are_words(others, None):
        raise ValueError("not_before_noun must be a list of words")
    articles = data.get("articles")
    if articles is not None and not _are_words(articles, 2):
        raise ValueError(f"articles must be two words, as in [a, an], found {articles!r}")
    return Lexicon(
        (groups[0], groups[1]),
        entries,
        frozenset(word.lower() for word in others),
        (articles[0], articles[1]) if articles else None,
    )


def _add(entries: dict[str, Entry], word: str, entry: Entry) -> None:
    key = " ".join(word.lower().split())
    if key == " ".join(entry.partner.lower().split()):
        raise ValueError(f"{word!r} is its own partner")
    if key in entries:
        raise ValueError(f"{word!r} stands in two pairs, so its partner is not known")
    entries[key] = entry


def _are_words(value: Any, count: int | None) -> bool:
    words = isinstance(value, list) and all(isinstance(w, str) and w.strip() for w in value)
    return words and (count is None or len(value) == count)


def _is_one_way(forms: Any) -> bool:
    return (
        isinstance(forms, dict)
        and {"group", "to"} <= forms.keys() <= {"group", "to", "before_noun"}
        and _are_words(list(forms.values()), None)
    )


def _with_case_of(word: str, partner: str) -> str:
    letters: Iterable[str] = [letter for letter in word if letter.isalpha()]
    if len(list(letters)) > 1 and word.isupper():
        return partner.upper()
    if word[0].isupper():
        return partner[0].upper() + partner[1:]
    return partner


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
