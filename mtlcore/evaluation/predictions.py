"""What the model answers on the rows of a split: one record per row, kept for every reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mtlcore.data.batches import collate
from mtlcore.data.example import IGNORED, head_row
from mtlcore.errors import UserError
from mtlcore.files import naming
from mtlcore.seeds import seed_of

if TYPE_CHECKING:
    from mtlcore.data.batches import Batch
    from mtlcore.data.example import Example
    from mtlcore.data.tasks import Task
    from mtlcore.losses import Outputs
    from mtlcore.run import Run


@dataclass(frozen=True)
class Prediction:
    """The model's answer to one row.

    `loss_sum` and `tokens`: negative log-likelihood of the target, summed over its tokens.
    With options: `scores` are their log-likelihoods (less those after the calibration prompt, if
    there is one), `choice` the best one's index, `label` the right one's, and `output` the chosen
    text. A head's scores are the options' log-probabilities, and `loss_sum` is that of one label.
    Else `output` was generated.
    """

    task: str
    row: int
    prompt: str
    target: str
    output: str
    loss_sum: float
    tokens: int
    label: int | None = None
    choice: int | None = None
    options: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


def predict(
    run: Run,
    task: Task,
    examples: Sequence[Example],
    *,
    outputs: bool = True,
    progress: Callable[[int], object] = lambda rows: None,
) -> list[Prediction]:
    """Answer every example of one task, in order.

    Losses come from one pass over the targets. With `outputs`, rows with options are answered by
    the likeliest option, other rows with a prompt by generation; `progress` is told of each row
    finished. The rows of a task with a head are answered by it.
    """
    if task.recipe.head is not None:
        return _predict_with_head(run, task, [head_row(e) for e in examples], outputs, progress)
    losses = sum_losses(run, task, examples)
    answers: list[dict[str, Any]] = [{"output": ""} for _ in examples]
    if outputs:
        optional = [i for i, example in enumerate(examples) if example.options]
        generated = [i for i, e in enumerate(examples) if not e.options and e.prompt_length]
        _choose(run, task, examples, optional, answers, progress)
        _generate(run, task, examples, generated, answers, progress)
    return _predictions(task, examples, losses, answers)


@dataclass(frozen=True)
class Answer:
    """The model's answer to a new row; `row` is its number, from 0.

    With options: `scores` as in `Prediction`, and `probabilities`, their softmax, by option.
    """

    task: str
    row: int
    output: str
    probabilities: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)


def answer(run: Run, task: Task, questions: Sequence[Example]) -> list[Answer]:
    """Answer new rows of one task, in order, as `predict` answers those that are scored."""
    if task.recipe.head is not None:
        found = [asdict(p) for p in predict(run, task, questions)]
    else:
        found = [{} for _ in questions]
        chosen = [i for i, question in enumerate(questions) if question.options]
        generated = [i for i, question in enumerate(questions) if not question.options]
        _choose(run, task, questions, chosen, found, lambda rows: None)
        _generate(run, task, questions, generated, found, lambda rows: None)
    answers = []
    for question, given in zip(questions, found, strict=True):
        scores = given.get("scores", ())
        shares = torch.tensor(scores, dtype=torch.float64).softmax(-1).tolist()
        answers.append(
            Answer(
                task.name,
                question.row,
                given["output"],
                dict(zip(question.options, shares, strict=True)),
                dict(zip(question.options, scores, strict=True)),
            )
        )
    return answers


def _predictions(
    task: Task,
    examples: Sequence[Example],
    losses: Sequence[float],
    answers: Sequence[dict[str, Any]],
) -> list[Prediction]:
    return [
        Prediction(
            task=task.name,
            row=example.row,
            prompt=example.prompt,
            target=example.target,
            loss_sum=loss,
            tokens=example.label_count,
            label=example.label,
            options=example.options,
            fields=example.fields,
            **answer,
        )
        for example, answer, loss in zip(examples, answers, losses, strict=True)
    ]


def _predict_with_head(
    run: Run,
    task: Task,
    examples: Sequence[Example],
    outputs: bool,
    progress: Callable[[int], object],
) -> list[Prediction]:
    """One pass over the prompts gives both the losses and the answers."""
    known = run.model.heads.facts[task.index].options or ()
    for example in examples:
        if example.options is not known and example.options != known:
            raise UserError(
                f"task {task.name!r}: its head was trained to choose between {', '.join(known)}; "
                f"row {example.row} has the options {', '.join(example.options)}",
                where=f"tasks.{task.name}.head",
                fix="give its format the labels that it was trained with, in their order",
            )
    losses = [0.0] * len(examples)
    answers: list[dict[str, Any]] = [{"output": ""} for _ in examples]
    for places, _, found in _passes(run, task, examples):
        scores = torch.cat([logits.double() for logits in found.head_logits]).log_softmax(-1)
        rows = zip(places, scores.tolist(), found.token_losses.tolist(), strict=True)
        for place, row, loss in rows:
            losses[place] = loss
            if outputs:
                choice = max(range(len(known)), key=row.__getitem__)
                text = examples[place].options[choice]
                answers[place] = {"output": text, "choice": choice, "scores": tuple(row)}
        progress(len(places) if outputs else 0)
    return _predictions(task, examples, losses, answers)


def sum_losses(run: Run, task: Task, examples: Sequence[Example]) -> list[float]:
    """The summed loss of each example's labels, in order."""
    found = [0.0] * len(examples)
    for places, batch, outputs in _passes(run, task, examples):
        losses = outputs.token_losses
        sums = losses.new_zeros(len(places)).index_add(0, batch.label_rows, losses)
        for place, loss in zip(places, sums.tolist(), strict=True):
            found[place] = loss
    return found


