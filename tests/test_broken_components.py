"""Each fault that a component may have is found, and the message says what to do about it."""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mtlcore.components import (
    Component,
    Format,
    Monitor,
    Penalty,
    Regularizer,
    RowChooser,
    Sampler,
    Section,
    Weighting,
    rows_per_step,
)
from mtlcore.distributed import rank
from mtlcore.errors import UserError
from mtlcore.gradients import Direction
from mtlcore.testing import NotConformant, check_sampler, check_stateful, check_weighting


def fault(check: Callable[..., None], cls: type[Component], **options: Any) -> str:
    with pytest.raises(NotConformant) as caught:
        check(cls, options)
    message = str(caught.value)
    assert message.startswith(f"{cls.kind} {cls.name!r}: ")
    assert "\n  fix: " in message
    return message


def name_of(value: Any) -> str | None:
    return getattr(value, "name", "message")


def rotated(run: Any, by: int) -> list[int]:
    """Counts of the active tasks that sum to the rows of a step, uneven by a rotation."""
    active = [task.index for task in run.tasks if run.is_active(task)]
    counts = [0] * len(run.tasks)
    for row in range(rows_per_step(run)):
        counts[active[min(row % 3, len(active) - 1)]] += 1
    shift = by % len(active)
    values = [counts[index] for index in active]
    for index, value in zip(active, values[shift:] + values[:shift], strict=True):
        counts[index] = value
    return counts


# -- samplers ----------------------------------------------------------------------------------


class GlobalGenerator(Sampler):
    """Draws from Python's own generator."""

    name = "global_generator"

    def mtlcore_plan_step(self, run: Any, step: int) -> list[int]:
        return rotated(run, random.randrange(6))


class TorchGenerator(RowChooser):
    """Draws from torch's own generator."""

    name = "torch_generator"

    def choose(self, run: Any, step: int, task: Any, count: int) -> list[int]:
        return torch.randint(len(task.train), (count,)).tolist()


class CountsOnItsClass(RowChooser):
    """Keeps its place where every run of the process shares it."""

    name = "counts_on_its_class"
    places = itertools.count()

    def choose(self, run: Any, step: int, task: Any, count: int) -> list[int]:
        return [next(self.places) // 7 % len(task.train) for _ in range(count)]


class ForgetsItsEpoch(RowChooser):
    """Takes the rows in turn, from a place that no state holds."""

    name = "forgets_its_epoch"

    def __init__(self) -> None:
        self.place = 0

    def choose(self, run: Any, step: int, task: Any, count: int) -> list[int]:
        rows = [(self.place + k) % len(task.train) for k in range(count)]
        self.place += count
        return rows


class LoadsNothing(ForgetsItsEpoch):
    """Saves its place and does not take it back."""

    name = "loads_nothing"

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: Any) -> None:
        pass


class WritesIntoItsState(RowChooser):
    """Returns its own list as state."""

    name = "writes_into_its_state"

    def __init__(self) -> None:
        self.places = [0]

    def choose(self, run: Any, step: int, task: Any, count: int) -> list[int]:
        self.places[0] += count
        return [(self.places[0] - k) % len(task.train) for k in range(count)]

    def state_dict(self) -> dict[str, Any]:
        return {"places": self.places}

    def load_state_dict(self, state: Any) -> None:
        self.places = list(state.get("places", [0]))


class NeedsItsState(WritesIntoItsState):
    """Cannot be added to a run that was begun without it."""

    name = "needs_its_state"

    def load_state_dict(self, state: Any) -> None:
        self.places = list(state["places"])


class KeepsIntegerKeys(RowChooser):
    """Counts by index: JSON makes texts of such keys."""

    name = "keeps_integer_keys"

    def __init__(self) -> None:
        self.places: dict[int, int] = {}

    def choose(self, run: Any, step: int, task: Any, count: int) -> list[int]:
        place = self.places.get(task.index, 0)
        self.places[task.index] = place + count
        return [(place + k) % len(task.train) for k in range(count)]

    def state_dict(self) -> dict[str, Any]:
        return {"places": dict(self.places)}

    def load_state_dict(self, state: Any) -> None:
        self.places = dict(state.get("places", {}))


class ReadsTheRank(Sampler):
    """Each process plans rows of its own."""

    name = "reads_the_rank"

    def mtlcore_plan_step(self, run: Any, step: int) -> list[int]:
        return rotated(run, rank())


class ReadsTheEnvironment(Sampler):
    """The same, by a variable that the launcher sets."""

    name = "reads_the_environment"

    def mtlcore_plan_step(self, run: Any, step: int) -> list[int]:
        return rotated(run, int(os.environ.get("RANK", "0")))


class PlansABatch(Sampler):
    """Takes the size of a micro-batch for that of a step."""

    name = "plans_a_batch"

    def mtlcore_plan_step(self, run: Any, step: int) -> list[int]:
        active = next(task.index for task in run.tasks if run.is_active(task))
        size = run.recipe.training.per_device_train_batch_size
        return [size * (task.index == active) for task in run.tasks]


