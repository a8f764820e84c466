"""Swapping paired words."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtlcore_plugins.auditing._lexicon import FOLDER, parse_lexicon, read_lexicon

GENDER = read_lexicon("gender")
INVERTIBLE = [
    ("He read his book.", "She read her book."),
    ("SHE SAW HIM", "HE SAW HER"),
    ("She saw him again.", "He saw her again."),
    ("The book is his.", "The book is hers."),
    ("I saw her. Then he left.", "I saw him. Then she left."),
    ("Her mother-in-law's car", "His father-in-law's car"),
    ("John and Mr Smith", "Jennifer and Ms Smith"),
    ("an uncle, a young man", "an aunt, a young woman"),
    ("he's himself", "she's herself"),
]


@pytest.mark.parametrize(("text", "swapped"), INVERTIBLE)
def test_words_are_swapped_in_their_form_and_back(text: str, swapped: str) -> None:
    assert GENDER.swap(text) == swapped
    assert GENDER.swap(swapped) == text


@pytest.mark.parametrize("text", ["", "the other heather shed", "mary likes it", "manly hers_x"])
def test_only_whole_words_are_swapped_and_names_only_with_a_capital(text: str) -> None:
    assert GENDER.swap(text) == text
    assert not GENDER.occurs_in(text)


def test_words_that_are_no_ones_partner_are_swapped_one_way() -> None:
    assert GENDER.swap("Mrs Lee and mom") == "Mr Lee and dad"


def test_articles_follow_the_word_after_them() -> None:
    assert read_lexicon("age").swap("a young cook, An old cook") == "an old cook, A young cook"
    assert read_lexicon("nationality").swap("an American cook") == "a Mexican cook"


def test_groups_are_counted() -> None:
    assert GENDER.count("She saw his mother and her") == (1, 3)


def test_texts_inside_lists_and_mappings_are_swapped_and_keys_are_not() -> None:
    row = {"he": [{"role": "user", "content": "he"}], "n": 1, "none": None}
    assert GENDER.swap_all(row) == {
        "he": [{"role": "user", "content": "she"}],
        "n": 1,
        "none": None,
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_pair_of_a_shipped_lexicon_is_its_own_inverse(path: Path) -> None:
    lexicon = read_lexicon(path.stem)
    pairs = [e for e in lexicon.entries.values() if lexicon.entries.get(e.partner.lower())]
    back = [lexicon.entries[e.partner.lower()] for e in pairs]
    assert len(pairs) > 10
    assert all(one.group != other.group for one, other in zip(pairs, back, strict=True))


def test_a_file_may_be_a_plain_list_of_pairs(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("- [cat, dog]\n- [house cat, guard dog]\n")
    lexicon = read_lexicon(str(path))
    assert lexicon.groups == ("first", "second")
    assert lexicon.swap("A house  cat saw a Cat") == "A guard dog saw a Dog"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("text", "must be a list of pairs"),
        ({"pears": []}, "must be a list of pairs"),
        ({"pairs": [["a", "b"]], "gruops": ["x", "y"]}, "did you mean 'groups'"),
        ([["a", "b"], ["c"]], "a pair must be two words"),
        ([["yes", True]], "quote yes, no and numbers"),
        ([["a", "b"], ["B", "c"]], "'B' stands in two pairs"),
        ([["a", "A"]], "its own partner"),
        ([], "pairs must be a list"),
        ({"pairs": [["a", "b"]], "groups": ["x", "x"]}, "groups must be two names"),
        ({"pairs": [["a", "b"]], "one_way": {"c": "a"}}, "one_way.c must be"),
        ({"pairs": [["a", "b"]], "one_way": [1]}, "one_way must be a mapping"),
        ({"pairs": [["a", "b"]], "articles": ["a"]}, "articles must be two words"),
        ({"pairs": [["a", "b"]], "not_before_noun": "in"}, "must be a list of words"),
    ],
)
def test_what_is_wrong_with_a_lexicon_is_said(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_lexicon(data)


def test_a_lexicon_that_is_not_there_or_no_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'gendr' is neither .*did you mean 'gender'"):
        read_lexicon("gendr")
    path = tmp_path / "mine.yaml"
    path.write_text("- [cat, dog\n")
    with pytest.raises(ValueError, match="is no readable YAML"):
        read_lexicon(str(path))
