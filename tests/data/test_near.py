"""Nearly equal texts: found whatever the order, never by chance, with bounded work."""

from __future__ import annotations

import random

import pytest

from mtlcore.data.near import LONGEST, jaccard, near_pairs, pieces_of

WORDS = [f"w{number * 7919 % 10007}x" for number in range(2000)]


def text_of(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def jaccard_of_strings(one: str, other: str) -> float:
    """The definition, on the pieces themselves."""
    some, others = ({text[i : i + 5] for i in range(len(text) - 4)} for text in (one, other))
    return len(some & others) / len(some | others)


@pytest.mark.parametrize("seed", range(5))
def test_the_similarity_is_the_jaccard_index_of_the_pieces(seed: int) -> None:
    one = text_of(seed)
    other = one.replace(one.split()[seed], "other") + " end"
    found = jaccard(pieces_of(one), pieces_of(other))
    assert found == pytest.approx(jaccard_of_strings(one, other))
    assert jaccard(pieces_of(one), pieces_of(one)) == 1


@pytest.mark.parametrize("text", ["", "a", "abcd", "\u00e9\U0001f600", "\ud800", "aaaaaaaa"])
def test_short_and_odd_texts_have_one_piece_or_more(text: str) -> None:
    assert len(pieces_of(text)) == 1


def test_texts_with_one_word_changed_are_found_and_no_others() -> None:
    texts = [text_of(seed) for seed in range(300)]
    for place in range(0, 100, 2):
        words = texts[place].split()
        words[30] = "changed"
        texts[place + 200] = " ".join(words)
    pairs, complete = near_pairs(texts)
    assert complete
    assert [(i, j) for i, j, _ in pairs] == [(i, i + 200) for i in range(0, 100, 2)]
    for i, j, similarity in pairs:
        assert similarity == pytest.approx(jaccard_of_strings(texts[i], texts[j]))


@pytest.mark.parametrize("count", [0, 1, 257])
def test_texts_that_have_nothing_in_common_make_no_pair(count: int) -> None:
    assert near_pairs([text_of(seed) for seed in range(count)]) == ([], True)


def test_many_texts_of_one_mould_do_not_make_all_pairs() -> None:
    mould = "please answer question {} of the long exam that the school has set for this year"
    texts = [mould.format(number) for number in range(1000)]
    pairs, complete = near_pairs(texts)
    assert complete
    assert 1000 < len(pairs) < 1000 * 16 * 10
    in_pairs = {index for i, j, _ in pairs for index in (i, j)}
    assert len(in_pairs) == 1000
    assert near_pairs(texts, most=500)[1] is False


def test_a_huge_text_is_compared_by_its_beginning() -> None:
    text = "ab c" * LONGEST
    assert len(pieces_of(text + text_of(1))) == len(pieces_of(text)) <= 5
