"""What samplers share that let tasks in over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.components import Sampler
from mtlcore_plugins.sampling.temperature import mixed

if TYPE_CHECKING:
    from mtlcore.data.tasks import Task
    from mtlcore.run import Run


class Admitting(Sampler):
    """Mixes the tasks that are let in as `temperature` mixes all: implement `admitted`.

    Epochs and rows by task are planned as if all tasks were in from the start.
    """

    temperature: float
    cap: int | None

    def admitted(self, run: Run, step: int, trained: list[Task]) -> list[Task]:
        """Those of the tasks that are trained now which get rows in a step: one at least."""
        raise NotImplementedError(f"sampling {self.name!r} must implement `admitted`")

    def shares(self, run: Run, step: int) -> list[float]:
        """[T] of the admitted tasks, 0 for the others."""
        trained = [task for task in run.tasks if run.is_active(task)]
        chosen = {task.index for task in self.admitted(run, step, trained)}
        admitted = [task.index in chosen for task in run.tasks]
        return mixed(run, admitted, self.temperature, self.cap)

    def planned_shares(self, run: Run) -> list[float]:
        """[T] with all tasks in."""
        everyone = [True] * len(run.tasks)
        return self.trained_shares(run, mixed(run, everyone, self.temperature, self.cap))
