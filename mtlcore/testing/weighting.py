"""Whether a weighting gives usable weights, also where gradients vanish, explode or oppose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtlcore.errors import UserError
from mtlcore.gradients import Direction
from mtlcore.testing.stand_ins import StandInGradients
from mtlcore.testing.stateful import check_stateful
from mtlcore.testing.states import first_difference
from mtlcore.testing.trial import NotConformant, Trial, disturb, open_trial

if TYPE_CHECKING:
    from mtlcore.components import Component, Weighting
    from mtlcore.run import Run

COLUMNS = 5  # P
PRESENT = ([0, 1, 2], [0, 2], [1])
PARTS = {"training": "{max_steps: 40, per_device_train_batch_size: 6, max_length: 96}"}
Case = tuple[str, Tensor, Tensor]
"""What is special, mean losses [T'], J [T', P]."""


def check_weighting(
    cls: type[Component],
    options: Mapping[str, Any] | None = None,
    *,
    recipe: Sequence[str] = (),
) -> None:
    """Ask for weights with three tasks, two and one present, and gradients of all kinds.

    cls: a class of kind `weighting`; `options` are those of its constructor. The gradients are of
    scales 1e-10 to 1e10, zero for one task or all, opposed, and equal.
    recipe: ``key=value`` overrides, for a weighting that asks something of the recipe.

    Raises NotConformant (an AssertionError) if

    * the weights are not finite, not float64 or not of shape [T'] ([S, T'] with a scope);
    * it reads more than its `needs` declares, or writes into what it reads;
    * two runs of the same seed differ while others use the generators of random, numpy and torch;
    * tasks in another order make another update, unless it says `symmetric = False`;
    * it declares a `homogeneity` k, and J and losses times c do not give weights times c^k;
    * it declares `undoes_scale`, and a loss in other units turns the update;
    * `check_stateful` finds something.
    """
    if cls.kind != "weighting":
        raise UserError(
            f"{cls.__name__} is of kind {cls.kind!r}, not a weighting", fix="use check_stateful"
        )
    with open_trial(cls, options, recipe, PARTS) as trial:
        for present in PRESENT:
            weights = _answers(trial, present, noise=0)
            if difference := first_difference(_answers(trial, present, noise=100), weights):
                raise NotConformant(
                    cls,
                    "a second run of the same seed, in which others drew from the global "
                    f"generators, has other weights: case {difference}",
                    fix="draw from run.generator(run.step, '<a key of yours>')",
                )
        _check_order(trial)
        _check_scale(trial)
        _check_units(trial)
    check_stateful(cls, options, recipe=recipe)


class _Declared(StandInGradients):
    """Gradients that give what was declared in `needs`, and nothing else."""

    def __init__(self, component: Weighting, rows: Tensor, present: Sequence[int]) -> None:
        super().__init__(rows, present)
        self.component = component

    def rows(self) -> Tensor:
        self._require("J (gradients.rows())", "rows")
        return super().rows()

    def gramian(self, scope: str = "model") -> Tensor:
        self._require("G (gradients.gramian())", "gramian", "rows")
        return super().gramian(scope)

    def _require(self, what: str, *needs: str) -> None:
        if self.component.needs not in needs:
            raise NotConformant(
                type(self.component),
                f"it reads {what} and declares needs = {self.component.needs!r}",
                fix=f"set needs = {needs[0]!r} on the class: what nobody declares is not computed",
            )


def _cases(present: Sequence[int]) -> Iterator[Case]:
    draw = torch.Generator().manual_seed(len(present))
    size = len(present)
    J = torch.randn(size, COLUMNS, generator=draw, dtype=torch.float64)
    losses = 1 + torch.rand(size, generator=draw, dtype=torch.float64)
    first = torch.zeros(size, dtype=torch.float64)
    first[0] = 1
    yield "random gradients", losses, J
    for scale in (1e-10, 1e10):
        yield f"gradients and losses of scale {scale:g}", scale * losses, scale * J
    others = 1 - first
    yield "a first task with a gradient and a loss of 0", others * losses, others[:, None] * J
    yield "gradients and losses of 0", 0 * losses, 0 * J
    yield "equal gradients", losses, J[:1].expand(size, -1).clone()
    yield "opposed gradients", losses, (1 - 2 * first)[:, None] * J[:1]
    yield "gradients of scales 1 and 1e8", losses, (1 + 1e8 * first)[:, None] * J
    yield "random gradients again", losses, J


def _answers(trial: Trial, present: Sequence[int], *, noise: int) -> dict[str, Tensor]:
    """The weights of every case, asked for in turn in one run."""
    run = _begun(trial)
    answers = {}
    for step, (what, losses, J) in enumerate(_cases(present)):
        run.step = step
        disturb(noise + step)
        given, rows = losses.clone(), J.clone()
        where = f"with {what} of {len(present)} present tasks of {len(run.tasks)}"
        answers[what] = _ask(trial, run, given, rows, present, where)
        for name, one, other in (("losses", given, losses), ("J", rows, J)):
            if difference := first_difference(one, other, name):
                raise NotConformant(
                    trial.cls,
                    f"{where} it wrote into what it read: {difference}",
                    fix="work on a copy: every component reads the same losses and gradients",
                )
    return answers


def _begun(trial: Trial) -> Run:
    run = trial.fresh()
    run.check()
    run.plugins.hook.mtlcore_run_start(run=run)
    return run


def _ask(
    trial: Trial, run: Run, losses: Tensor, rows: Tensor, present: Sequence[int], where: str
) -> Tensor:
    answer = run.plugins.hook.mtlcore_weigh_tasks(
        run=run,
        losses=None if run.weighting.needs == "nothing" else losses,
        gradients=_Declared(run.weighting, rows, present),
    )
    return _usable(trial.cls, run.weighting, answer, len(present), where)


def _first_update(trial: Trial, losses: Tensor, J: Tensor) -> tuple[Weighting, Tensor]:
    """The update [P] of a first step: weights need not be the only ones that give it."""
    run = _begun(trial)
    answer = _ask(trial, run, losses, J, PRESENT[0], "in a first step")
    if run.weighting.gives == "weights":
        # By scope, which the stand-in takes for columns, they are [P, T'].
        answer = (answer * J.T).sum(-1) if answer.ndim == 2 else J.T @ answer
    return run.weighting, answer


def _check_order(trial: Trial) -> None:
    """The tasks the other way round make the same update."""
    _, losses, J = next(_cases(PRESENT[0]))
    weighting, update = _first_update(trial, losses, J)
    if not weighting.symmetric:
        return
    _, turned = _first_update(trial, losses.flip(0), J.flip(0))
    if not _close(turned, update):
        raise NotConformant(
            trial.cls,
            f"the same tasks in another order make another update: {turned.tolist()}, not "
            f"{update.tolist()}",
            fix="set symmetric = False on the class if it is to tell tasks apart, or draws an "
            "order",
        )


def _check_scale(trial: Trial) -> None:
    """All losses in other units."""
    _, losses, J = next(_cases(PRESENT[0]))
    weighting, update = _first_update(trial, losses, J)
    if weighting.homogeneity is None:
        return
    for scale in (2.0**-10, 2.0**10):
        _, scaled = _first_update(trial, scale * losses, scale * J)
        factor = scale ** (weighting.homogeneity + 1)
        if not _close(scaled / factor, update):
            raise NotConformant(
                trial.cls,
                f"with losses and gradients times {scale:g} the update is {scaled.tolist()}, not "
                f"{factor:g} times {update.tolist()}",
                fix="set `homogeneity` on the class to what it is, or to None",
            )


def _check_units(trial: Trial) -> None:
    """Each loss in units of its own."""
    _, losses, J = next(_cases(PRESENT[0]))
    weighting, update = _first_update(trial, losses, J)
    if not weighting.undoes_scale:
        return
    units = torch.tensor([2.0**-5, 1, 2.0**5], dtype=torch.float64)
    _, turned = _first_update(trial, units * losses, units[:, None] * J)
    if not _close(turned / turned.norm(), update / update.norm()):
        raise NotConformant(
            trial.cls,
            f"with the losses and gradients of the tasks times {units.tolist()} the update is "
            f"{turned.tolist()}, which does not point as {update.tolist()} does",
            fix="leave `undoes_scale` on the class at False",
        )


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-6 * expected.norm())


def _usable(
    cls: type[Component], weighting: Weighting, answer: Any, present: int, where: str
) -> Tensor:
    """The weights, or the direction, if they are what a step can use."""
    values, shapes = answer, [[present]]
    is_direction = isinstance(answer, Direction)
    if is_direction != (weighting.gives == "direction"):
        gave = "a Direction" if is_direction else "weights"
        raise NotConformant(
            cls,
            f"{where} it gave {gave} and declares gives = {weighting.gives!r}",
            fix=f"set gives = {'direction' if is_direction else 'weights'!r} on the class",
        )
    if isinstance(answer, Direction):
        values, shapes = answer.vector, [[COLUMNS]]
    elif weighting.scope != "model":
        shapes.append([COLUMNS, present])
    if not isinstance(values, Tensor) or values.dtype != torch.float64:
        found = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise NotConformant(
            cls, f"{where} it gave {found}", fix="return a float64 tensor of weights"
        )
    if list(values.shape) not in shapes:
        raise NotConformant(
            cls,
            f"{where} it gave weights of shape {list(values.shape)}, not {shapes[-1]}",
            fix="give one weight for each task in gradients.present: absent tasks have none",
        )
    if not torch.isfinite(values).all():
        raise NotConformant(
            cls,
            f"{where} it gave {values.tolist()}",
            fix="mind norms, losses and sums of 0 before dividing by them",
        )
    return values
