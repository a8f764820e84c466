"""The tour: its rows, its verdicts, its page; `make tour` runs all rows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mtlcore.errors import MtlcoreError, UserError
from mtlcore.testing.command_line import CommandLine
from mtlcore.tour.page import markdown
from mtlcore.tour.tour import Result, Tour, choose, take

PAGE = Path(__file__).parents[2] / "docs" / "tour.md"
RESULT = Result(
    name="own_layers",
    trouble="Task interference",
    remedy="Task-specific layers",
    command="mtlcore train opposite.yaml",
    quantity="accuracy",
    better="higher",
    without=0.5,
    with_remedy=0.7,
    seconds=1.0,
)


def test_each_of_eight_troubles_has_three_remedies() -> None:
    rows = choose(())
    remedies = dict.fromkeys((row.trouble, row.remedy) for row in rows)
    assert list(Counter(trouble for trouble, _ in remedies).values()) == [3] * 8
    assert len({row.name for row in rows}) == len(rows) == 25  # domain adaptation has two


@pytest.mark.parametrize(
    ("better", "without", "with_remedy", "moved"),
    [
        ("higher", 0.5, 0.7, True),
        ("higher", 0.5, 0.5, False),
        ("higher", 0.7, 0.5, False),
        ("higher", 0.5, 0.502, False),
        ("lower", 0.5, 0.7, False),
        ("lower", 0.7, 0.5, True),
        ("lower", 0.5, 0.499, False),
        ("higher", -0.14, -0.01, True),
        ("higher", 0.0, 0.0, False),
    ],
)
def test_a_row_must_move_in_its_direction(
    better: str, without: float, with_remedy: float, moved: bool
) -> None:
    result = replace(RESULT, better=better, without=without, with_remedy=with_remedy)  # type: ignore[arg-type]
    assert result.moved == moved
    assert result.to_json()["verdict"] == ("helped" if moved else "did not help")


def test_the_page_has_every_row_and_no_failure() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for row in choose(()):
        assert f"**{row.remedy}.** {row.quantity[0].upper()}{row.quantity[1:]}, to be" in page
    assert "did not help" not in page
    assert markdown([RESULT]).count("```console") == 1


def test_a_row_is_run_by_its_name(cli: CommandLine, tmp_path: Path) -> None:
    folder, page = tmp_path / "tour", tmp_path / "page.md"
    flags = ("--row", "labels", "--folder", folder, "--page", page, "--json")
    code, out, err = cli("tour", *flags)
    assert code == 0, err
    [result] = json.loads(out)
    assert result["command"].startswith("mtlcore check doubtful.yaml")
    assert 0.5 < result["without"] < result["with_remedy"] - 0.05
    assert "Label consistency" in page.read_text()


def test_an_unknown_row_is_told() -> None:
    with pytest.raises(UserError, match="did you mean 'labels'"):
        choose(["lables"])


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    tour = Tour(tmp_path / "tour")
    with pytest.raises(MtlcoreError, match=r"mtlcore train gone.yaml ended with 2:(.|\n)*gone"):
        tour.run("train", "gone.yaml")


def test_a_quantity_that_is_no_number_fails(tmp_path: Path) -> None:
    [row] = choose(["labels"])
    broken = replace(row, measure=lambda tour: (1.0, float("nan")))
    with pytest.raises(MtlcoreError, match=r"is 1\.0 and nan"):
        take(Tour(tmp_path / "tour"), broken)
