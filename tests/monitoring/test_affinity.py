"""What the affinity monitor measures, in a stand-in and in whole and resumed runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore import checkpoint_store
from mtlcore.errors import UserError
from mtlcore.run import Run
from mtlcore.testing import StandInGradients, stand_in_run
from mtlcore_plugins.monitoring.affinity import Affinity
from tests.recipes import metrics, training_part, write_tiny_recipe

PARTS = {"monitoring": "[affinity]", "weighting": "equal"}


class Step(StandInGradients):
    """Gradients of a step that also know its losses."""

    def __init__(
        self, rows: list[list[float]], losses: list[float], present: list[int] | None = None
    ) -> None:
        super().__init__(torch.tensor(rows, dtype=torch.float64), present)
        self.losses = losses

    def mean_losses(self) -> torch.Tensor:
        """[T'] as given."""
        return torch.tensor(self.losses, dtype=torch.float64)


def watch(monitor: Affinity, run: Any, step: Step, rate: float = 0.1) -> None:
    monitor.mtlcore_before_update(run, step)  # type: ignore[arg-type]
    monitor.mtlcore_step_end(run, {"learning_rate": rate})


def three() -> Any:
    return stand_in_run(dict.fromkeys("abc", 5))


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("affinity")
    return mtlcore.train(write_tiny_recipe(folder, tiny_model, **PARTS))


def read(run: Run, name: str = "affinity.json") -> dict[str, Any]:
    found = json.loads((run.folder / name).read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def component(run: Run) -> Affinity:
    [found] = [c for c in run.components.values() if isinstance(c, Affinity)]
    return found


def test_pairs_have_the_means_of_the_steps() -> None:
    monitor, run = Affinity(), three()
    watch(monitor, run, Step([[1, 0], [1, 1], [-2, 0]], [2.0, 4.0, 1.0]), rate=0.5)
    watch(monitor, run, Step([[0, 1], [3, 0], [0, 2]], [1.0, 1.0, 1.0]), rate=0.1)
    found = monitor.measured(run)
    assert found["steps"] == 2
    assert found["cosine"][0] == pytest.approx([1.0, 0.5**0.5 / 2, 0.0])
    assert found["conflict"] == [[0, 0, 0.5], [0, 0, 0.5], [0.5, 0.5, 0]]
    # lr G_ij / l_j, from the row to the column
    assert found["affinity"][0] == pytest.approx([0.175, 0.0625, (0.5 * -2 / 1 + 0.1 * 2) / 2])
    assert found["affinity"][1][0] == pytest.approx((0.5 * 1 / 2 + 0) / 2)
    assert found["norm"] == pytest.approx([1.0, (2**0.5 + 3) / 2, 2.0])


def test_a_pair_counts_only_where_both_are_present_with_a_gradient() -> None:
    monitor, run = Affinity(), three()
    watch(monitor, run, Step([[1, 0], [-1, 0]], [1.0, 1.0], present=[0, 2]))
    watch(monitor, run, Step([[1, 0], [0, 0], [1, 0]], [1.0, 1.0, 1.0]))
    found = monitor.measured(run)
    assert found["together"] == [[2, 0, 2], [0, 0, 0], [2, 0, 2]]
    assert found["cosine"] == [[1, None, 0], [None, None, None], [0, None, 1]]
    assert found["conflict"][0][2] == 0.5
    assert found["norm"] == [1, None, 1]


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_cosines_do_not_depend_on_the_scale_of_the_gradients(scale: float) -> None:
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    plain, scaled, run = Affinity(), Affinity(), three()
    watch(plain, run, Step(rows.tolist(), [1.0, 2.0, 3.0]))
    watch(scaled, run, Step((rows * scale).tolist(), [1.0, 2.0, 3.0]))
    for key in ("cosine", "conflict"):
        expected = torch.tensor(plain.measured(run)[key])
        torch.testing.assert_close(torch.tensor(scaled.measured(run)[key]), expected)


def test_the_first_order_is_what_a_small_step_does_to_the_losses() -> None:
    draw = torch.Generator().manual_seed(0)
    targets = torch.randn(3, 4, generator=draw, dtype=torch.float64)
    theta = torch.zeros(4, dtype=torch.float64)

    def losses(at: torch.Tensor) -> torch.Tensor:
        return (at - targets).square().sum(1)

    rows, rate = -2 * (targets - theta), 1e-6
    monitor, run = Affinity(), three()
    watch(monitor, run, Step(rows.tolist(), losses(theta).tolist()), rate=rate)
    exact = torch.stack([1 - losses(theta - rate * row) / losses(theta) for row in rows])
    found = torch.tensor(monitor.measured(run)["affinity"], dtype=torch.float64)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-12)


def test_a_loss_of_zero_adds_no_affinity() -> None:
    monitor, run = Affinity(), three()
    watch(monitor, run, Step([[1, 0], [1, 0], [1, 0]], [0.0, 1.0, 1.0]))
    assert monitor.measured(run)["affinity"][1] == pytest.approx([0.0, 0.1, 0.1])


def test_a_run_in_which_nothing_is_shared_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model, **PARTS, sharing="{shared: 0, own: 2}")
    with pytest.raises(UserError, match="weights that several tasks share") as caught:
        mtlcore.train(recipe)
    assert caught.value.problem.where.endswith("monitoring[0]")
    assert "sharing.shared" in caught.value.problem.fix
    with pytest.raises(UserError):
        Affinity().mtlcore_check(SimpleNamespace(adapters=[]))  # type: ignore[arg-type]


