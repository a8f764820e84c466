"""Which tokens of a prompt an answer depends on, with checks of whether they really do.

    explanation = explain(mtlcore.load("runs/x"), "sentiment", row=3)

Axiomatic Attribution for Deep Networks (ICML 2017), https://arxiv.org/abs/1703.01365

    score_i = (e_i - b_i) . integral over a in 0 .. 1 of  df/de_i (b + a (e - b))
    sum of scores = f(e) - f(b)                                            (completeness)

e [P, d] are the embeddings of the prompt's tokens, b those of the same prompt with every token
but the special ones replaced by the eos, and f is the log-likelihood of the row's answer, or for
rows with options the log-odds of the one that the model chooses. The integral is a Gauss-Legendre
sum whose steps are doubled until it is complete to 0.1%.

A score says what the model uses, not why. The deletion test replaces the k tokens with the highest
scores, and k drawn by lot: if f falls no more for the first, the scores are not to be trusted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtlcore.data.batches import collate
from mtlcore.data.example import IGNORED
from mtlcore.distributed import is_main
from mtlcore.errors import UserError, did_you_mean
from mtlcore.seeds import generator

if TYPE_CHECKING:
    from mtlcore.data.example import Example
    from mtlcore.data.tasks import Task
    from mtlcore.run import Run

EXPLANATIONS = "explanations.jsonl"
COMPLETE = 1e-3
"""Completeness is asked for to this share of f(e) - f(b)."""
FLOOR = 1e-5
"""And to this in nats, where that difference is next to nothing."""
STEPS, MAX_STEPS = 32, 1024
DELETED = 0.2
"""The share of the tokens that the deletion test replaces."""
DRAWS = 20

Function = Callable[[Tensor], Tensor]
"""Embeddings [n, P, d] -> values [n]."""


@dataclass(frozen=True)
class Deletion:
    """How much f falls when k tokens are replaced: those with the highest scores, or any."""

    k: int
    top: float
    random: float
    draws: int


@dataclass(frozen=True)
class Attribution:
    """One score per token, and how far their sum is from f(e) - f(b)."""

    scores: tuple[float, ...]
    value: float
    baseline_value: float
    n_steps: int

    @property
    def delta(self) -> float:
        """How much completeness is missed by."""
        return abs(sum(self.scores) - (self.value - self.baseline_value))

    @property
    def complete(self) -> bool:
        """Whether the scores sum to f(e) - f(b), to 0.1% of it."""
        return self.delta <= max(COMPLETE * abs(self.value - self.baseline_value), FLOOR)


@dataclass(frozen=True)
class Explanation:
    """The scores of one row's prompt tokens; a line of explanations.jsonl."""

    task: str
    row: int
    split: str
    method: str
    quantity: str
    target: str
    tokens: tuple[str, ...]
    attribution: Attribution
    deletion: Deletion | None

    @property
    def scores(self) -> tuple[float, ...]:
        """One per token; 0 for special tokens, which are left as they are."""
        return self.attribution.scores

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found = self.attribution
        return {
            "task": self.task,
            "row": self.row,
            "split": self.split,
            "method": self.method,
            "quantity": self.quantity,
            "target": self.target,
            "tokens": list(self.tokens),
            "scores": list(self.scores),
            "value": found.value,
            "baseline_value": found.baseline_value,
            "n_steps": found.n_steps,
            "delta": found.delta,
            "complete": found.complete,
            "deletion": None if self.deletion is None else asdict(self.deletion),
        }


def explain(
    run: Run,
    task: str,
    row: int,
    *,
    split: str = "test",
    method: str = "integrated_gradients",
    n_steps: int | None = None,
) -> Explanation:
    """Explain the answer to one row, and add it to the run's explanations.jsonl.

    row: its number in the file of its split, from 0 (the `row` of predictions). method: see
    `METHODS`. n_steps: fixed steps of the integral, in place of as many as it takes.
    """
    require_method(method)
    captum()  # before the rows are read
    chosen = run.task(task)
    question = Question(run, chosen, _example(run, chosen, row, split))
    found = attribute(
        question,
        question.embed(question.given),
        question.embed(question.baseline),
        method=method,
        n_steps=n_steps,
        batch=question.batch,
    )
    explanation = Explanation(
        task=task,
        row=row,
        split=split,
        method=method,
        quantity=question.quantity,
        target=question.target,
        tokens=tuple(str(run.tokenizer.decode([token])) for token in question.given),
        attribution=found,
        deletion=delete(question, found, generator(run.seed, "explain", task, row)),
    )
    if is_main():
        with (run.folder / EXPLANATIONS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(explanation.to_json(), ensure_ascii=False) + "\n")
    return explanation


def require_method(name: str) -> None:
    """Refuse a method that there is not."""
    if name not in METHODS:
        raise UserError(f"--method {name!r} is not known", fix=did_you_mean(name, METHODS))


