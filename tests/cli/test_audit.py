"""`mtlcore audit`, on runs with a planted bias."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import mtlcore
from mtlcore.testing.command_line import CommandLine
from tests.auditing.planted import planted_recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that fails its own audit."""
    recipe = planted_recipe(tmp_path_factory.mktemp("planted"), mend=False)
    return mtlcore.train(recipe, ["training.max_steps=40"]).folder


@pytest.fixture
def biased(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_the_auditors_of_the_recipe_look_at_the_test_rows(cli: CommandLine, biased: Path) -> None:
    before = len((biased / "audits.jsonl").read_text().splitlines())
    code, out, err = cli("audit", biased)
    assert code == 3
    for word in ("people", "counterfactual.flip_rate", "failed:", "test rows"):
        assert word in out
    assert "failed: audit counterfactual.flip_rate of people" in err
    lines = (biased / "audits.jsonl").read_text().splitlines()
    assert len(lines) == before + 1
    assert json.loads(lines[-1])["split"] == "test"


def test_json_is_what_is_kept(cli: CommandLine, biased: Path) -> None:
    code, out, _ = cli("audit", biased, "--split", "eval", "--json")
    assert code == 3
    last = json.loads((biased / "audits.jsonl").read_text().splitlines()[-1])
    assert json.loads(out) == last["findings"]
    assert last["split"] == "eval"


def test_another_auditor_is_asked_alone_and_with_its_options(
    cli: CommandLine, biased: Path
) -> None:
    code, out, _ = cli("audit", biased, "--auditor", "group_metrics", "column=sex", "--json")
    assert code == 0
    assert {finding["name"].split(".")[0] for finding in json.loads(out)} == {"group_metrics"}
    limited = ["column=sex", "fail_above=0.1", "metric=selection_rate"]
    code, _, err = cli("audit", biased, *limited, "--auditor", "group_metrics")
    assert code == 3
    assert "selection_rate of 'yes' differs by" in err or "of 'no' differs by" in err
    code, out, _ = cli("audit", biased, "--auditor", "counterfactual", "lexicon=age", "--json")
    assert code == 0
    [finding] = json.loads(out)
    assert finding["value"] is None
    assert "not enough data" in finding["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "tset"], "did you mean 'test'?"),
        (["--auditor", "counterfactul"], "did you mean 'counterfactual'?"),
        (["--auditor", "counterfactual", "lexcon=age"], "did you mean 'lexicon'?"),
        (["--auditor", "counterfactual", "lexicon=agee"], "did you mean 'age'?"),
        (["--auditor", "counterfactual", "age"], "write key=value"),
        (["--auditor", "group_metrics"], "column is required"),
        (["--auditor", "group_metrics", "column=sexs"], "did you mean 'sex'?"),
        (["lexicon=age"], "name it: --auditor NAME"),
    ],
)
def test_mistakes_are_named(
    cli: CommandLine, biased: Path, arguments: list[str], message: str
) -> None:
    before = (biased / "audits.jsonl").read_bytes()
    code, _, err = cli("audit", biased, *arguments)
    assert code == 2
    assert message in err
    assert (biased / "audits.jsonl").read_bytes() == before


def test_a_run_without_auditors_is_told_which_there_are(cli: CommandLine, run: Path) -> None:
    code, _, err = cli("audit", run)
    assert code == 2
    assert "has no auditors" in err
    assert "counterfactual, group_metrics" in err