class TakesTooMany(Sampler):
    """Its counts have another sum."""

    name = "takes_too_many"

    def mtlcore_plan_step(self, run: Any, step: int) -> list[int]:
        return [2 * count for count in rotated(run, 0)]


class TakesAllTasks(Sampler):
    """Draws tasks that the stage does not train."""

    name = "takes_all_tasks"

    def mtlcore_plan_step(self, run: Any, step: int) -> list[int]:
        return [4, 4, 4]


class Starves(Sampler):
    """Promises shares that its plan does not keep."""

    name = "starves"

    def shares(self, run: Any, step: int) -> list[float]:
        return [1 / len(run.tasks)] * len(run.tasks)

    def mtlcore_plan_step(self, run: Any, step: int) -> list[int]:
        first = next(task.index for task in run.tasks if run.is_active(task))
        return [12 * (task.index == first) for task in run.tasks]


class NamesItsShares(Sampler):
    name = "broken"

    def shares(self, run, step):
        return {task.name: 1 / len(run.tasks) for task in run.tasks}


class LeavesTheTask(RowChooser):
    """Gives ids beyond the last row."""

    name = "leaves_the_task"

    def choose(self, run: Any, step: int, task: Any, count: int) -> list[int]:
        return [run.rows_drawn[task.index] + k for k in range(count)]


BROKEN_SAMPLERS = [
    (GlobalGenerator, "others drew from the global generators.*fix: draw from run.generator"),
    (TorchGenerator, "others drew from the global generators.*'sentiment' 6 rows"),
    (CountsOnItsClass, "a second run of the same seed in this process.*fix: keep nothing on"),
    (ForgetsItsEpoch, r"resumed after step 1.*in step 1.*the state held nothing \(\{\}\)"),
    (LoadsNothing, "resumed after step 1.*in step 1.*the state held 'place'"),
    (WritesIntoItsState, r"state_dict\(\)\['places'\]\[0\] is 6, not 0.*fix: return copies"),
    (NeedsItsState, r"load_state_dict of nothing.*KeyError: 'places'.*state.get\(name"),
    (
        KeepsIntegerKeys,
        r"resumed after step 1 \(within an epoch\).*\(JSON .*\).*state held 'places'",
    ),
    (ReadsTheRank, "process 1 of two takes other rows in step 0.*do not read the rank"),
    (ReadsTheEnvironment, "process 1 of two takes other rows in step 0.*do not read the rank"),
    (PlansABatch, "two micro-batches.*step 0.*fix: .*rows_per_step"),
    (TakesTooMany, "24 rows of 12.*fix: the counts must sum to"),
    (TakesAllTasks, "4 rows of 'definitions', which is not trained then .stage 'first'"),
    (Starves, "'sentiment' got 144 rows in 18 steps, its shares promise 60"),
    (NamesItsShares, "gave .'sentiment'.* at step 0.*fix: return a list of 3 numbers"),
    (LeavesTheTask, r"step 7: .*row ids \[.*\] of 'sentiment', which has rows 0 .. 39"),
]


@pytest.mark.parametrize(("cls", "words"), BROKEN_SAMPLERS, ids=name_of)
def test_a_broken_sampler_is_caught(cls: type[Component], words: str) -> None:
    assert re.search(words, fault(check_sampler, cls), re.DOTALL)


def test_only_what_plans_rows_is_checked_as_a_sampler() -> None:
    with pytest.raises(UserError, match="of kind 'monitoring' and plans no rows"):
        check_sampler(Averages)


# -- state -------------------------------------------------------------------------------------


class Averages(Monitor):
    """Keeps what it saw only for the report."""

    name = "averages"

    def __init__(self) -> None:
        self.seen: list[float] = []

    def mtlcore_step_end(self, record: Any) -> None:
        self.seen.append(record["loss"])

    def mtlcore_report(self, run: Any) -> list[Section]:
        return [Section("Averages", text=(f"{len(self.seen)} steps",))]


class Grows(Regularizer):
    """Its strength grows with the steps, and no state holds it."""

    name = "grows"

    def __init__(self) -> None:
        self.strength = 0.0

    def mtlcore_penalties(self, run: Any, batch: Any) -> list[Penalty]:
        if batch is not None:
            return []
        self.strength += 0.01
        total = torch.stack([p.square().sum() for _, p in run.model.trainable_parameters()]).sum()
        return [Penalty(self.name, "weights", self.strength * total)]


class Unsavable(Averages):
    """Its state holds what no file can."""

    name = "unsavable"

    def state_dict(self) -> dict[str, Any]:
        return {"seen": {"all": torch.tensor(self.seen)}}

    def load_state_dict(self, state: Any) -> None:
        self.seen = state["seen"]["all"].tolist() if state else []


class OwnTensor(Averages):
    """Returns the tensor that it adds to."""

    name = "own_tensor"

    def __init__(self) -> None:
        self.sums = torch.zeros(2)

    def mtlcore_step_end(self, record: Any) -> None:
        self.sums += 1

    def mtlcore_report(self, run: Any) -> list[Section]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums}

    def load_state_dict(self, state: Any) -> None:
        self.sums = state["sums"].clone() if state else torch.zeros(2)