def captum() -> Any:
    """The library of attributions; a UserError if it is not installed."""
    try:
        import captum.attr
    except ImportError as error:
        raise UserError(
            f"explanations need the package captum ({error})", fix="pip install 'mtlcore[explain]'"
        ) from None
    return captum.attr


def _example(run: Run, task: Task, row: int, split: str) -> Example:
    rows = run.rows(task.name, split)
    for example in rows:
        if example.row == row:
            return example
    numbers = sorted(example.row for example in rows)
    shown = ", ".join(map(str, numbers[:8])) + (f", ... {numbers[-1]}" if len(numbers) > 8 else "")
    raise UserError(
        f"task {task.name!r} has no {split} row {row}",
        where="--row",
        fix=f"rows are numbered as in their file, from 0; used are {shown}",
    )


class Question:
    """What the model is asked of one row: f of the embeddings of its prompt.

    `given` [P] are the tokens that get scores (all tokens of a row without a prompt), `baseline`
    [P] what they are replaced with, `free` the places where both differ in meaning. After `given`
    follows each of the K continuations: the answer, or every option; none for a head.
    """

    def __init__(self, run: Run, task: Task, example: Example) -> None:
        self.run, self.task, self.example = run, task, example
        model: Any = run.model
        self.embedding: torch.nn.Module = model.backbone.get_input_embeddings()
        count = example.prompt_length or len(example.input_ids)
        self.given = example.input_ids[:count]
        special = set(run.tokenizer.all_special_ids)
        self.free = [place for place, token in enumerate(self.given) if token not in special]
        if not self.free:
            raise UserError(
                f"row {example.row} of task {task.name!r} has special tokens only: there is "
                "nothing to explain",
                where="--row",
            )
        eos = run.tokenizer.eos_token_id
        self.baseline = tuple(eos if i in set(self.free) else t for i, t in enumerate(self.given))
        self.continuations: tuple[tuple[int, ...], ...] = (example.input_ids[count:],)
        if example.option_ids:
            self.continuations = example.option_ids
        size = run.recipe.training.per_device_eval_batch_size
        self.batch = max(1, size // len(self.continuations))
        self.offsets = self._calibration()
        self.choice = 0
        self.quantity, self.target = "log-likelihood of the answer", example.target
        if example.options:
            with torch.no_grad():
                scores = self.scores(self.embed(self.given))[0]
            self.choice = int(scores.argmax())
            self.target = example.options[self.choice]
            self.quantity = f"log-odds of the chosen option {self.target!r}"

    def __call__(self, embeddings: Tensor) -> Tensor:
        """f: embeddings [n, P, d] -> [n] in fp32 at least."""
        scores = self.scores(embeddings)  # [n, options]
        if not self.example.options:
            return scores[:, 0]
        others = [place for place in range(scores.shape[1]) if place != self.choice]
        return scores[:, self.choice] - scores[:, others].logsumexp(1)

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """[1, P, d] the embeddings of tokens."""
        with torch.no_grad():
            ids = torch.tensor([list(tokens)], device=self.run.device)
            found: Tensor = self.embedding(ids)
        return found

    def scores(self, embeddings: Tensor) -> Tensor:
        """Log-likelihoods of the continuations, or of the options by a head: [n, options]."""
        model, n = self.run.model, len(embeddings)
        rows = [self._row(continuation) for continuation in self.continuations] * n
        batch = collate(
            rows,
            [self.task.index] * len(rows),
            len(self.run.tasks),
            flat=model.flat,
            device=self.run.device,
        )
        was_training = model.training
        model.eval()
        handle = self.embedding.register_forward_hook(self._placing(embeddings, rows))
        try:
            outputs = model(batch)
        finally:
            handle.remove()
            model.routing.leave()
            model.train(was_training)
        if self.example.head:
            return torch.cat(outputs.head_logits).log_softmax(-1)
        losses: Tensor = outputs.token_losses
        sums = losses.new_zeros(len(rows)).index_add(0, batch.label_rows, losses)
        return -sums.view(n, -1) - self.offsets.to(sums)

    def _row(self, continuation: tuple[int, ...]) -> Example:
        """The prompt and what may follow; only that counts, or all of a row without a prompt."""
        example = self.example
        if example.head:
            return example
        labels = (IGNORED,) * len(self.given) + continuation
        if not example.prompt_length:
            labels = example.labels
        elif not example.option_ids:
            labels = (IGNORED,) * len(self.given) + example.labels[len(self.given) :]
        return replace(example, input_ids=self.given + continuation, labels=labels)

    def _placing(
        self, embeddings: Tensor, rows: Sequence[Example]
    ) -> Callable[[torch.nn.Module, Any, Tensor], Tensor]:
        """A hook that puts the given embeddings where the prompts stand in the batch."""
        lengths = [len(row.input_ids) for row in rows]
        widths = lengths if self.run.model.flat else [max(lengths)] * len(rows)
        starts = [sum(widths[:row]) for row in range(len(rows))]
        count = len(self.given)
        index = torch.tensor([start + i for start in starts for i in range(count)])
        options = len(self.continuations)

        def place(module: torch.nn.Module, args: Any, output: Tensor) -> Tensor:
            wide = embeddings.repeat_interleave(options, 0).flatten(0, 1)  # [n K P, d]
            flat = output.reshape(-1, output.shape[-1])
            return flat.index_copy(0, index.to(flat.device), wide.to(flat)).view_as(output)

        return place

    def _calibration(self) -> Tensor:
        """[K] what each option's score is compared with: its likelihood after another prompt."""
        from mtlcore.evaluation.predictions import sum_losses

        example = self.example
        if not example.calibration_ids or not example.option_ids:
            return torch.zeros(len(self.continuations), dtype=torch.float64)
        start = example.calibration_ids
        trials = [
            replace(example, input_ids=start + option, labels=(IGNORED,) * len(start) + option)
            for option in example.option_ids
        ]
        losses = sum_losses(self.run, self.task, trials)
        return -torch.tensor(losses, dtype=torch.float64)


# -- attributions ------------------------------------------------------------------------------


def attribute(
    function: Function,
    inputs: Tensor,
    baselines: Tensor,
    *,
    method: str = "integrated_gradients",
    n_steps: int | None = None,
    batch: int = 32,
) -> Attribution:
    """Scores of the P rows of `inputs` [1, P, d] for a function of them.

    Without `n_steps` the steps of an integral are doubled until it is complete.
    """
    require_method(method)
    library, take = captum(), METHODS[method]
    with torch.no_grad():
        value, baseline_value = (float(function(x)[0]) for x in (inputs, baselines))
    steps = n_steps or STEPS
    while True:
        parts = take(library, function, inputs, baselines, steps, batch)  # [P]
        found = Attribution(tuple(parts.tolist()), value, baseline_value, steps)
        exhausted = n_steps is not None or steps >= MAX_STEPS or method not in INTEGRALS
        if found.complete or exhausted:
            return found
        steps *= 2


def _integrated_gradients(
    library: Any, function: Function, inputs: Tensor, baselines: Tensor, steps: int, batch: int
) -> Tensor:
    found: Tensor = library.IntegratedGradients(function).attribute(
        inputs,
        baselines=baselines,
        n_steps=steps,
        method="gausslegendre",
        internal_batch_size=min(batch, steps),
    )
    return found[0].detach().double().sum(-1)


def _input_x_gradient(
    library: Any, function: Function, inputs: Tensor, baselines: Tensor, steps: int, batch: int
) -> Tensor:
    x = inputs.detach().clone().requires_grad_()
    gradient = torch.autograd.grad(function(x).sum(), x)[0]
    found = gradient * (inputs - baselines)
    return found[0].detach().double().sum(-1)


def _feature_ablation(
    library: Any, function: Function, inputs: Tensor, baselines: Tensor, steps: int, batch: int
) -> Tensor:
    tokens = torch.arange(inputs.shape[1], device=inputs.device)[None, :, None]
    with torch.no_grad():
        found: Tensor = library.FeatureAblation(function).attribute(
            inputs,
            baselines=baselines,
            feature_mask=tokens.expand_as(inputs),
            perturbations_per_eval=batch,
        )
    return found[0, :, 0].detach().double()  # the same number for all of a token's features


INTEGRALS = ("integrated_gradients",)
METHODS: Mapping[str, Callable[[Any, Function, Tensor, Tensor, int, int], Tensor]] = {
    "integrated_gradients": _integrated_gradients,
    "input_x_gradient": _input_x_gradient,
    "feature_ablation": _feature_ablation,
}
"""Name -> scores. Only the first is complete; the second takes one backward pass, the last one
forward pass per token (what f loses without it), and both are for comparison."""


def delete(question: Question, found: Attribution, draw: torch.Generator) -> Deletion | None:
    """The deletion test; None where so few tokens are free that any k would be the same."""
    free = question.free
    k = math.ceil(DELETED * len(free))
    if k >= len(free):
        return None
    ordered = sorted(free, key=lambda place: -found.scores[place])
    chosen = [ordered[:k]]
    for _ in range(DRAWS):
        order = torch.randperm(len(free), generator=draw).tolist()
        chosen.append([free[place] for place in order[:k]])
    inputs, baselines = question.embed(question.given), question.embed(question.baseline)
    values: list[float] = []
    for start in range(0, len(chosen), question.batch):
        part = chosen[start : start + question.batch]
        embeddings = inputs.repeat(len(part), 1, 1)
        for row, places in enumerate(part):
            embeddings[row, places] = baselines[0, places]
        with torch.no_grad():
            values += question(embeddings).tolist()
    drops = [found.value - value for value in values]
    return Deletion(k, drops[0], sum(drops[1:]) / DRAWS, DRAWS)
