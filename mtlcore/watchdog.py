"""Stops a run whose loss stays too high."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mtlcore.errors import UserError
from mtlcore.run_folder import start_anew

if TYPE_CHECKING:
    from mtlcore.records import StepRecord
    from mtlcore.run import Run


class LossWatchdog:
    """Counts the steps in a row whose mean loss is above `training.loss_watchdog_threshold`.

    `training.loss_watchdog_patience` of them stop the run. A step without a loss is not counted.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.threshold = run.recipe.training.loss_watchdog_threshold
        self.patience = run.recipe.training.loss_watchdog_patience
        self.above = 0

    def see(self, record: StepRecord) -> None:
        """Take in a step; a UserError when patience is over."""
        if self.threshold is None or record.loss is None:
            return
        self.above = self.above + 1 if record.loss > self.threshold else 0
        if self.above < self.patience:
            return
        losses = ", ".join(f"{name} {loss:.3f}" for name, loss in record.losses.items())
        raise UserError(
            f"the mean loss was above {self.threshold:g} for {self.above} steps in a row, up to "
            f"step {record.step}: {record.loss:.3f} ({losses})",
            where="training.loss_watchdog_threshold",
            fix="lower training.learning_rate and "
            f"{start_anew(self.run.folder, record.step - self.above)}; or go on with --resume and "
            "a higher threshold",
        )

    def state(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"above": self.above}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Set what `state` gave."""
        self.above = state["above"]
