"""Find texts that are nearly equal, in time and memory that grow with their number only.

Two texts are compared by the Jaccard index of their sets of 5-character pieces. Which pairs are
compared at all is found by MinHash and banding (Broder, On the resemblance and containment of
documents, 1997, https://doi.org/10.1109/SEQUEN.1997.666900): a pair of similarity s is found with
probability 1 - (1 - s^6)^16, which is 0.99 at 0.8 and 0.22 at 0.5. Kept per text are 16 keys of
8 bytes: 13 MB for 100,000 texts. Of texts that are all alike not every pair is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

PIECE = 5  # characters
BANDS = 16
ROWS = 6  # minima in a band
CHUNK = 256  # texts that are hashed at a time
CROWD = 20
"""In a group of more texts than this each is compared with its next neighbours only."""
MOST_PAIRS = 500_000  # about 100 MB
LONGEST = 100_000
"""A longer text is compared by so many of its first characters."""

Hashes = NDArray[np.uint64]


def near_pairs(
    texts: Sequence[str], least: float = 0.8, most: int = MOST_PAIRS
) -> tuple[list[tuple[int, int, float]], bool]:
    """(i, j, similarity) of texts with similarity of at least `least`; i < j, in order.

    The second result is False if there were more than `most` pairs to compare and the rest was left
    out. Equal texts count as well; give each text once if that is not wanted.
    """
    pieces = lru_cache(maxsize=1024)(lambda index: pieces_of(texts[index]))
    candidates, complete = _candidates(texts, most)
    found = []
    for i, j in sorted(candidates):
        similarity = jaccard(pieces(i), pieces(j))
        if similarity >= least:
            found.append((i, j, similarity))
    return found, complete


def jaccard(one: Hashes, other: Hashes) -> float:
    """Shared pieces of two texts, as a share of all their pieces."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def pieces_of(text: str) -> Hashes:
    """The hashes of a text's pieces, each once, rising; a shorter text is one piece."""
    text = text[:LONGEST]
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    width = max(1, min(PIECE, len(codes)))
    codes = codes if len(codes) else np.zeros(1, np.uint64)
    count = len(codes) - width + 1
    hashes = np.zeros(count, np.uint64)
    for offset in range(width):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + count]
    return np.unique(_mixed(hashes))


def _mixed(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64: every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed


def _candidates(texts: Sequence[str], most: int) -> tuple[set[tuple[int, int]], bool]:
    """Pairs that share a band, and whether these are all."""
    keys = _band_keys(texts)  # [texts, BANDS]
    found: set[tuple[int, int]] = set()
    for band in range(BANDS):
        order = np.argsort(keys[:, band], kind="stable")
        begins = np.flatnonzero(np.diff(keys[order, band]) != 0) + 1
        for group in np.split(order, begins):
            if len(group) > 1:
                found.update(_pairs(group.tolist()))
            if len(found) > most:
                return found, False
    return found, True


def _pairs(group: list[int]) -> Iterator[tuple[int, int]]:
    if len(group) <= CROWD:
        yield from combinations(group, 2)
        return
    for place, index in enumerate(group):
        for other in group[place + 1 : place + 1 + CROWD // 2]:
            yield index, other


def _band_keys(texts: Sequence[str]) -> Hashes:
    """[texts, BANDS] one key for the minima of each band."""
    draw = np.random.default_rng(0)
    limit = np.iinfo(np.uint64).max
    factors = draw.integers(0, limit, BANDS * ROWS, np.uint64) | np.uint64(1)
    keys = np.zeros((len(texts), BANDS), np.uint64)
    for first in range(0, len(texts), CHUNK):
        pieces = [pieces_of(text) for text in texts[first : first + CHUNK]]
        starts = np.cumsum([0, *map(len, pieces[:-1])])
        joined = np.concatenate(pieces)
        for number, factor in enumerate(factors):
            minima = np.minimum.reduceat(joined * factor, starts)
            band = keys[first : first + len(pieces), number // ROWS]
            band[:] = _mixed(band + minima)
    return keys