BROKEN_STATES = [
    (Averages, r"resumed after the first step \(step 1\).*report.*it held nothing"),
    (Grows, r"resumed after the first step.*in step 2 .*\['grows'\].*it held nothing"),
    (Unsavable, r"state_dict\(\)\['seen'\] cannot be saved: .*Tensor.*a name of its own"),
    (OwnTensor, r"after step 1 had changed after step 2: state_dict\(\)\['sums'\]\[0\] is 2.0"),
]


@pytest.mark.parametrize(("cls", "words"), BROKEN_STATES, ids=name_of)
def test_a_broken_state_is_caught(cls: type[Component], words: str) -> None:
    assert re.search(words, fault(check_stateful, cls), re.DOTALL)


def test_a_format_has_no_state_to_check() -> None:
    class Own(Format):
        """A format."""

        name = "own"

    with pytest.raises(UserError, match="kind 'format' has no part in the steps"):
        check_stateful(Own)


def test_a_name_that_is_taken_is_told() -> None:
    class Other(Sampler):
        """Not the one of mtlcore."""

        name = "equal"

    assert "'sampling/equal' of mtlcore" in fault(check_sampler, Other)


# -- weightings --------------------------------------------------------------------------------


class Normalises(Weighting):
    """Divides by norms."""

    name = "normalises"

    def mtlcore_weigh_tasks(self, gradients: Any) -> Any:
        return 1 / gradients.gramian().diagonal().sqrt()


class Undeclared(Normalises):
    """Reads gradients and says that it needs losses."""

    name = "undeclared"
    needs = "losses"


class ForAllTasks(Weighting):
    """Gives absent tasks a weight."""

    name = "for_all_tasks"

    def mtlcore_weigh_tasks(self, run: Any) -> Any:
        return torch.ones(len(run.tasks), dtype=torch.float64)


class Changes(Weighting):
    """Writes into the losses of all."""

    name = "changes"
    needs = "losses"

    def mtlcore_weigh_tasks(self, losses: Any) -> Any:
        losses /= losses.sum().clamp(min=1)
        return losses


class Single(Weighting):
    """Gives float32."""

    name = "single"
    needs = "nothing"

    def mtlcore_weigh_tasks(self, gradients: Any) -> Any:
        return torch.ones(len(gradients.present))


class Random(Weighting):
    """Draws weights from torch's own generator."""

    name = "random"
    needs = "nothing"

    def mtlcore_weigh_tasks(self, gradients: Any) -> Any:
        return torch.rand(len(gradients.present), dtype=torch.float64)


class FirstLeads(Weighting):
    """Favours the first task."""

    name = "first_leads"
    needs = "nothing"

    def mtlcore_weigh_tasks(self, gradients: Any) -> Any:
        weights = torch.ones(len(gradients.present), dtype=torch.float64)
        weights[0] = 2
        return weights


class Scaled(Weighting):
    """Claims that the scale of losses and gradients does not matter."""

    name = "scaled"
    homogeneity = 0

    def mtlcore_weigh_tasks(self, gradients: Any) -> Any:
        return 1 / (1 + gradients.gramian().diagonal())


class Turns(Weighting):
    """Gives a direction and says nothing of it."""

    name = "turns"
    needs = "rows"

    def mtlcore_weigh_tasks(self, gradients: Any) -> Any:
        return Direction(gradients.rows().sum(0))


class ClaimsUnits(Weighting):
    """Says that units of a loss do not matter, and its gradient has a length."""

    name = "claims_units"
    needs = "nothing"
    undoes_scale = True

    def mtlcore_weigh_tasks(self, gradients: Any) -> Any:
        return torch.ones(len(gradients.present), dtype=torch.float64)


BROKEN_WEIGHTINGS = [
    (ClaimsUnits, r"times \[0.03125, 1.0, 32.0\] the update .*fix: leave `undoes_scale`"),
    (FirstLeads, r"another order make another update.*fix: set symmetric = False"),
    (Scaled, r"times 0.000976562 the update is .*fix: set `homogeneity`"),
    (Turns, r"gave a Direction and declares gives = 'weights'.*fix: set gives = 'direction'"),
    (Normalises, r"with a first task with a gradient .* of 0 .* it gave \[inf.*norms"),
    (Undeclared, "reads G .* declares needs = 'losses'.*fix: set needs = 'gramian'"),
    (ForAllTasks, r"of 2 present tasks of 3 it gave weights of shape \[3\], not \[2\]"),
    (Changes, r"it wrote into what it read: losses\[0\]"),
    (Single, "it gave torch.float32.*float64"),
    (Random, r"drew from the global generators.*\['random gradients'\]\[0\]"),
]


@pytest.mark.parametrize(("cls", "words"), BROKEN_WEIGHTINGS, ids=name_of)
def test_a_broken_weighting_is_caught(cls: type[Component], words: str) -> None:
    assert re.search(words, fault(check_weighting, cls), re.DOTALL)
