"""Sources: every readable kind of file gives rows with places, every damage an error that helps."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from mtlcore.data.sources import Rows, load_rows
from mtlcore.errors import UserError
from mtlcore.recipe import SourceRecipe

ROWS = [{"text": "één", "n": 1}, {"text": "two\u2028lines", "n": 2}, {"text": "three", "n": 3}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
WHERE = "tasks.a.train"


def read(path: Path | str, **options: Any) -> Rows:
    return load_rows(SourceRecipe(path=str(path), **options), "a", WHERE)


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def parquet(column: pyarrow.Array) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", LINES),
        ("crlf.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("bom.jsonl", codecs.BOM_UTF8 + LINES),
        ("no_end.jsonl", LINES.rstrip()),
        ("blank.jsonl", b"\n" + LINES.replace(b"\n", b"\n \n")),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("a.json", json.dumps(ROWS).encode()),
        ("pretty.json", codecs.BOM_UTF8 + json.dumps(ROWS, indent=2).encode()),
        ("lines.json", LINES),
        ("A.JSONL", LINES),
    ],
)
def test_every_spelling_of_json_gives_the_same_rows(tmp_path: Path, name: str, data: bytes) -> None:
    path = written(tmp_path, name, data)
    rows = read(path)
    assert list(rows) == ROWS
    assert rows[-1] == ROWS[-1]
    assert rows[1:] == ROWS[1:]
    assert rows.bad == []
    assert rows.columns == ("text", "n")
    assert rows.fingerprint == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_paragraphs_of_plain_text_are_rows(tmp_path: Path, end: str) -> None:
    lines = ["", "One line", "and another.", "", "  ", "é", "last"]
    data = codecs.BOM_UTF8 + end.join(lines).encode()
    rows = read(written(tmp_path, "a.txt", data))
    assert list(rows) == [{"text": "One line\nand another."}, {"text": "é\nlast"}]
    assert [rows.line(i).rpartition(":")[2] for i in range(2)] == ["2", "6"]
    assert rows.columns == ("text",)
    assert len(read(written(tmp_path, "empty.txt", b" \n\n"))) == 0


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv.gz", ",")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_gives_texts(tmp_path: Path, name: str, mark: str, end: str) -> None:
    lines = ["text,n", '"a ""b"", c",1', "", '"two', 'lines",2', "é,3"]
    data = codecs.BOM_UTF8 + end.join(lines).replace(",", mark).encode()
    rows = read(written(tmp_path, name, gzip.compress(data) if name.endswith("gz") else data))
    assert rows[0] == {"text": f'a "b"{mark} c', "n": "1"}
    assert rows[1] == {"text": f"two{end}lines", "n": "2"}
    assert rows[2] == {"text": "é", "n": "3"}
    assert [rows.line(i).rpartition(":")[2] for i in range(3)] in (["2", "4", "6"], ["2", "3", "6"])


def test_places_are_lines_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", b"\n" + LINES.replace(b"\n", b"\n\n"))
    assert [read(path).line(i) for i in range(3)] == [f"{path}:{line}" for line in (2, 4, 6)]
    path = written(tmp_path, "a.json", json.dumps(ROWS, indent=1).encode())
    places = [f"{path}:{line}, row {row}" for row, line in enumerate((2, 6, 10))]
    assert [read(path).line(i) for i in range(3)] == places
    path = written(tmp_path, "a.json", b'[{"a": 1}, 2, {"a": 3}]')  # on one line
    assert read(path).line(1) == f"{path}:1, row 2"
    assert read(path).bad == [f"{path}:1, row 1: a JSON object is expected, found the number 2"]


def test_parquet_and_saved_folders(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    data.to_parquet(str(tmp_path / "a.parquet"))
    rows = read(tmp_path / "a.parquet")
    assert list(rows) == ROWS
    assert rows.line(2) == f"{tmp_path / 'a.parquet'}, row 2"
    data.save_to_disk(str(tmp_path / "one"))
    one = read(tmp_path / "one")
    assert list(one) == ROWS
    assert one.fingerprint == read(tmp_path / "one").fingerprint
    datasets.DatasetDict(train=data, dev=data.select([0])).save_to_disk(str(tmp_path / "two"))
    assert list(read(tmp_path / "two", split="dev")) == ROWS[:1]
    with pytest.raises(UserError, match="several splits: train, dev"):
        read(tmp_path / "two")
    with pytest.raises(UserError, match=r"(?s)no split 'trian'.*did you mean 'train'"):
        read(tmp_path / "two", split="trian")


def test_listed_files_of_a_folder_are_read_in_order(tmp_path: Path) -> None:
    written(tmp_path, "1.jsonl", LINES)
    written(tmp_path, "2.csv", b"text,n\nfour,4\n")
    rows = read(tmp_path, data_files=["2.csv", "*.jsonl"])
    assert [row["text"] for row in rows] == ["four", *(row["text"] for row in ROWS)]
    assert rows.line(0) == f"{tmp_path / '2.csv'}:2"
    assert rows.line(3) == f"{tmp_path / '1.jsonl'}:3"
    with pytest.raises(UserError, match=r"data_files: 1.jsonl, 2.csv"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"did you mean .*1\.jsonl"):
        read(tmp_path, data_files="l.jsonl")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"text": "x"', "broken JSON"),
        (b'{"text": "x"} {"text": "y"}', "broken JSON: Extra data"),
        (b"[1, 2]", "a JSON object is expected, found a list"),
        (b"3", "found the number 3"),
        (b'{"text": "x", "n": 1, "text": "y"}', "the key 'text' stands twice in one object"),
        (b'{"text": "x", "n": {"a": 1, "a": 1}}', "the key 'a' stands twice"),
        (b'{"text": "caf\xe9"}', "not UTF-8 (byte 0xe9)"),
        (b"[" * 100_000, "unreadable JSON|broken JSON"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: bytes, why: str) -> None:
    path = written(tmp_path, "a.jsonl", LINES + line + b"\n" + LINES)
    rows = read(path)
    assert list(rows) == ROWS + ROWS
    (bad,) = rows.bad
    assert bad.startswith(f"{path}:4: ")
    assert any(part in bad for part in why.split("|"))


def test_a_key_that_stands_twice_is_told_of_its_row_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", b'[{"a": 1},\n {"a": 1, "a": 2}, {"a": 3}]')
    assert list(read(path)) == [{"a": 1}, {"a": 3}]
    assert read(path).bad == [f"{path}:2, row 1: the key 'a' stands twice in one object"]
    path = written(tmp_path, "a.jsonl", b'{"a": {"b": 1, "b": 2}\n{"a": 3}\n')
    assert list(read(path)) == [{"a": 3}]


def test_csv_rows_of_the_wrong_width_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", b"text,n\na,1\nb\nc,3,4\nd,4\n")
    rows = read(path)
    assert [row["text"] for row in rows] == ["a", "d"]
    assert rows.bad == [
        f"{path}:3: 1 cell where the header has 2",
        f"{path}:4: 3 cells where the header has 2",
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'[{"a": 1}, {"a": 2]', r"a\.json:1: broken JSON"),
        ("a.json", b'[{"a": 1}\n{"a": 2}]', r"a\.json:2: broken JSON: ','"),
        ("a.json", b'[{"a": 1}] {"a": 2}', r"a\.json:1: .*something follows"),
        ("a.json", b'[{"a": 1},\n', r"a\.json:\d: broken JSON"),
        ("a.json", b'{\n "data": [\n', r"a\.json:1: .*a list of objects"),
        ("a.json", b'[{"a":\n "caf\xe9"}]', r"a\.json:2: not UTF-8"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), r"a\.jsonl:1: the file is UTF-16"),
        ("a.jsonl.gz", gzip.compress(LINES * 100, mtime=0)[:-20], "cut short or damaged"),
        ("a.jsonl.gz", LINES, r"(?s)a\.jsonl\.gz is not gzip.*fix: give it a name without \.gz"),
        (
            "a.csv",
            b"text;n\na;1\n",
            r"(?s)a\.csv:1: this csv is separated by ';'.*fix: save it with",
        ),
        ("a.csv", b"text\tn\na\t1\n", r"(?s)separated by tabs.*fix: give it the ending \.tsv"),
        ("a.csv", b"text,n\na,1\nb,caf\xe9\n", r"a\.csv:3: not UTF-8 \(byte 0xe9\)"),
        ("a.csv", b'text,n\na,1\n"b,2\nc,3\n', r"a\.csv:3: broken row"),
        ("a.csv", b"text,text\na,1\n", r"a\.csv:1: the header names 'text' more than once"),
        ("a.csv", b"", "the file is empty"),
        ("a.parquet", b"PAR1 and no more", "not a whole parquet file"),
        ("a.parquet", parquet(pyarrow.array([b"\xff"]).view(pyarrow.string())), "can't decode"),
        ("a.parquet", parquet(pyarrow.array([2**62], pyarrow.timestamp("us"))), "out of range"),
        ("a.doc", b"hello", r"(?s)cannot tell what kind.*jsonl, json, csv"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(written(tmp_path, name, data))
    assert WHERE in str(caught.value)
    assert "fix:" in str(caught.value)


def test_empty_files_have_no_rows(tmp_path: Path) -> None:
    for name, data in {"a.jsonl": b"", "a.json": b"[ ]", "b.json": b"", "a.csv": b"a,b\n"}.items():
        assert len(read(written(tmp_path, name, data))) == 0


def test_a_line_of_ten_megabytes_is_read(tmp_path: Path) -> None:
    long = "x" * 10_000_000
    assert read(written(tmp_path, "a.jsonl", json.dumps({"text": long}).encode()))[0] == {
        "text": long
    }
    assert read(written(tmp_path, "a.csv", f"text\n{long}\n".encode()))[0] == {"text": long}


def test_a_file_that_is_alike_in_its_ending_alone_is_not_meant(tmp_path: Path) -> None:
    written(tmp_path, "list.jsonl", LINES)
    with pytest.raises(UserError, match=r"no such file: .*missing\.jsonl\n  fix: put it into"):
        read(tmp_path / "missing.jsonl")


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    written(tmp_path, "sentiment.jsonl", LINES)
    with pytest.raises(UserError, match=r"(?s)no such file: .*did you mean .*/sentiment\.jsonl"):
        read(tmp_path / "sentimnt.jsonl")
    with pytest.raises(UserError, match=r"put it into .*, or name one that is there"):
        read(tmp_path / "zzz.csv")
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=r"(?s)no folder .*dta.*did you mean the folder .*/data"):
        read(tmp_path / "dta" / "a.jsonl")


def test_an_address_is_refused() -> None:
    with pytest.raises(UserError, match=r"(?s)is an address.*fix: download the file"):
        read("https://example.org/rows.jsonl")


def test_hub_options_on_a_local_file_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", LINES)
    with pytest.raises(UserError, match="`split` has no meaning for the local path"):
        read(path, split="train")


def test_an_unreachable_hub_name_says_how_to_use_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'someone/rows' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"(?s)task 'a'.*someone/rows.*Couldn't reach.*rows\.jsonl"):
        read("someone/rows")


def test_a_hub_name_goes_to_datasets_with_all_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def found(path: str, name: str | None, **options: Any) -> datasets.Dataset:
        asked.update(options, path=path, name=name)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", found)
    rows = read("glue", name="sst2", split="train", revision="main")
    assert list(rows) == ROWS
    assert asked == {
        "path": "glue",
        "name": "sst2",
        "split": "train",
        "revision": "main",
        "data_files": None,
    }
    assert rows.fingerprint
    assert rows.line(1) == "glue, row 1"


def test_a_misspelt_ending_beside_the_file_is_not_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no such file: rows\.jsnl(.|\n)*did you mean rows\."):
        load_rows(SourceRecipe(path="rows.jsnl"), "a", "tasks.a.train")
