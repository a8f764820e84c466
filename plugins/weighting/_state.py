"""What weightings with a memory share: numbers of each task of the run, saved and taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtlcore.components import Weighting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from mtlcore.run import Run


class Remembering(Weighting):
    """A weighting that keeps `state` [rows, T], float64, of all tasks of the run.

    A task that is absent from a step keeps its column as long as a subclass writes only those of
    the present tasks.
    """

    state: Tensor | None = None

    def remembered(self, run: Run, start: Sequence[float]) -> Tensor:
        """The state; in the first step `start` [rows], the same for every task."""
        if self.state is None:
            column = torch.tensor(start, dtype=torch.float64)[:, None]
            self.state = column.repeat(1, len(run.tasks))
        return self.state

    def state_dict(self) -> dict[str, Any]:
        """`state` [rows, T], once a step was taken."""
        return {} if self.state is None else {"state": self.state.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        saved = state.get("state")
        self.state = None if saved is None else saved.clone()
