"""Weights by how the losses on eval rows converge, so that all tasks get there together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge

from mtlcore.components import Count, Positive, Weighting
from mtlcore.data.batches import collate
from mtlcore.distributed import broadcast
from mtlcore.errors import UserError
from mtlcore.stages import plan_stages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from mtlcore.data.tasks import Task
    from mtlcore.errors import Problem
    from mtlcore.gradients import Gradients
    from mtlcore.run import Run

Looks = Annotated[int, Ge(2)]


class CoBa(Weighting):
    """Weigh a task down once its eval loss stops falling, and up while it falls too slowly.

    CoBa: Convergence Balancer for Multitask Finetuning of Large Language Models (EMNLP 2024),
    https://arxiv.org/abs/2410.06741

        after each step: eval losses l_t(s) / l_t(1) of a few rows of each task
        a_t(s) = slope of the least-squares line through the last `window` of them
        b(s)   = the same for max_t l_t(s) / l_t(1)
        RCS = softmax_t( T a_t / sum_u |a_u| )
        ACS = softmax_t( -n a_t / sum_s |a_t(s)| )         over the last n <= `window` slopes
        DF  = m softmax_s( -tau m b(s) / sum_s |b(s)| )    of now, over all m slopes so far
        w   = softmax_t( T (DF RCS + (1 - DF) ACS) );  if one < 1/(10 T):  w <- 0.9 w + 1/(10 T)

    RCS favours tasks that converge slowly, ACS turns away from those that diverge, DF says which of
    the two counts. All is as in the authors' code (MFTCoder), with these exceptions: losses are
    divided by the first one, as in the paper (the code leaves them as they are); ACS looks back
    `window` slopes, not `window` less the first looks. It costs a forward pass over T x `rows` eval
    rows every `interval` steps, in each process. A task without a finite loss in a look (no
    labelled token, or it diverged) keeps its last one; the first look is one in which all have one.
    Weights are 1/T in the first `first_looks` looks. T counts the tasks of the stage, and each
    stage begins anew.

    tau: 5, as in the code; larger values make DF turn faster.
    window, first_looks: 200 and 100 looks, as in the code.
    rows: eval rows of each task in a look (2; the code takes one mixed batch).
    interval: steps from look to look (1, as in the code).
    Shapes: weights [T']. Native scale: the weights of the stage's tasks sum to 1.
    """

    name = "coba"
    paper = (
        "CoBa: Convergence Balancer for Multitask Finetuning of Large Language Models "
        "(EMNLP 2024), https://arxiv.org/abs/2410.06741"
    )
    needs = "nothing"
    native_scale = "1 when all tasks of the stage are present"
    homogeneity = 0

    def __init__(
        self,
        *,
        tau: Positive = 5.0,
        window: Looks = 200,
        first_looks: Looks = 100,
        rows: Count = 2,
        interval: Count = 1,
    ) -> None:
        if first_looks > window:
            raise ValueError(f"first_looks ({first_looks}) must not be above window ({window})")
        self.tau, self.window, self.first_looks = tau, window, first_looks
        self.rows, self.interval = rows, interval
        self._begin([])

    def _begin(self, tasks: Sequence[int]) -> None:
        """Forget all; `tasks` are the K tasks of a stage."""
        self.tasks = list(tasks)
        empty = torch.zeros(len(tasks), 0, dtype=torch.float64)
        self.losses = empty  # [K, looks] the last ones, relative to the first
        self.slopes = empty  # [K, n] the last ones
        self.worst = empty.new_zeros(0)  # [m] slopes of the largest relative loss
        self.first = empty.new_zeros(0)  # [K] the first losses
        self.missed = 0  # looks before them

    def mtlcore_check(self, tasks: Sequence[Task]) -> list[Problem]:
        """Refuse tasks without eval rows."""
        for task in tasks:
            if task.eval is None and self.weighs(task.recipe):
                raise UserError(
                    f"{self.name} looks at eval rows, and task {task.name!r} has none",
                    where="weighting",
                    fix=f"set tasks.{task.name}.eval or .split, or use another weighting",
                )
        return []

    def mtlcore_run_start(self, run: Run) -> None:
        """Say so when no stage is long enough for the weights ever to differ."""
        needed = self.first_looks * self.interval
        if all(stage.steps <= needed for stage in plan_stages(run)):
            run.note(
                f"warning: weighting {self.name}: all weights stay equal: the first "
                f"{needed} steps are used to look; set weighting.first_looks lower"
            )

    def mtlcore_stage_start(self, run: Run) -> None:
        """Other tasks, and another learning rate: the slopes of before say nothing."""
        self._begin([index for index in self.weighed(run) if run.is_active(run.tasks[index])])

    def mtlcore_step_end(self, run: Run) -> None:
        """Look at the eval rows with the new weights."""
        if not self.tasks:  # a checkpoint from before it had a state
            self.mtlcore_stage_start(run)
        if not self.tasks or run.step % self.interval != 0:  # a stage without a task of its own
            return
        self.see(self._look(run))
        self.missed = 0 if len(self.first) else self.missed + 1
        if self.missed == self.first_looks:
            run.note(
                f"warning: weighting {self.name}: all weights stay equal: in none of "
                f"{self.missed} looks all tasks had a finite loss; set weighting.rows higher"
            )

    def _look(self, run: Run) -> Tensor:
        """[K] mean losses of a few eval rows, the same bits in every process."""
        examples, owners = [], []
        for index in self.tasks:
            split = run.tasks[index].eval
            assert split is not None  # checked before the run
            draw = run.generator(run.step, self.name, run.tasks[index].name)
            for row in torch.randperm(len(split), generator=draw)[: self.rows].tolist():
                examples.append(split[row])
                owners.append(index)
        batch = collate(examples, owners, len(run.tasks), flat=run.model.flat, device=run.device)
        losses = run.evaluate_losses(batch).double().cpu()[self.tasks]
        broadcast([losses])
        return losses

    def see(self, losses: Tensor) -> None:
        """Take the losses [K] of a look, and fit the slopes of now once there are enough."""
        known = torch.isfinite(losses)
        if not len(self.first):
            if not known.all():
                return
            self.first = losses.clone()
        relative = torch.where(self.first > 0, losses / self.first.where(self.first > 0, 1), 1)
        if not known.all():
            relative = torch.where(known, relative, self.losses[:, -1])
        self.losses = torch.cat([self.losses, relative[:, None]], 1)[:, -self.window :]
        if self.losses.shape[1] < self.first_looks:
            return
        now = slopes(self.losses)  # [K]
        self.slopes = torch.cat([self.slopes, now[:, None]], 1)[:, -self.window :]
        self.worst = torch.cat([self.worst, slopes(self.losses.amax(0, keepdim=True))])

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Tensor:
        """[T'] 1/K at first, then by the slopes of now."""
        weights = torch.full((len(run.tasks),), 1 / max(1, len(self.tasks)), dtype=torch.float64)
        if len(self.worst):
            weights[self.tasks] = coba_weights(self.slopes, self.worst, self.tau)
        return weights[gradients.present]

    def state_dict(self) -> dict[str, Any]:
        """Tasks, losses and slopes of the stage."""
        return {
            "tasks": list(self.tasks),
            "first": self.first.clone(),
            "losses": self.losses.clone(),
            "slopes": self.slopes.clone(),
            "worst": self.worst.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._begin(state.get("tasks", []))
        for name in state.keys() - {"tasks"}:
            setattr(self, name, state[name].clone())


def slopes(losses: Tensor) -> Tensor:
    """[K] slopes of the least-squares lines through the points of each row [K, n], a step apart."""
    steps = torch.arange(losses.shape[1], dtype=losses.dtype)
    steps -= steps.mean()
    return losses @ steps / steps.square().sum()


def coba_weights(past: Tensor, worst: Tensor, tau: float) -> Tensor:
    """[K] from the slopes of the tasks [K, n] and of the worst one [m], those of now the last."""
    now, (tasks, looks) = past[:, -1], past.shape
    relative = torch.softmax(tasks * _share(now, now), 0)
    absolute = torch.softmax(-looks * _share(now, past), 0)
    divergence = len(worst) * torch.softmax(-tau * len(worst) * _share(worst, worst), 0)[-1]
    logits = divergence * relative + (1 - divergence) * absolute
    weights = torch.softmax(tasks * logits, 0)
    least = 1 / (10 * tasks)
    return weights * (1 - tasks * least) + least if (weights < least).any() else weights


def _share(values: Tensor, among: Tensor) -> Tensor:
    """The values over the sum of sizes of those they are among; 0 where all of these are 0."""
    total = among.abs().sum(-1)
    return torch.where(total > 0, values / torch.where(total > 0, total, 1), 0)
