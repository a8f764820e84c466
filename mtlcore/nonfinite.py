"""What happens in a step whose losses or gradients are not finite: the recipe decides."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtlcore.distributed import any_process, gather
from mtlcore.errors import UserError, counted
from mtlcore.run_folder import start_anew

if TYPE_CHECKING:
    from mtlcore.data.batches import Batch
    from mtlcore.data.example import Example
    from mtlcore.gradients import Direction
    from mtlcore.losses import Outputs
    from mtlcore.run import Run

RowId = tuple[str, int]
"""A task's name and the number of a row in its file."""

LARGE = 1e6
"""A task weight that may be what makes a gradient infinite."""

LONGEST = 10
"""Steps in a row that may make no update; one more stops the run."""


@dataclass
class NonFinite:
    """What is NaN or infinite in a step: the losses of rows, or something else, in words."""

    rows: list[RowId] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.rows or self.others)

    def of_all_processes(self) -> NonFinite:
        """What any process found: the same, in the same order, in each of them."""
        if not any_process(bool(self)):
            return NonFinite()
        parts = gather((self.rows, self.others))
        return NonFinite(
            sorted({row for rows, _ in parts for row in rows}),
            sorted({other for _, others in parts for other in others}),
        )

    def words(self, step: int) -> str:
        """A clause for messages."""
        told = [f"{other} is not finite at step {step}" for other in self.others]
        if self.rows:
            told.insert(0, f"the loss is not finite at step {step} for {_places(self.rows)}")
        return "; ".join(told)


def _places(rows: Sequence[RowId]) -> str:
    shown = ", ".join(f"{task} row {row}" for task, row in rows[:8])
    more = " ..." if len(rows) > 8 else ""
    return f"{counted(len(rows), 'row')} (numbers in the file, from 0): {shown}{more}"


class Guard:
    """Follows `training.on_nonfinite_loss` through the steps of a run.

    `stop` raises, the same in every process. `skip_rows` has the step measured again without the
    rows whose loss is not finite. `lower_learning_rate` gives the step up and halves `factor`,
    which multiplies the learning rate of all later steps, those of later stages too. What no row
    can be named for (a gradient, a penalty) makes the step one without an update. After `LONGEST`
    of those in a row the next one stops the run.

    `found` collects what this process finds while it measures; `skipped_rows` by task and
    `makes_update` tell of the step.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.policy = run.recipe.training.on_nonfinite_loss
        self.factor = 1.0
        self.in_a_row = 0  # steps without an update
        self._told: set[RowId] = set()
        self.start()

    def start(self) -> None:
        """A new step."""
        self.found = NonFinite()
        self.skipped_rows: Counter[str] = Counter()
        self.makes_update = True

    def see(self, batch: Batch, outputs: Outputs) -> None:
        """Look at the losses of a micro-batch."""
        if bool(torch.isfinite(outputs.loss_sums).all()):
            return
        bad = batch.label_rows[~torch.isfinite(outputs.token_losses)].unique().tolist()
        self.found.rows += [(batch.examples[row].task, batch.examples[row].row) for row in bad]
        if not bad:
            self.found.others.append("the sum of the losses")

    def see_penalty(self, name: str, value: float) -> None:
        """Look at the value of a penalty."""
        if not math.isfinite(value):
            self.found.others.append(f"the penalty {name!r}")

    def agree(self) -> NonFinite:
        """What the processes found since the last call."""
        found, self.found = self.found.of_all_processes(), NonFinite()
        return found

    def rows_left(self, found: NonFinite, rows: Sequence[Example]) -> Sequence[Example]:
        """The rows of the step to measure it with again; if there are none, it makes no update."""
        if self.policy == "stop":
            self._stop(found)
        bad = set(found.rows)
        self.skipped_rows.update(row.task for row in rows if (row.task, row.row) in bad)
        left = [row for row in rows if (row.task, row.row) not in bad]
        if self.policy == "skip_rows" and bad and left:
            new = sorted(bad - self._told)
            self._told |= bad
            if new:
                self.run.note(f"{NonFinite(new).words(self._step)}; left out")
            return left
        self._give_up(found)
        return []

    def gradients_are_finite(
        self, norms: Mapping[str, float], weights: Tensor | Direction | None
    ) -> bool:
        """Whether these norms by adapter are, and the penalties on the weights; else no update.

        weights: those that are in the gradients, if any; large ones are named.
        """
        bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
        found, self.found = self.found, NonFinite()  # the same in all processes
        if bad:
            found.others.append(f"the gradient of {', '.join(bad)}{self._large(weights)}")
        if not found:
            return True
        if self.policy == "stop":
            self._stop(found)
        self._give_up(found)
        return False

    def _large(self, weights: Tensor | Direction | None) -> str:
        top = float(weights.abs().max()) if isinstance(weights, Tensor) else 0.0
        name = self.run.weighting.name
        return f" (the weights of {name!r} go up to {top:.3g})" if top > LARGE else ""

    def end(self) -> None:
        """The step is over."""
        if self.makes_update:
            self.in_a_row = 0

    @property
    def _step(self) -> int:
        return self.run.step + 1

    def _stop(self, found: NonFinite) -> None:
        rows = found.rows
        raise UserError(
            found.words(self._step) + ("" if rows else ", though the losses are"),
            where=f"tasks.{rows[0][0]}" if rows else "",
            fix=("look at these rows; " if rows else "")
            + "go on with --resume and training.on_nonfinite_loss=skip_rows (or "
            "lower_learning_rate); or begin anew with a lower training.learning_rate, a "
            "training.max_grad_norm, dtype float32 or smaller task weights",
        )

    def _give_up(self, found: NonFinite) -> None:
        """This step makes no update."""
        if self.in_a_row == LONGEST:
            raise UserError(
                f"{found.words(self._step)}; the {LONGEST} steps before made no update either",
                fix="look at the rows and the model, lower training.learning_rate and "
                + start_anew(self.run.folder, self.run.step - LONGEST),
            )
        self.in_a_row += 1
        self.makes_update = False
        told = f"{found.words(self._step)}; the step made no update"
        if self.policy == "lower_learning_rate":
            self.factor /= 2
            told += f", and the learning rate is {self.factor:g} of the recipe's from here on"
        self.run.note(told)

    def state(self) -> dict[str, Any]:
        """For checkpoints."""
        told = sorted(self._told)
        return {"factor": self.factor, "in_a_row": self.in_a_row, "told": told}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Set what `state` gave."""
        self.factor, self.in_a_row = state["factor"], state["in_a_row"]
        self._told = {(task, row) for task, row in state["told"]}
