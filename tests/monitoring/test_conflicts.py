"""Conflicts over the steps and by place, in a stand-in and in whole and resumed runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore import checkpoint_store
from mtlcore.conflicts import pair_counts
from mtlcore.errors import UserError
from mtlcore.run import Run
from mtlcore.testing import StandInGradients, stand_in_run
from mtlcore_plugins.monitoring.conflicts import POINTS, Conflicts
from tests.recipes import write_tiny_recipe

PARTS = {"monitoring": "[conflicts]", "weighting": "equal"}


def step(rows: list[list[float]]) -> Any:
    """Gradients whose layers are the columns, as in the stand-in."""
    gradients: Any = StandInGradients(torch.tensor(rows, dtype=torch.float64))
    columns = range(len(rows[0]))
    gradients.arena = SimpleNamespace(
        scopes=lambda scope: [(f"block {column}", column, column + 1) for column in columns]
    )
    return gradients


def three() -> Any:
    return stand_in_run(dict.fromkeys("abc", 5))


def component(run: Run) -> Conflicts:
    [found] = [c for c in run.components.values() if isinstance(c, Conflicts)]
    return found


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("conflicts")
    return mtlcore.train(write_tiny_recipe(folder, tiny_model, **PARTS))


def test_a_step_has_its_share_of_conflicts_spread_and_agreement() -> None:
    monitor, rows = Conflicts(), [[1.0, 0.0], [0.0, 4.0], [-2.0, 1.0]]
    monitor.mtlcore_before_update(three(), step(rows))
    [[number, conflicts, spread, agreement]] = monitor.curve
    assert (number, conflicts, spread) == (1, pytest.approx(1 / 3), pytest.approx(4.0))
    tensor = torch.tensor(rows)
    cosines = torch.cosine_similarity(tensor, tensor.mean(0, keepdim=True))
    assert agreement == pytest.approx(float(cosines.mean()))


def test_conflicts_are_counted_in_each_place() -> None:
    monitor, run = Conflicts(), three()
    monitor.mtlcore_before_update(run, step([[1.0, 1.0], [1.0, -1.0], [2.0, 0.0]]))
    [section] = monitor.mtlcore_report(run)
    assert section.table["layer"] == ["block 0", "block 1"]
    assert section.table["conflicts"] == [0.0, 1.0]  # the third has no gradient in block 1
    assert section.table["mean cosine"] == pytest.approx([1.0, -1.0])


def test_a_step_with_one_task_or_zero_gradients_is_not_kept() -> None:
    monitor = Conflicts()
    monitor.mtlcore_before_update(three(), step([[1.0, 2.0]]))
    monitor.mtlcore_before_update(three(), step([[1.0, 2.0], [0.0, 0.0]]))
    assert monitor.curve == []
    assert monitor.mtlcore_report(three()) == []


def test_opposite_gradients_have_no_agreement() -> None:
    monitor = Conflicts(scope="model")
    monitor.mtlcore_before_update(three(), step([[1.0, 2.0], [-1.0, -2.0]]))
    assert monitor.curve == [[1, 1.0, 1.0, 0.0]]
    assert monitor.mtlcore_report(three())[0].table == {}


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_counts_do_not_depend_on_the_scale_of_the_gradients(scale: float) -> None:
    rows = torch.randn(4, 7, 9, generator=torch.Generator().manual_seed(0)).double()
    gramians = rows @ rows.mT
    torch.testing.assert_close(pair_counts(gramians * scale**2), pair_counts(gramians))


def test_a_long_run_has_curves_of_bounded_length() -> None:
    monitor, run = Conflicts(scope="model"), three()
    for run.step in range(2 * POINTS + 3):
        monitor.mtlcore_before_update(run, step([[1.0, 2.0], [-1.0, 2.0]]))
    [section] = monitor.mtlcore_report(run)
    for chart in section.charts:
        [line] = chart.series.values()
        assert len(line) <= POINTS
        assert line[0][0] < line[-1][0] <= 2 * POINTS + 3


def test_a_run_reports_its_conflicts_by_block(trained: Run) -> None:
    monitor = component(trained)
    assert [row[0] for row in monitor.curve] == [1, 2, 3, 4, 5, 6]
    [section] = monitor.mtlcore_report(trained)
    assert len(section.table["layer"]) == 2
    assert all(0 <= share <= 1 for share in section.table["conflicts"])
    assert [chart.kind for chart in section.charts] == ["lines"] * 3


def test_a_resumed_run_measures_the_same(trained: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained.folder, tmp_path / "copy"))
    for folder in checkpoint_store.checkpoints(copy):
        if checkpoint_store.step_of(folder) > 2:
            shutil.rmtree(folder)
    recipe = trained.folder.parent / "recipe.yaml"
    resumed = mtlcore.train(recipe, [f"training.output_dir={copy}"], resume=True)
    assert component(resumed).mtlcore_report(resumed) == component(trained).mtlcore_report(trained)


def test_state_before_the_first_step_can_be_saved_and_loaded() -> None:
    monitor = Conflicts()
    monitor.load_state_dict(monitor.state_dict())
    assert monitor.mtlcore_report(three()) == []


def test_a_run_in_which_nothing_is_shared_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model, **PARTS, sharing="{shared: 0, own: 2}")
    with pytest.raises(UserError, match="weights that several tasks share") as caught:
        mtlcore.train(recipe)
    assert "sharing.shared" in caught.value.problem.fix