def _passes(
    run: Run, task: Task, examples: Sequence[Example]
) -> Iterator[tuple[list[int], Batch, Outputs]]:
    """Forward passes over all examples: the places of each one's rows, and what it gives."""
    size = run.recipe.training.per_device_eval_batch_size
    # Rows of like length together: no matter for flat batches, less padding in the others.
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    was_training = run.model.training
    run.model.eval()
    try:
        for start in range(0, len(order), size):
            run.signals.raise_if_asked()
            places = order[start : start + size]
            batch = collate(
                [examples[i] for i in places],
                [task.index] * len(places),
                len(run.tasks),
                flat=run.model.flat,
                device=run.device,
            )
            with torch.no_grad(), run.autocast():
                outputs = run.model(batch)
            yield places, batch, outputs
    finally:
        run.model.routing.leave()
        run.model.train(was_training)


def _choose(
    run: Run,
    task: Task,
    examples: Sequence[Example],
    places: Sequence[int],
    answers: list[dict[str, Any]],
    progress: Callable[[int], object],
) -> None:
    trials: list[Example] = []
    for place in places:
        example = examples[place]
        given = example.input_ids[: example.prompt_length]
        for prompt in (given, example.calibration_ids):
            if prompt:
                trials += [_trial(example, prompt, option) for option in example.option_ids]
    losses = iter(sum_losses(run, task, trials))
    for place in places:
        options = examples[place].options
        scores = [-next(losses) for _ in options]
        if examples[place].calibration_ids:
            scores = [score + next(losses) for score in scores]
        choice = max(range(len(scores)), key=scores.__getitem__)
        answers[place] = {"output": options[choice], "choice": choice, "scores": tuple(scores)}
    progress(len(places))


def _trial(example: Example, prompt: tuple[int, ...], option: tuple[int, ...]) -> Example:
    """A row whose loss sum is minus the log-likelihood of an option after a prompt."""
    return replace(example, input_ids=prompt + option, labels=(IGNORED,) * len(prompt) + option)


def _generate(
    run: Run,
    task: Task,
    examples: Sequence[Example],
    places: Sequence[int],
    answers: list[dict[str, Any]],
    progress: Callable[[int], object],
) -> None:
    size = run.recipe.training.per_device_eval_batch_size
    order = sorted(places, key=lambda i: examples[i].prompt_length)
    for start in range(0, len(order), size):
        run.signals.raise_if_asked()
        chunk = order[start : start + size]
        prompts = [examples[i].input_ids[: examples[i].prompt_length] for i in chunk]
        # Sampled answers depend on the seed and the place alone, not on what ran before.
        torch.manual_seed(seed_of(run.seed, "generate", task.name, start))
        outputs = run.continue_prompts(prompts, [task.index] * len(chunk), task.recipe.generation)
        for place, output in zip(chunk, outputs, strict=True):
            answers[place] = {"output": output}
        progress(len(chunk))


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("w", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(json.dumps(asdict(prediction), ensure_ascii=False, default=str) + "\n")
