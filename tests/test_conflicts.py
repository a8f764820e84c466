"""What is told of conflicts, against numbers worked out from J, and the check of the effect."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore import checkpoint_store, gradients
from mtlcore.conflicts import Effect, update_cosine
from mtlcore.gradients import Direction
from mtlcore.progress import Progress
from mtlcore.records import StepRecord
from mtlcore.testing import StandInGradients
from tests.recipes import metrics, training_part, write_tiny_recipe

EXAMPLE = [[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]  # G = [[18, -22], [-22, 38]]
MEASURED = ("task_norms", "conflict_rate", "norm_spread", "update_cosine")


class Step(StandInGradients):
    """Gradients whose G was measured, for the model and for its columns as layers, or not."""

    def __init__(
        self, rows: Any, present: list[int] | None = None, *, measured: bool = True
    ) -> None:
        super().__init__(torch.as_tensor(rows, dtype=torch.float64), present)
        self.measured = measured

    def known_gramian(self, scope: str = "model") -> torch.Tensor | None:
        """As `Gradients` has it."""
        return self.gramian(scope) if self.measured else None

    def scope_of(self, count: int) -> str:
        """Every column is a layer."""
        return "layer"


def see(effect: Effect, step: Any, weights: Any) -> dict[str, Any]:
    is_list = isinstance(weights, list)
    return effect.see(step, torch.tensor(weights).double() if is_list else weights)


def cosine_of_rows(rows: torch.Tensor, weights: torch.Tensor) -> float:
    """The same from J [T, P] itself; weights [T], or [P, T] where each column is a scope."""
    update = weights @ rows if weights.ndim == 1 else (weights * rows.T).sum(1)
    return float(torch.cosine_similarity(update, rows.mean(0), dim=0))


# -- one step ------------------------------------------------------------------------------------


def test_the_example_of_two_tasks_has_the_numbers_worked_out_by_hand() -> None:
    told = see(Effect("ab"), Step(EXAMPLE), [1.0, 0.0])
    assert told == {
        "task_norms": {"a": pytest.approx(math.sqrt(18)), "b": pytest.approx(math.sqrt(38))},
        "conflict_rate": 1.0,
        "norm_spread": pytest.approx(math.sqrt(38 / 18)),
        # (-4, 1, 1) with (1, 1, 1): -2 / (sqrt(18) sqrt(3))
        "update_cosine": pytest.approx(-2 / math.sqrt(54)),
    }


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize("tasks", [2, 3, 7])
def test_the_cosine_is_that_of_the_update_itself(tasks: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(tasks)
    rows = torch.randn(tasks, 11, generator=draw, dtype=torch.float64)
    gramians = (rows.T[:, :, None] * rows.T[:, None, :]) * scale**2  # one scope for each column
    for scopes in ((), (11,)):
        weights = torch.randn(*scopes, tasks, generator=draw, dtype=torch.float64)
        gramian = gramians if scopes else gramians.sum(0)
        found = update_cosine(gramian, weights / scale)
        assert found == pytest.approx(cosine_of_rows(rows, weights), rel=1e-9)


def test_the_cosine_of_equal_weights_is_1_whatever_they_sum_to() -> None:
    told = see(Effect("ab"), Step(EXAMPLE), [7.0, 7.0])
    assert told["update_cosine"] == pytest.approx(1, abs=1e-12)


def test_an_update_or_a_mean_that_is_0_has_no_cosine() -> None:
    opposite, step = [[1.0, 2.0], [-1.0, -2.0]], Step([[1.0, 0.0], [0.0, 1.0]])
    assert see(Effect("ab"), Step(opposite), [1.0, 0.5])["update_cosine"] is None  # no mean
    assert see(Effect("ab"), Step([[1.0, 2.0], [-2.0, -4.0]]), [2.0, 1.0])["update_cosine"] is None
    assert see(Effect("ab"), step, [0.0, 0.0])["update_cosine"] is None
    assert see(Effect("ab"), step, [1.0, 0.0])["update_cosine"] == pytest.approx(0.5**0.5)


def test_gradients_of_0_and_absent_tasks_are_left_out() -> None:
    step = Step([[3.0, 0.0], [0.0, 0.0], [-1.0, 0.1]], present=[0, 2, 3])
    told = see(Effect("abcd"), step, [1.0, 1.0, 1.0])
    assert told["task_norms"] == {"a": 3.0, "c": 0.0, "d": pytest.approx(math.sqrt(1.01))}
    assert told["conflict_rate"] == 1.0
    assert told["norm_spread"] == pytest.approx(3 / math.sqrt(1.01))


def test_with_fewer_than_two_gradients_there_is_nothing_to_compare() -> None:
    assert see(Effect("ab"), Step([[3.0, 4.0]], [1]), [2.0]) == {"task_norms": {"b": 5.0}}
    told = see(Effect("ab"), Step([[3.0, 4.0], [0.0, 0.0]]), [2.0, 1.0])
    assert told == {"task_norms": {"a": 5.0, "b": 0.0}}


def test_weights_by_scope_have_a_spread_and_a_cosine_over_all_scopes() -> None:
    rows, weights = torch.tensor(EXAMPLE, dtype=torch.float64), [[1.0, 3.0], [2.0, 3.0], [3.0, 3.0]]
    told = see(Effect("ab"), Step(EXAMPLE), weights)
    assert told["weight_spread"] == {"a": pytest.approx(math.sqrt(2 / 3)), "b": 0.0}
    expected = cosine_of_rows(rows, torch.tensor(weights).double())
    assert told["update_cosine"] == pytest.approx(expected)


def test_a_direction_has_conflicts_and_no_cosine() -> None:
    told = see(Effect("ab"), Step(EXAMPLE), Direction(torch.ones(3)))
    assert told["conflict_rate"] == 1.0
    assert "update_cosine" not in told


def test_nothing_is_told_of_a_gramian_that_nobody_measured_or_is_not_finite() -> None:
    assert see(Effect("ab"), Step(EXAMPLE, measured=False), [1.0, 2.0]) == {}
    assert see(Effect("ab"), Step([[math.inf, 1.0], [1.0, 1.0]]), [1.0, 2.0]) == {}
    assert see(Effect("ab"), Step(EXAMPLE), None) == {}


def test_the_gramian_of_the_model_is_known_where_one_by_layer_was_measured() -> None:
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
    by_layer = rows.T[:, :, None] * rows.T[:, None, :]
    step: Any = SimpleNamespace(_gramians={"layer": by_layer})
    known = gradients.Gradients.known_gramian
    torch.testing.assert_close(known(step), rows @ rows.T)
    assert known(step, "layer") is by_layer
    assert known(step, "factor") is None
    nothing: Any = SimpleNamespace(_gramians={})
    assert known(nothing) is None


# -- a run ---------------------------------------------------------------------------------------


def test_means_over_the_steps() -> None:
    effect = Effect("abc")
    see(effect, Step(EXAMPLE, [0, 2]), [1.0, 0.0])
    see(effect, Step([[1.0, 0.0], [0.0, 2.0]], [0, 2]), [1.0, 1.0])
    found = effect.to_json()
    assert found is not None
    cosine = -22 / math.sqrt(18 * 38)
    assert found["cosine"] == [
        [1, None, pytest.approx(cosine / 2)],
        [None, None, None],
        [pytest.approx(cosine / 2), None, 1],
    ]
    assert found["conflict"][0] == [0, None, 0.5]
    assert found["norm"] == [pytest.approx((18**0.5 + 1) / 2), None, pytest.approx(38**0.5 / 2 + 1)]
    spread = math.sqrt(38 / 18)
    assert found["mean"] == {
        "steps": 2,
        "conflict_rate": 0.5,
        "norm_spread": pytest.approx((spread + 2) / 2),
    }
    cosines = [-2 / math.sqrt(54), 1.0]
    assert found["update"] == {
        "steps": 2,
        "mean_cosine": pytest.approx(sum(cosines) / 2),
        "mean_angle": pytest.approx(math.degrees(math.acos(cosines[0])) / 2, abs=1e-5),
    }


def test_a_saved_state_goes_on_as_if_it_had_not_been_saved() -> None:
    whole, resumed = Effect("ab"), Effect("ab")
    see(whole, Step(EXAMPLE), [1.0, 0.5])
    resumed.load_state(json.loads(json.dumps(Effect("ab").state())))
    resumed.load_state(json.loads(json.dumps(whole.state())))
    for effect in (whole, resumed):
        see(effect, Step([[1.0, 0.3], [0.7, 2.0]]), [1.0, 0.1])
    assert resumed.state() == whole.state()
    assert resumed.to_json() == whole.to_json()


PARALLEL = [[1.0, 2.0], [2.0, 4.0]]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([(Step(EXAMPLE), [0.5, 0.5])] * 2, "equal weights in every step"),
        ([(Step(EXAMPLE, measured=False), [0.5, 0.5])], "equal weights in every step"),
        (
            [(Step(PARALLEL), [0.5, 2.0])],
            "only 0.0 degrees from that of equal weights on average over 1 steps",
        ),
        ([(Step(EXAMPLE), [1.0, 2.0])], None),
        ([(Step(EXAMPLE, measured=False), [1.0, 2.0])], None),
        ([(Step(EXAMPLE), [0.5, 0.5]), (Step(EXAMPLE, measured=False), [1.0, 2.0])], None),
        ([(Step(EXAMPLE), [0.5, 0.5]), (Step(EXAMPLE), Direction(torch.ones(3)))], None),
        ([(Step(EXAMPLE), [0.5, 0.5]), (Step(EXAMPLE), [0.0, 0.0])], None),
        ([(Step([[1.0, 2.0]], [0]), [0.5])], None),  # one task by itself: nothing to weigh
        # alike within each layer, but not from layer to layer: the update turns
        ([(Step(EXAMPLE), [[1.0, 1.0], [9.0, 9.0], [1.0, 1.0]])], None),
    ],
)
def test_a_method_that_changed_nothing_warns(steps: list[Any], words: str | None) -> None:
    effect = Effect("ab")
    for step, weights in steps:
        see(effect, step, weights)
    warning = effect.warning("mine")
    assert (words is None) == (warning is None)
    assert words is None or words in str(warning)


def test_a_run_without_an_update_says_nothing_of_its_weighting() -> None:
    effect = Effect("ab")
    none: Any = None
    effect.see(Step(EXAMPLE), none)
    assert effect.warning("mine") is None


def test_the_line_of_a_run_tells_the_smoothed_share_of_conflicts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = Progress(3, 0, every=1)
    for step, rate in enumerate((None, 1 / 3, 0.0), start=1):
        record = StepRecord(step, "train", {"a": 2.0}, {}, 0.1, {}, {}, {}, conflict_rate=rate)
        progress.step(record)
    first, second, third = capsys.readouterr().err.splitlines()
    assert "conflicts" not in first
    assert second.endswith("a 2.00  conflicts 33%")
    assert third.endswith("a 2.00  conflicts 30%")


# -- with a model --------------------------------------------------------------------------------

OPPOSED = """
  one:
    train: rows.jsonl
    format: {name: prompt_completion, template: "Say:"}
    columns: {completion: friendly}
  other:
    train: rows.jsonl
    format: {name: prompt_completion, template: "Say:"}
    columns: {completion: unkind}
