"""Warm-up, asking now and then, running means and normalization around any weighting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore.components import Needs, Weighting
from mtlcore.errors import MtlcoreError, UserError
from mtlcore.gradients import Direction
from mtlcore.plugins import PluginManager
from mtlcore.recipe_file import read_recipe
from mtlcore.run import Run
from mtlcore.testing import StandInGradients, check_stateful, plugin_manager, stand_in_run
from mtlcore.trainer import Trainer
from mtlcore.weight_schedule import ScheduledWeighting
from mtlcore_plugins.weighting.pcgrad import PCGrad
from tests.recipes import metrics, write_tiny_recipe

T = 3


class Asked(Weighting):
    """Gives what the test says, and remembers when it was asked."""

    name = "asked"

    def __init__(self) -> None:
        self.answers: dict[int, Any] = {}
        self.steps: list[int] = []

    def mtlcore_weigh_tasks(self, run: Any, gradients: Any) -> Any:
        self.steps.append(run.step)
        return self.answers[run.step]


def scheduled(**options: Any) -> tuple[ScheduledWeighting, Asked]:
    """What a recipe with these options makes."""
    manager = plugin_manager(Asked)
    spec: Any = SimpleNamespace(name="asked", options=options)
    inner = manager.create("weighting", spec, "weighting")
    manager.register(inner)
    return ScheduledWeighting(inner, manager), inner


def weigh(
    weighting: ScheduledWeighting,
    step: int,
    present: Sequence[int] = (0, 1, 2),
    notes: list[str] | None = None,
) -> torch.Tensor:
    run = stand_in_run({str(task): 5 for task in range(T)})
    run.step = step
    run.note = ([] if notes is None else notes).append
    gradients: Any = StandInGradients(torch.eye(T)[list(present)], present)
    answer = weighting.mtlcore_weigh_tasks(run, None, gradients)
    assert isinstance(answer, torch.Tensor)
    return answer


def tensor(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_warm_up_gives_equal_weights_and_asks_nobody() -> None:
    weighting, inner = scheduled(warmup=2)
    inner.answers[2] = tensor(3.0, 2.0, 1.0)
    for step in (0, 1):
        assert weighting.needs_at(step, [0, 2]) == "nothing"
        assert weigh(weighting, step, [0, 2]).tolist() == [1 / 3, 1 / 3]
    assert inner.steps == []
    assert weighting.needs_at(2, [0, 1, 2]) == "gramian"
    assert weigh(weighting, 2).tolist() == [3, 2, 1]


def test_it_is_asked_in_every_so_many_steps_after_the_warm_up() -> None:
    weighting, inner = scheduled(warmup=1, every=3)
    inner.answers = {1: tensor(1.0, 2.0, 3.0), 4: tensor(4.0, 5.0, 6.0)}
    needed = []
    for step in range(1, 7):
        needed.append(weighting.needs_at(step, [0, 1, 2]))
        kept = [1, 2, 3] if step < 4 else [4, 5, 6]
        assert weigh(weighting, step).tolist() == kept
    assert inner.steps == [1, 4]
    assert needed == ["gramian", "nothing", "nothing"] * 2


def test_a_task_without_a_weight_is_asked_for_and_an_absent_one_keeps_its_own() -> None:
    weighting, inner = scheduled(every=10)
    inner.answers = {0: tensor(1.0, 2.0), 2: tensor(5.0, 6.0)}
    assert weigh(weighting, 0, [0, 1]).tolist() == [1, 2]
    assert weigh(weighting, 1, [1]).tolist() == [2]
    assert weighting.needs_at(2, [1, 2]) == "gramian"
    assert weigh(weighting, 2, [1, 2]).tolist() == [5, 6]
    assert weigh(weighting, 3).tolist() == [1, 5, 6]
    assert inner.steps == [0, 2]


def test_the_running_mean_is_by_task() -> None:
    weighting, inner = scheduled(ema=0.75)
    inner.answers = {0: tensor(1.0, 2.0), 1: tensor(8.0, 4.0), 2: tensor(0.0, 1.0, 1.0)}
    assert weigh(weighting, 0, [0, 1]).tolist() == [1, 2]
    assert weigh(weighting, 1, [1, 2]).tolist() == [0.75 * 2 + 0.25 * 8, 4]
    expected = [0.75 * 1, 0.75 * 3.5 + 0.25 * 1, 0.75 * 4 + 0.25 * 1]
    assert weigh(weighting, 2).tolist() == expected


def test_normalized_weights_sum_to_the_share_of_the_present_tasks_in_every_scope() -> None:
    weighting, inner = scheduled(normalize="sum_to_one")
    inner.answers = {
        0: tensor([1.0, 3.0, 4.0], [2.0, 0.0, -4.0], [0.0, 0.0, 0.0]),
        1: tensor([1.0, 3.0], [5.0, 5.0], [-1.0, 2.0]),
    }
    notes: list[str] = []
    given = weigh(weighting, 0, notes=notes)
    assert given.tolist() == [[0.125, 0.375, 0.5], [2, 0, -4], [0, 0, 0]]
    [note] = notes
    assert "weights of 'asked' that do not sum to more than 0 cannot be brought to the sum" in note
    found = weigh(weighting, 1, [0, 2], notes)
    torch.testing.assert_close(found.sum(-1), tensor(2.0, 2.0, 2.0) / 3)
    assert notes == [note]


def test_kept_weights_by_scope_need_the_rows_of_each_task() -> None:
    weighting, inner = scheduled(every=5)
    inner.answers[0] = tensor([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    weigh(weighting, 0)
    assert weighting.needs_at(1, [0, 1, 2]) == "gramian"
    assert weigh(weighting, 1, [2]).tolist() == [[3], [6]]
    assert inner.steps == [0]


def test_weights_by_scope_may_follow_one_for_all_scopes() -> None:
    """As those of a gate in whose first step no main task was present."""
    weighting, inner = scheduled(ema=0.5)
    inner.answers = {0: tensor(1.0), 1: tensor([3.0, 4.0, 5.0], [7.0, 8.0, 9.0]), 2: tensor(9.0)}
    assert weigh(weighting, 0, [2]).tolist() == [1]
    assert weigh(weighting, 1).tolist() == [[3, 4, 3], [7, 8, 5]]
    assert weigh(weighting, 2, [2]).tolist() == [[6], [7]]


def test_the_state_is_the_kept_weights() -> None:
    weighting, inner = scheduled(every=4, ema=0.5)
    inner.answers[0] = tensor(1.0, 2.0, 3.0)
    weigh(weighting, 0)
    state = weighting.state_dict()
    other, _ = scheduled(every=4, ema=0.5)
    other.load_state_dict(state)
    state["kept"].zero_()
    assert weigh(other, 1).tolist() == weigh(weighting, 1).tolist() == [1, 2, 3]
    other.load_state_dict({})
    assert other.needs_at(1, [0]) == "gramian"


def test_a_scheduled_run_resumes_to_the_same_bits() -> None:
    options = {"warmup": 1, "every": 2, "ema": 0.5, "normalize": "sum_to_one", "scope": "layer"}
    check_stateful(PCGrad, options)


def test_a_run_takes_no_rows_where_weights_are_known(tiny_model: Path, tmp_path: Path) -> None:
    options = "{name: pcgrad, warmup: 1, every: 2, normalize: sum_to_one}"
    recipe = write_tiny_recipe(tmp_path, tiny_model, weighting=options)
    run = Run(read_recipe(recipe).recipe, tmp_path / "run")
    trainer = Trainer(run)
    run.plugins.hook.mtlcore_run_start(run=run)
    weights, rows = [], []
    for _ in range(5):
        weights.append(list(trainer.train_step().weights.values()))
        rows.append(trainer.gradients.arena.rows.shape[0])
    assert rows == [1, 3, 1, 3, 1], "a row for each task where the weighting is asked"
    assert weights[0] == pytest.approx([1 / 3] * 3)
    assert weights[2] == weights[1] != weights[3] == weights[4]
    assert all(sum(found) == pytest.approx(1) for found in weights)


def test_kept_weights_by_layer_are_applied_layer_by_layer(tiny_model: Path, tmp_path: Path) -> None:
    """With weights that do not change, to be asked once is to be asked always."""
    finals = []
    for every in (1, 3):
        folder = tmp_path / str(every)
        folder.mkdir()
        plugin = folder / "by_layer.py"
        plugin.write_text(BY_LAYER)
        recipe = write_tiny_recipe(
            folder,
            tiny_model,
            weighting=f"{{name: by_layer, every: {every}}}",
            plugins=f"[{plugin}]",
        )
        finals.append(metrics(mtlcore.train(recipe).folder))
    for one, other in zip(*finals, strict=True):
        assert one["losses"] == other["losses"]
        assert one["grad_norms"] == other["grad_norms"]


BY_LAYER = '''
import torch
from mtlcore.components import Weighting

class ByLayer(Weighting):
    """Other weights in each layer, the same in every step."""

    name = "by_layer"
    scope = "layer"

    def mtlcore_weigh_tasks(self, run, gradients):
        layers, tasks, _ = gradients.gramian("layer").shape
        assert tasks == len(run.tasks)
        return 1 + torch.arange(layers * tasks, dtype=torch.float64).view(layers, tasks)
'''


def test_where_it_was_given_nothing_the_recipes_weighting_answers(tiny_run: Path) -> None:
    run = mtlcore.load(tiny_run)
    assert not isinstance(run.weighting, ScheduledWeighting)


# -- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("warmup=-1", "weighting.warmup must be greater than or equal to 0, found -1"),
        ("every=0", "weighting.every must be greater than or equal to 1, found 0"),
        ("ema=1", "weighting.ema must be less than 1, found 1"),
        ("normalize=sum", "weighting.normalize must be 'none' or 'sum_to_one', found 'sum'"),
        ("evry=2", "weighting.evry is not an option of 'pcgrad'\n  fix: did you mean 'every'?"),
    ],
)
def test_options_are_checked(option: str, message: str, tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    with pytest.raises(UserError) as caught:
        mtlcore.train(recipe, [f"weighting.{option}"])
    assert message in str(caught.value)


def test_an_option_of_a_method_cannot_be_called_like_one_of_all() -> None:
    class Clash(Weighting):
        name = "clash"

        def __init__(self, *, every: int = 1) -> None:
            self.every = every

    with pytest.raises(UserError, match="every weighting has an option 'every'"):
        plugin_manager(Clash)


class Turning(Weighting):
    """Gives a direction."""

    name = "turning"
    needs: Needs = "rows"
    gives = "direction"

    def mtlcore_weigh_tasks(self, gradients: Any) -> Direction:
        return Direction(gradients.rows().mean(0))


@pytest.mark.parametrize("option", ["{every: 2}", "{ema: 0.5}", "{normalize: sum_to_one}"])
def test_what_gives_no_weights_cannot_be_kept(option: str) -> None:
    import yaml

    options = yaml.safe_load(option)
    manager = plugin_manager(Turning)
    spec: Any = SimpleNamespace(name="turning", options=options)
    weighting = ScheduledWeighting(manager.create("weighting", spec, "weighting"), manager)
    with pytest.raises(UserError, match=f"{next(iter(options))} acts on the weights of tasks"):
        weighting.mtlcore_check(SimpleNamespace(tasks={}))


def test_a_direction_that_was_not_declared_is_refused() -> None:
    weighting, inner = scheduled(ema=0.5)
    inner.answers[0] = Direction(torch.zeros(3))
    with pytest.raises(MtlcoreError, match="set gives = 'direction' on its class"):
        weigh(weighting, 0)


def test_a_warm_up_that_never_ends_is_told(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model, weighting="{name: pcgrad, warmup: 6}")
    run = mtlcore.train(recipe)
    told = [note for note in run.notes if "never asked: all 6 steps are warm-up" in note]
    assert len(told) == 1
    assert not any("it changed nothing" in note for note in run.notes)


def test_the_options_are_those_of_every_weighting() -> None:
    manager = PluginManager.load(environ={"MTLCORE_NO_PLUGINS": "1"})
    for row in manager.describe():
        common = {"warmup", "every", "ema", "normalize"} <= row["options"]["properties"].keys()
        assert common == (row["kind"] == "weighting"), row["name"]