def test_a_run_writes_what_it_measured_and_reports_it(trained: Run) -> None:
    found = read(trained)
    assert found == component(trained).measured(trained)
    assert found["tasks"] == ["sentiment", "spelling", "definitions"]
    assert found["steps"] == 6
    cosine = torch.tensor(found["cosine"], dtype=torch.float64)
    torch.testing.assert_close(cosine, cosine.T, rtol=1e-12, atol=0)
    assert cosine.diagonal().tolist() == [1.0] * 3
    assert (cosine.abs() <= 1 + 1e-12).all()
    present = [sum(line["rows"][task] > 0 for line in metrics(trained.folder)) for task in ROWS]
    assert [row[index] for index, row in enumerate(found["together"])] == present
    [section] = component(trained).mtlcore_report(trained)
    assert section.table["task"] == found["tasks"]
    assert [chart.kind for chart in section.charts] == ["heatmap"] * 3
    assert [chart.values for chart in section.charts] == [
        found[key] for key in ("cosine", "conflict", "affinity")
    ]
    result = json.loads((trained.folder / "result.json").read_text(encoding="utf-8"))
    assert "Affinity of the tasks" in [part["title"] for part in result["sections"]]


ROWS = ("sentiment", "spelling", "definitions")


def test_watching_changes_nothing_in_the_run(
    trained: Run, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model, weighting="equal")
    without = mtlcore.train(recipe)
    losses = [[line["losses"] for line in metrics(run.folder)] for run in (trained, without)]
    assert losses[0] == [pytest.approx(line, rel=1e-4) for line in losses[1]]


def test_a_resumed_run_measures_the_same(trained: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained.folder, tmp_path / "copy"))
    for folder in checkpoint_store.checkpoints(copy):
        if checkpoint_store.step_of(folder) > 2:
            shutil.rmtree(folder)
    (copy / "affinity.json").unlink()
    recipe = trained.folder.parent / "recipe.yaml"
    resumed = mtlcore.train(recipe, [f"training.output_dir={copy}"], resume=True)
    assert read(resumed) == read(trained)


def test_state_before_the_first_step_can_be_saved_and_loaded() -> None:
    monitor = Affinity()
    monitor.load_state_dict(monitor.state_dict())
    assert monitor.mtlcore_report(three()) == []


def test_a_task_that_stands_alone_in_every_step_has_no_pair(
    tiny_model: Path, tmp_path: Path
) -> None:
    stages = ", ".join(f"{{name: {task}, tasks: [{task}], max_steps: 1}}" for task in ROWS)
    recipe = write_tiny_recipe(
        tmp_path,
        tiny_model,
        **PARTS,
        stages=f"[{stages}]",
        training=training_part(tmp_path, max_steps="null"),
    )
    run = mtlcore.train(recipe)
    found = read(run)
    assert json.loads((run.folder / "result.json").read_text())["sections"] == []
    assert found["together"] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert found["cosine"] == [[1, None, None], [None, 1, None], [None, None, 1]]
