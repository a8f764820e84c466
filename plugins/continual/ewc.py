"""A pull back to what earlier stages learned, weight by weight as much as it mattered to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtlcore.arena import block_name
from mtlcore.components import Count, NotNegative, Penalty, Regularizer, Section, Share
from mtlcore.errors import UserError
from mtlcore.fisher import Labels, fisher
from mtlcore.stages import tasks_of
from mtlcore.start import trained_tasks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from mtlcore.data.tasks import Task
    from mtlcore.run import Run

_FISHER, _WEIGHT = "fisher", "weight"


class EWC(Regularizer):
    """Hold each weight by its Fisher information for the stages before (online EWC).

    Overcoming catastrophic forgetting in neural networks (PNAS 2017),
    https://arxiv.org/abs/1612.00796; the online form is that of Progress & Compress (ICML 2018),
    https://arxiv.org/abs/1805.06370

        penalty = strength / 2 * sum_k F_k (theta_k - theta*_k)²
        at the end of a stage:  F <- decay * F + sum over its tasks of F_t,   theta* <- theta

    F_t is the Fisher diagonal of task t: the squared gradient of a row's summed log-likelihood,
    each row by itself, averaged over a seeded draw of `rows` train rows (see `mtlcore.fisher`).
    A task counts the same whether its stage had other tasks or not.

    strength: 100, with which SmolLM2-135M kept four tasks and learned a fifth (docs/benchmarks.md);
        to be tuned by powers of ten. Avalanche has no factor 1/2: its `ewc_lambda` is strength / 2.
        Nothing is divided by a number of tokens, while task losses are means over tokens.
    decay: 1.0 forgets no stage; the paper's gamma is below 1.
    rows: 256 train rows of each task. labels: "data" (the empirical Fisher) or "sampled".

    It acts on the weights: its gradient strength * F (theta - theta*) is added after the tasks were
    combined. F and theta* are saved with the run, and a run that starts from it (`mtlcore adapt`)
    has them; the tasks that no stage trains and whose F was not kept are measured at its start, on
    their train rows. Where all tasks answer with the same labels EWC alone prevents little
    forgetting: add `replay`.
    """

    name = "ewc"
    paper = (
        "Overcoming catastrophic forgetting in neural networks (PNAS 2017), "
        "https://arxiv.org/abs/1612.00796"
    )
    acts_on = "weights"
    carries_over = True

    def __init__(
        self,
        *,
        strength: NotNegative = 100.0,
        decay: Share = 1.0,
        rows: Count = 256,
        labels: Labels = "data",
    ) -> None:
        self.strength, self.decay, self.rows, self.labels = strength, decay, rows, labels
        # Of the stages before the one of now: F and theta* by the name of the weight.
        self.held: dict[str, tuple[Tensor, Tensor]] = {}
        # The same with the stage that has ended. It is held once the next one begins: a stage
        # that is given more steps must not be held back by itself, nor count twice.
        self.coming: dict[str, tuple[Tensor, Tensor]] = {}
        self.measured: set[str] = set()  # the tasks in F

    def mtlcore_run_start(self, run: Run) -> None:
        """In a run that starts from another: measure the old tasks that this one did not."""
        if run.recipe.start is None:
            if len(run.recipe.stages) < 2:
                run.note(
                    f"{self.name} holds nothing in a run of one stage; what it measures at the end "
                    "serves a run that starts from this one"
                )
            return
        known = self.measured | trained_tasks(run.recipe)
        missing = [task for task in run.tasks if task.name not in known]
        said = f"{self.name}: the start run kept no Fisher information"
        if missing:
            names = ", ".join(task.name for task in missing)
            run.note(f"{said} of {names}; it is measured now on their train rows")
            self.held = self.coming or self.held
            self.coming = self._measure(run, missing)
        elif not self.measured:
            run.note(f"{said} and every task is trained again, so nothing is held at first")

    def mtlcore_stage_start(self, run: Run, stage: str) -> None:
        """What the stages before have left is held from now on."""
        if self.coming:
            self.held, self.coming = self.coming, {}

    def mtlcore_stage_end(self, run: Run, stage: str) -> None:
        """Measure the tasks of the stage at its last weights."""
        self.coming = self._measure(run, tasks_of(run, stage))

    def _measure(self, run: Run, tasks: Sequence[Task]) -> dict[str, tuple[Tensor, Tensor]]:
        weights = {name: value.detach() for name, value in run.model.trainable_parameters()}
        found = {
            name: (self.decay * importance, weights.get(name, weight).clone())
            for name, (importance, weight) in self.held.items()
        }
        for task in tasks:
            draw = torch.randperm(
                len(task.train), generator=run.generator(run.step, self.name, task.name)
            )
            examples = [task.train[row] for row in draw[: self.rows].tolist()]
            for name, value in fisher(run, examples, labels=self.labels).items():
                if name in found:
                    found[name] = (found[name][0].to(value.device) + value, found[name][1])
                elif value.any():  # the own weights of other tasks have none
                    found[name] = (value, weights[name].clone())
            self.measured.add(task.name)
        return found

    def mtlcore_penalties(self, run: Run, batch: object, outputs: object) -> list[Penalty]:
        """One penalty per step, in the call without a batch, once there is something to hold."""
        if batch is not None:
            return []
        terms: list[Tensor] = []
        for name, value in run.model.trainable_parameters():
            if name in self.held:
                importance, weight = (kept.to(value.device) for kept in self.held[name])
                self.held[name] = importance, weight  # moved once
                terms.append((importance * (value - weight).square()).sum())
        if not terms:
            return []
        return [Penalty(self.name, "weights", self.strength / 2 * torch.stack(terms).sum())]

    def mtlcore_report(self, run: Run) -> list[Section]:
        """How much each block of the network matters to what was learned."""
        blocks: dict[str, list[Tensor]] = {}
        for name, (importance, _) in (self.coming or self.held).items():
            blocks.setdefault(block_name(name), []).append(importance.flatten().cpu())
        if not blocks:
            return []
        joined = {block: torch.cat(parts) for block, parts in blocks.items()}
        return [
            Section(
                "Elastic weight consolidation",
                text=(
                    f"Strength {self.strength:g}, decay {self.decay:g}. The Fisher information "
                    f"says how much each weight matters, measured on up to {self.rows} train rows "
                    "of each task at the end of its stage.",
                ),
                table={
                    "block": list(joined),
                    "weights": [part.numel() for part in joined.values()],
                    "mean F": [float(part.mean()) for part in joined.values()],
                    "max F": [float(part.max()) for part in joined.values()],
                },
            )
        ]

    def state_dict(self) -> dict[str, Any]:
        """F and theta* by the name of the weight, and the tasks that were measured."""
        tensors = {
            f"{part}.{kind}.{name}": value.clone()
            for part, kept in (("held", self.held), ("coming", self.coming))
            for name, pair in kept.items()
            for kind, value in zip((_FISHER, _WEIGHT), pair, strict=True)
        }
        return {"measured": sorted(self.measured), **tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back F and theta*."""
        if state and "measured" not in state:
            raise UserError(
                "the Fisher information was saved by an earlier version, without its tasks",
                where=f"regularization, {self.name}",
                fix="train that run again with this version, or go on without ewc",
            )
        tensors = dict(state)
        self.measured = set(tensors.pop("measured", ()))
        parts: dict[str, dict[str, tuple[Tensor, Tensor]]] = {"held": {}, "coming": {}}
        for key, value in tensors.items():
            part, kind, name = key.split(".", 2)
            if kind == _FISHER:
                weight = tensors[f"{part}.{_WEIGHT}.{name}"]
                parts[part][name] = value.clone(), weight.clone()
        self.held, self.coming = parts["held"], parts["coming"]