"""
WATCH = '''
import json
import torch
from mtlcore.hookspecs import hookimpl

@hookimpl
def mtlcore_before_update(run, gradients):
    """Write down the cosine of the tasks, the norms, and the cosine of update and mean."""
    rows = gradients.rows().double()
    cosine = torch.nn.functional.cosine_similarity
    found = {
        "cosine": float(cosine(rows[0], rows[1], dim=0)),
        "norms": rows.norm(dim=1).tolist(),
        "update": float(cosine(gradients.update.double(), rows.mean(0), dim=0)),
    }
    with open(run.folder / "watched.jsonl", "a") as file:
        file.write(json.dumps(found) + "\\n")
'''


def opposed(folder: Path, model: Path, **parts: str) -> Path:
    """Two tasks with one prompt and other answers: they pull apart."""
    rows = [{"friendly": "good", "unkind": "bad"}] * 8
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "watch.py").write_text(WATCH)
    given = {
        "tasks": OPPOSED,
        "regularization": "[]",
        "training": training_part(folder, max_steps=12, learning_rate=2e-2, save_steps=6),
        **parts,
    }
    return write_tiny_recipe(folder, model, **given)


@pytest.mark.parametrize("scope", ["model", "layer"])
def test_a_run_of_tasks_in_opposition_tells_what_its_rows_are(
    scope: str, tiny_model: Path, tmp_path: Path
) -> None:
    weighting = f"{{name: pcgrad, scope: {scope}}}"
    recipe = opposed(tmp_path, tiny_model, weighting=weighting, plugins="[./watch.py]")
    run = mtlcore.train(recipe)
    lines = metrics(run.folder)
    watched = [json.loads(line) for line in (run.folder / "watched.jsonl").read_text().splitlines()]
    assert len(lines) == len(watched) == 12
    for line, seen in zip(lines, watched, strict=True):
        assert list(line["task_norms"].values()) == pytest.approx(seen["norms"], rel=1e-5)
        assert line["norm_spread"] == pytest.approx(
            max(seen["norms"]) / min(seen["norms"]), rel=1e-5
        )
        assert line["conflict_rate"] == float(seen["cosine"] < 0)
        assert line["update_cosine"] == pytest.approx(seen["update"], abs=1e-5)
        assert (line["weight_spread"] is None) == (scope == "model")
    assert sum(line["conflict_rate"] for line in lines) > 0
    found = json.loads((run.folder / "result.json").read_text())["conflicts"]
    assert found["cosine"][0][1] == pytest.approx(
        sum(seen["cosine"] for seen in watched) / 12, abs=1e-5
    )
    assert found["update"]["mean_cosine"] == pytest.approx(
        sum(line["update_cosine"] for line in lines) / 12
    )


def test_a_resumed_run_tells_the_same(tiny_model: Path, tmp_path: Path) -> None:
    recipe = opposed(tmp_path, tiny_model)
    whole = mtlcore.train(recipe).folder
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    shutil.rmtree(checkpoint_store.checkpoints(copy)[-1])
    mtlcore.train(recipe, [f"training.output_dir={copy}"], resume=True)
    both = [json.loads((folder / "result.json").read_text()) for folder in (whole, copy)]
    assert both[0]["conflicts"] == both[1]["conflicts"]
    assert both[0]["conflicts"]["steps"] == 12
    for one, other in zip(metrics(whole), metrics(copy), strict=True):
        assert {key: one[key] for key in MEASURED} == {key: other[key] for key in MEASURED}


def test_a_run_that_needs_no_gramian_measures_none(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("G was measured")

    monkeypatch.setattr(gradients.ops, "gramian_by_slice", refuse)
    training = training_part(tmp_path, max_steps=2, gradient_accumulation_steps=2)
    run = mtlcore.train(opposed(tmp_path, tiny_model, weighting="dwa", training=training))
    for line in metrics(run.folder):
        assert [line[key] for key in MEASURED] == [None] * 4
    assert json.loads((run.folder / "result.json").read_text())["conflicts"] is None
