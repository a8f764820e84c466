from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import harness


def test_spread_and_targets() -> None:
    fast = harness.result("a", "wall", [3.0, 1.0, 2.0, 5.0, 4.0], "s", target=3.0)
    assert (fast.value, fast.p20, fast.p80, fast.met) == (3.0, 1.8, 4.2, True)
    assert harness.result("a", "rate", [1.0], "x", target=2.0, higher_is_better=True).met is False
    assert harness.result("a", "wall", [1.0], "s").met is None


def test_interleaving_calls_each_variant_once_per_round_in_turning_order() -> None:
    calls: list[str] = []
    times = harness.interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, warmup=1
    )
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    assert calls == ["b", "a", "a", "b", "b", "a", "a", "b"]


def test_ratios_are_taken_round_by_round() -> None:
    assert harness.ratios({"a": [1.0, 9.0], "b": [2.0, 3.0]}, "a", "b") == [0.5, 3.0]


def test_the_last_line_is_json_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    measure = lambda: [harness.result("a", "wall", [1.0, 2.0], "s")]  # noqa: E731
    harness.main("demo", lambda: None, measure, argv=["--record"])
    last = capsys.readouterr().out.splitlines()[-1]
    record = json.loads(last)
    assert list(record) == [
        "benchmark",
        "device",
        "date",
        "commit",
        "versions",
        "load",
        "results",
    ]
    (file,) = (tmp_path / "results").iterdir()
    assert file.read_text() == f"{last}\n"
    assert file.stem == record["device"]


def test_a_red_check_prints_no_time_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    def check() -> None:
        raise AssertionError("numbers differ")

    def measure() -> list[harness.Result]:
        raise RuntimeError("must not be timed")

    with pytest.raises(SystemExit) as caught:
        harness.main("demo", check, measure, argv=[])
    assert caught.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "numbers differ" in captured.err
