"""Per-task gradients of one step: J [T, P], its Gramian G = J Jᵀ, and the update Jᵀ w."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mtlcore import ops
from mtlcore.arena import Arena
from mtlcore.components import Weighting
from mtlcore.distributed import all_reduce_sum, any_process
from mtlcore.errors import UserError

if TYPE_CHECKING:
    from mtlcore.components import Component, Needs
    from mtlcore.model.backbone import MultiTaskModel

Mode = Literal["auto", "one_pass", "multi_pass"]
Scope = Literal["model", "layer", "factor"]


@dataclass(frozen=True)
class Direction:
    """An update of the shared weights given whole, [P], by a weighting that needs the rows of J."""

    vector: Tensor


def folds_rows(needs: Needs, components: Iterable[Component], passes: int) -> bool:
    """Whether J takes one row: nothing reads it, and the weights are known before the backward.

    needs: what the weighting needs in this step. passes: the backward passes of a step, its
    micro-batches in all processes.
    """
    others = [part.needs for part in components if not isinstance(part, Weighting)]
    if any(need in ("gramian", "rows") for need in others):
        return False
    return needs == "nothing" or (needs == "losses" and passes == 1)


class Gradients:
    """The gradients of one step, measured once and read by everyone.

    A step is `start`, one `backward` per micro-batch, `finish`, then any number of readers
    (`losses`, `gramian`, `rows`), then `apply`. The backward passes run on *sums* of token losses;
    `finish` divides by N_t, the labelled tokens of task t over all micro-batches and ranks, so that
    the result does not depend on how the rows were dealt. A task with N_t = 0 is absent: it has no
    row for any reader, and its own parameters get ``grad = None``.

    `one_pass`: the adapters put each task's segment sum into J during one backward.
    `multi_pass`: one backward per task through the graph of ordinary autograd: the same numbers,
    slower, but right for trainable weights of any kind. `auto` takes the first that is right.
    """

    def __init__(
        self, model: MultiTaskModel, loss_weights: Sequence[float], *, mode: Mode = "auto"
    ) -> None:
        self.model = model
        self.loss_weights = torch.tensor(loss_weights, dtype=torch.float64)
        adapters = {id(p) for a in model.layout.adapters for p in model.adapter_parameters(a.name)}
        others = [(n, p) for n, p in model.trainable_parameters() if id(p) not in adapters]
        if others and mode == "one_pass":
            raise UserError(
                f"{others[0][0]} is trained by several tasks and has no per-task rule in one pass",
                where="training.gradients",
                fix="use gradients: multi_pass (T backward passes, the same result)",
            )
        self.others = others
        self.mode = "multi_pass" if others or mode == "multi_pass" else "one_pass"
        self.task_count = len(loss_weights)
        self.present: list[int] = []
        self.arena = Arena(model.adapter_layers, others, self.task_count)
        for slot in self.arena.slots:
            # Each `.grad` is a view of the arena: clipping and penalties reach it there.
            if slot.parameter.dtype != self.arena.dtype:
                raise UserError(
                    f"{slot.name} is trained in {slot.parameter.dtype}, the others in "
                    f"{self.arena.dtype}",
                    where="model.dtype",
                    fix=f"convert the weight to {self.arena.dtype} before it is trained",
                )
        self.update = torch.zeros(
            self.arena.shared_size, dtype=self.arena.dtype, device=self.arena.device
        )

    @property
    def has_shared(self) -> bool:
        """Whether any weight is shared between tasks, so that there is something to weigh."""
        return self.arena.shared_size > 0

    def start(self, counts: Sequence[int]) -> None:
        """Begin a step; `counts` [T] labelled tokens in all micro-batches of this rank."""
        self._counts = all_reduce_sum(torch.tensor(counts, dtype=torch.float64))  # N [T]
        self._loss_sums = torch.zeros(self.task_count, dtype=torch.float64)
        self._gramians: dict[str, Tensor] = {}
        self._folded = False
        self._started = False
        self.present = [t for t, count in enumerate(self._counts.tolist()) if count]
        # What turns the gradient of a loss sum into that of the weighted mean loss; 0 if absent.
        self._scale = self.loss_weights / self._counts.clamp(min=1) * (self._counts > 0)
        self._penalty_arena: Arena | None = None
        # Before the forward: layers with a sink hide A and B from autograd.
        self.model.routing.sink = self.arena if self.mode == "one_pass" else None

    def backward(self, loss_sums: Tensor, weights: Tensor | None = None) -> None:
        """One backward pass for one micro-batch, from its loss sums [T].

        With `weights` [T'] of the present tasks, known beforehand, they are folded into the pass
        and no [T, P] memory is taken; then no reader may ask for J afterwards.
        """
        self._loss_sums += loss_sums.detach().double().cpu()
        self._clear(weights)
        if self.mode == "multi_pass":
            self._multi_pass(loss_sums)
            return
        # The sum over tasks: segments keep them apart.
        loss_sums.sum().backward()

    def _clear(self, weights: Tensor | None) -> None:
        """Make the memory of J ready, once per step."""
        if not self._started:
            self._started, self._folded = True, weights is not None and self.mode == "one_pass"
            self.arena.clear(self._per_task(weights).tolist() if self._folded else None)

    def _per_task(self, weights: Tensor | None) -> Tensor:
        """Coefficients of the raw rows: w_t * loss_weight_t / N_t, 0 for absent tasks.

        [T] from weights [T'], [S, T] from weights by scope.
        """
        scopes = () if weights is None else weights.shape[:-1]
        full = torch.zeros(*scopes, self.task_count, dtype=torch.float64)
        if weights is not None:
            full[..., self.present] = weights.double().cpu()
        return full * self._scale

    def _multi_pass(self, loss_sums: Tensor) -> None:
        slots = self.arena.slots
        for task in self.present:
            mine = [i for i, slot in enumerate(slots) if slot.owner in (None, task)]
            if not mine:  # all its weights are frozen
                continue
            grads = torch.autograd.grad(
                loss_sums[task],
                [slots[i].parameter for i in mine],
                retain_graph=True,
                allow_unused=True,
            )
            found = {i: grad for i, grad in zip(mine, grads, strict=True) if grad is not None}
            self.arena.add_rows(task, found)

    def penalty_backward(self, value: Tensor) -> None:
        """Backward of a penalty on the whole batch (a scalar), before that of the losses.

        Its gradient is one vector over all rows, in neither J nor G, added by `apply` at its own
        strength. The graph is kept for the losses.
        """
        if self._penalty_arena is None:
            self._penalty_arena = self._one_row_arena()
        if self.mode == "multi_pass":
            slots = self._penalty_arena.slots
            grads = torch.autograd.grad(
                value, [slot.parameter for slot in slots], retain_graph=True, allow_unused=True
            )
            found = {i: grad for i, grad in enumerate(grads) if grad is not None}
            self._penalty_arena.add_rows(0, found)
            return
        self.model.routing.sink = self._penalty_arena
        value.backward(retain_graph=True)
        self.model.routing.sink = self.arena

    def leave(self) -> None:
        """The passes of this rank are over, or given up."""
        self.model.routing.sink = None
        self.model.routing.leave()

    def finish(self, weights: Tensor | Direction | None = None) -> None:
        """All micro-batches are done: sum over ranks.

        `weights`, those known before the backward pass, are needed on a rank that had no rows.
        """
        self.leave()
        self._clear(weights if isinstance(weights, Tensor) else None)
        for tensor in (self._loss_sums, self.arena.rows, self.arena.own):
            all_reduce_sum(tensor)
        # A penalty may exist on some ranks only, where the batch gives rise to it; all must sum.
        if any_process(self._penalty_arena is not None):
            self._penalty_arena = self._penalty_arena or self._one_row_arena()
            all_reduce_sum(self._penalty_arena.rows)
            all_reduce_sum(self._penalty_arena.own)

    def _one_row_arena(self) -> Arena:
        """Memory for one gradient over all rows of a step."""
        arena = Arena(self.model.adapter_layers, self.others, self.task_count)
        arena.clear([1.0] * self.task_count)
        return arena

    def mean_losses(self) -> Tensor:
        """[T'] mean losses of the present tasks times their `loss_weight`, float64 on CPU."""
        return self.mean_losses_of(self._loss_sums)

    def mean_losses_of(self, loss_sums: Tensor) -> Tensor:
        """The same for the loss sums [T] of a step's only micro-batch, before its backward."""
        return (loss_sums.detach().double().cpu() * self._scale)[self.present]

    def raw_losses(self) -> dict[int, float]:
        """Mean loss over labelled tokens of each present task, without its `loss_weight`."""
        means = self._loss_sums / self._counts.clamp(min=1)
        return {task: float(means[task]) for task in self.present}

    def gramian(self, scope: Scope = "model") -> Tensor:
        """G = J Jᵀ of the present tasks, float64 on CPU: [T', T'], or [S, T', T'] by scope.

        Scopes: "model", "layer" (each block of the network), "factor" (each LoRA A and B). It is
        computed once per step and scope, and shared by all readers.
        """
        if scope not in self._gramians:
            rows, borders = self._raw_rows(), self.arena.borders(scope)
            grams = ops.gramian_by_slice(rows, borders).cpu()  # [S, T, T]
            scale = self._scale[self.present]
            grams = grams[:, self.present][:, :, self.present] * scale[:, None] * scale
            self._gramians[scope] = grams[0] if scope == "model" else grams
        return self._gramians[scope]

    def known_gramian(self, scope: Scope = "model") -> Tensor | None:
        """`gramian(scope)` if this step's readers have had it measured; costs no pass over J.

        That of the model is known too, as a sum, where one by scope is.
        """
        if scope == "model" and scope not in self._gramians:
            by_scope = next(iter(self._gramians.values()), None)
            return None if by_scope is None else by_scope.sum(0)
        return self._gramians.get(scope)

    def rows(self) -> Tensor:
        """J [T', P]: the gradient of each present task's weighted mean loss, a copy."""
        scale = self._scale[self.present].to(self.arena.rows)
        return self._raw_rows()[self.present] * scale[:, None]

    def _raw_rows(self) -> Tensor:
        if self._folded:
            raise RuntimeError(
                "the rows of J were folded into one, because no component of the recipe declares "
                "that it reads them; set needs = 'gramian' (or 'rows') on the component's class"
            )
        return self.arena.rows

    def apply(self, weights: Tensor | Direction | None) -> None:
        """Set `.grad` of every trainable weight.

        Shared weights get Jᵀ w, with `weights` [T'], [S, T'] by scope, or a whole `Direction` [P];
        the weights of one task's own adapter get that task's gradient times 1/T (times 1 where
        no weight is shared between tasks: those are independent models).
        """
        if self._folded:
            self.update.copy_(self.arena.rows[0])
        elif isinstance(weights, Direction):
            self.update.copy_(weights.vector)
        elif self.has_shared:
            assert weights is not None
            scope = self.scope_of(weights.shape[0]) if weights.ndim == 2 else "model"
            per_task = self._per_task(weights).to(self.arena.rows).view(-1, self.task_count)
            borders = self.arena.borders(scope)
            ops.combine_by_slice(self.arena.rows, per_task, borders, out=self.update)
        share = 1 / self.task_count if self.has_shared else 1.0
        for task in self.present:
            self.arena.own[self.arena.own_columns(task)] *= self._scale[task] * share
        if self._penalty_arena is not None:
            self.update += self._penalty_arena.rows[0]
            self.arena.own += self._penalty_arena.own
        for slot in self.arena.slots:
            if slot.owner is None:
                grad = self.update[slot.start : slot.stop]
            elif slot.owner in self.present:
                grad = self.arena.own[slot.start : slot.stop]
            else:
                slot.parameter.grad = None
                continue
            slot.parameter.grad = grad.view_as(slot.parameter)
        self._drop_absent_groups()

    def scope_of(self, count: int) -> Scope:
        """The scope, "layer" or "factor", that has so many parts."""
        for scope in ("layer", "factor"):
            if len(self.arena.borders(scope)) - 1 == count:
                return scope
        raise ValueError(f"weights of {count} scopes: the model has no scope of so many parts")

    def _drop_absent_groups(self) -> None:
        """An adapter none of whose tasks is present gets no gradient, so no momentum or decay."""
        for adapter in self.model.layout.adapters:
            if not any(task in self.present for task in adapter.tasks):
                for parameter in self.model.adapter_parameters(adapter.name):
                    parameter.grad = None

    def add_to_update(
        self, parameters: Iterable[torch.nn.Parameter], grads: Iterable[Tensor]
    ) -> None:
        """Add the gradients of a penalty to `.grad`; parameters without one this step are left."""
        for parameter, grad in zip(parameters, grads, strict=True):
            if parameter.grad is not None and grad is not None:
                parameter.grad.add_(grad)

    def norms(self) -> dict[str, float]:
        """The norm of what each task has in J and of its own gradient, of sums, not means.

        Rows of J that were folded into one have a single norm, "shared"; penalties on the batch
        have one, too.
        """
        names = self.model.layout.task_names
        of_rows = torch.linalg.vector_norm(self.arena.rows, dim=1).tolist()
        found = {"shared": sum(of_rows)} if self._folded else dict(zip(names, of_rows, strict=True))
        for task in self.present:
            own = self.arena.own[self.arena.own_columns(task)]
            norm = float(torch.linalg.vector_norm(own))
            found[names[task]] = math.hypot(found.get(names[task], 0.0), norm)
        if self._penalty_arena is not None:
            parts = (self._penalty_arena.rows[0], self._penalty_arena.own)
            norms = [float(torch.linalg.vector_norm(part)) for part in parts]
            found["the penalties"] = math.hypot(*norms)
        return found

    def clip(self, max_norm: float) -> dict[str, float]:
        """Clip the shared weights as one group and each task's own as another -> norms before."""
        groups = {"shared": self.update} if self.has_shared else {}
        for task in self.present:
            own = self.arena.own[self.arena.own_columns(task)]
            if own.numel():
                groups[self.model.layout.task_names[task]] = own
        norms = {name: float(torch.linalg.vector_norm(group)) for name, group in groups.items()}
        if max_norm > 0:
            for name, group in groups.items():
                if norms[name] > max_norm:
                    group.mul_(max_norm / (norms[name] + 1e-6))
        return norms
