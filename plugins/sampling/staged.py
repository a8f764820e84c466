"""Tasks that begin later than others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from mtlcore.components import Count, Positive
from mtlcore.errors import require_tasks
from mtlcore.stages import plan_stages
from mtlcore_plugins.sampling._admitting import Admitting

if TYPE_CHECKING:
    from mtlcore.data.tasks import Task
    from mtlcore.errors import Problem
    from mtlcore.recipe import Recipe
    from mtlcore.run import Run


class Staged(Admitting):
    """Let each task in at a step of its own; those that are in are mixed by their size.

    Curriculum Learning (ICML 2009), https://doi.org/10.1145/1553374.1553380: training in stages of
    growing difficulty; here a stage adds tasks.

        share_t = m_t^(1/temperature) / sum_k m_k^(1/temperature)    over the tasks that are in
        task t is in from step begin_t on,    m_t = min(n_t, cap)

    The optimizer and its schedule go on; `stages` of a recipe start both anew, and may leave tasks
    out again. Where no task that is trained has begun, those that begin first are in.

    begin: task -> optimizer steps before its first one; tasks that are not named begin at 0.
    temperature, cap: as of `temperature`; 1.0 is proportional to the n_t train rows.
    Shapes: shares [T].
    """

    name = "staged"
    paper = "Curriculum Learning (ICML 2009), https://doi.org/10.1145/1553374.1553380"

    def __init__(
        self,
        *,
        begin: dict[str, Annotated[int, Ge(0)]],
        temperature: Positive = 1.0,
        cap: Count | None = None,
    ) -> None:
        self.begin = begin
        self.temperature = temperature
        self.cap = cap

    def mtlcore_check(self, recipe: Recipe) -> list[Problem]:
        """Refuse tasks that the recipe does not have."""
        require_tasks(self.begin, recipe.tasks, "sampling.begin")
        return []

    def mtlcore_run_start(self, run: Run) -> None:
        """Say so where a task begins after the last step."""
        steps = sum(stage.steps for stage in plan_stages(run))
        for task, begin in self.begin.items():
            if begin >= steps:
                run.note(
                    f"warning: sampling {self.name}: {task} begins after {begin} steps, and the "
                    f"run has {steps}: it is not trained"
                )

    def admitted(self, run: Run, step: int, trained: list[Task]) -> list[Task]:
        """Those that have begun."""
        begins = {task.name: self.begin.get(task.name, 0) for task in trained}
        reached = max(step, min(begins.values()))
        return [task for task in trained if begins[task.name] <= reached]
