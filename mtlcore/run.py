"""One run: the model, its tasks and its components, as the hooks receive them."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from pydantic import ValidationError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mtlcore import seeds
from mtlcore.data.fields import kind_of
from mtlcore.data.loader import Learned, TaskLoader
from mtlcore.data.readers import Table
from mtlcore.data.sources import Rows
from mtlcore.data.splits import SPLITS
from mtlcore.data.tasks import Task, load_tasks
from mtlcore.distributed import broadcast, is_main, join_processes, on_cpu_processes
from mtlcore.errors import MtlcoreError, RecipeError, UserError, did_you_mean, require_tasks
from mtlcore.evaluation import bootstrap
from mtlcore.evaluation.bootstrap import Resamples
from mtlcore.evaluation.predictions import (
    Answer,
    Prediction,
    answer,
    predict,
    write_predictions,
)
from mtlcore.evaluation.scores import Scores, TaskScore
from mtlcore.files import append_text, replace_text
from mtlcore.losses import Outputs
from mtlcore.model import export
from mtlcore.model.backbone import MultiTaskModel, cannot_load, load_backbone
from mtlcore.model.fingerprint import fingerprint
from mtlcore.model.heads import TaskFacts
from mtlcore.model.hub import require_reachable
from mtlcore.model.layout import SHARED_ONLY, Layout
from mtlcore.plugins import PluginManager
from mtlcore.recipe import GenerationRecipe, ModelRecipe, Recipe
from mtlcore.recipe_checks import SAFE_NAME
from mtlcore.recipe_components import check_components, make_components
from mtlcore.run_lock import RunLock
from mtlcore.start import frozen_tasks
from mtlcore.stop_signals import StopSignals
from mtlcore.versions import versions

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.components import (
        Aggregator,
        Auditor,
        Component,
        Evaluator,
        Finding,
        Sampler,
        Weighting,
    )
    from mtlcore.data.batches import Batch
    from mtlcore.data.example import Example
    from mtlcore.data.tasks import Split

RECIPE = "recipe.yaml"
"""The resolved recipe in a run's folder."""
ENVIRONMENT = "environment.json"
"""What the run depended on, in its folder: see `Run.environment`."""


class Run:
    """What one run holds. Hooks get it as `run`.

    With no `splits` the tasks come without rows, which are read when an evaluation asks for them.
    Without `plugins` they are those that the recipe and the environment ask for. `notes` are told
    before those on its rows.

    `recipe`, `folder`, `tasks` (in the order of the recipe), `model`, `tokenizer`, `device`,
    `plugins`, `components` by key, `step` (optimizer steps done), `rows_drawn` [T] (rows drawn of
    each task so far), `active` [T], `notes` (what the user was told).
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        splits: Sequence[str] = SPLITS,
        plugins: PluginManager | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.seed = recipe.training.seed
        self.step = 0
        self.notes: list[str] = []
        self.signals = StopSignals()
        self.lock = RunLock(folder)
        self.plugins = plugins or PluginManager.load(
            local=recipe.plugins.load, disable=recipe.plugins.disable
        )
        join_processes()
        self.accelerator = Accelerator(
            log_with=trackers(recipe.training.report_to) if splits else None,
            project_dir=str(folder),
            cpu=on_cpu_processes(),
        )
        self.device = self.accelerator.device
        if recipe.model.trust_remote_code:
            self.note(
                f"model.trust_remote_code: Python code that comes with {recipe.model.name_or_path} "
                "is run, with all your rights"
            )
        self.tokenizer = load_tokenizer(recipe)
        self.create_components()
        self.tasks: list[Task] = []
        self.learned: dict[str, Learned] = {}  # by task, of a run that was loaded
        self._load_tasks(splits, notes)
        self.stage = ""  # the name of the stage of now
        self.findings: list[Finding] = []  # of the last audit
        self.rows_drawn = [0] * len(self.tasks)
        self.active = [True] * len(self.tasks)  # trained in the stage of now, and not stopped
        self._load_model()
        self._describe_tasks()

    def _load_model(self) -> None:
        recipe = self.recipe
        layout = layout_of(recipe)
        backbone = load_backbone(recipe.model, self.device)
        self.base_fingerprint = fingerprint(backbone)
        self.model = MultiTaskModel(
            backbone,
            layout,
            recipe.lora,
            bottleneck=recipe.bottleneck,
            tasks=[TaskFacts.of(task, recipe) for task in self.tasks],
            keep_pooled=any(c.needs_pooled for c in self.components.values()),
            seed=self.seed,
        )
        broadcast(self.model.adapter_state().values())
        self._prepare_model()

    def create_components(self) -> None:
        """Make the components that the recipe names, and register their hooks in `plugins`."""
        made = make_components(self.recipe, self.plugins)
        if made.problems:
            raise RecipeError(made.problems)
        self.components: dict[str, Component] = made.by_key
        self.weighting: Weighting = made.weighting
        self.sampler: Sampler = made.of_kind("sampling")[0]
        self.auditors: list[Auditor] = made.of_kind("auditing")
        self.aggregator: Aggregator = made.of_kind("overall")[0]
        self.evaluators: dict[str, list[Evaluator]] = made.evaluators

    def _load_tasks(self, splits: Sequence[str], notes: Iterable[str] = ()) -> None:
        """Read the rows; a UserError comes before any note, `notes` before those on the rows."""
        for task in self.tasks:
            self.plugins.unregister(f"tasks.{task.name}.format")
        self.tasks = load_tasks(
            self.recipe, self.tokenizer, self.plugins, splits=splits, learned=self.learned
        )
        self._has_data = bool(splits)
        for task in self.tasks:
            self.plugins.register(task.format, f"tasks.{task.name}.format")
        for message in (*notes, *(note for task in self.tasks for note in task.notes)):
            self.note(message)

    def _describe_tasks(self) -> None:
        """Account for every row that was read."""
        for task in self.tasks if self._has_data else ():
            self.note(task.describe())

    def _prepare_model(self) -> None:
        if self.recipe.model.attn_implementation == "padded":
            self.model.flat_problem = "the recipe asks for padding"
        elif not self.model.try_flat():
            self.note(f"batches are padded: {self.model.flat_problem}")
        if self.model.whole_logits_problem:
            self.note(
                "token losses are taken from whole logits, which needs more memory: "
                f"{self.model.whole_logits_problem}"
            )
        if self.recipe.training.gradient_checkpointing:
            self.model.backbone.activation_checkpointing_enable({"use_reentrant": False})

    def take_learned(self, learned: dict[str, Learned], options: Mapping[str, list[str]]) -> None:
        """Take what a trained run took from its rows: for the formats, and each head's options."""
        self.learned = learned
        self._load_tasks(())
        for name, known in options.items():
            self.model.heads.take_options(self.task(name).index, tuple(known))

    # -- what components use ------------------------------------------------------------------

    def generator(self, step: int, *key: str) -> torch.Generator:
        """A generator that depends on seed, step and key alone: equal on all ranks."""
        return seeds.generator(self.seed, step, *key)

    def note(self, message: str) -> None:
        """Tell the user something, once; it is kept in `notes` and in the run's record."""
        if message not in self.notes:
            self.notes.append(message)
            self.accelerator.print(message)

    def task(self, name: str) -> Task:
        """The task of that name; an unknown one is a UserError."""
        by_name = {task.name: task for task in self.tasks}
        require_tasks([name], by_name)
        return by_name[name]

    def rows(self, task: str, split: str = "test") -> Split:
        """The rows of a task's split (of eval where there is no test split), read if need be."""
        if not self._has_data:
            self._load_tasks(SPLITS)
            self._describe_tasks()
        return self._rows_of(self.task(task), split)

    def is_active(self, task: Task) -> bool:
        """Whether the task is trained now: it belongs to the stage and has not stopped."""
        return self.active[task.index]

    def autocast(self) -> AbstractContextManager[Any]:
        """The mixed precision of the recipe."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.training.bf16)

    @torch.no_grad()
    def evaluate_losses(self, batch: Batch) -> Tensor:
        """[T] mean loss of each task on a batch with the weights of now; NaN if it is absent."""
        was_training = self.model.training
        self.model.eval()
        with self.autocast():
            outputs: Outputs = self.model(batch)
        self.model.routing.leave()
        self.model.train(was_training)
        return outputs.loss_sums / torch.tensor(outputs.counts).to(outputs.loss_sums)

    # -- what users use -----------------------------------------------------------------------

    def evaluate(
        self,
        split: str = "test",
        tasks: Iterable[str] | None = None,
        *,
        outputs: bool = True,
        max_rows: int | None = None,
        save_as: str | None = None,
        resamples: Resamples = 0,
        progress: Callable[[int], object] = lambda rows: None,
    ) -> Scores:
        """Score the model on a split ("train", "eval" or "test") of all or some tasks.

        A task without a test split is scored on its eval split, and a note says so. With
        `outputs` False only losses are computed. `max_rows` takes a seeded subset of so many rows
        per task. With `save_as` predictions and scores are kept in that folder of the run's
        ``predictions/``. With `resamples` (a number, or "auto") the scores have bootstrap
        intervals. `progress` is told of rows that are answered: how many more.
        """
        bootstrap.require_resamples(resamples)
        if save_as is not None and not SAFE_NAME.fullmatch(save_as):
            raise UserError(
                f"save_as is the name of a folder inside the run's, found {save_as!r}",
                fix="use letters, digits, _ and -",
            )
        answers = self.predict(split, tasks, outputs=outputs, max_rows=max_rows, progress=progress)
        scores = {
            name: self._score(self.task(name), predictions, outputs)
            for name, predictions in answers.items()
        }
        found = Scores(split, scores, self.aggregator.aggregate)
        if resamples and outputs:
            found = bootstrap.with_intervals(
                found, self.evaluators, answers, resamples=resamples, seed=self.seed
            )
        if save_as is not None and is_main():
            self._keep(self.folder / "predictions" / save_as, found, answers)
        return found

    def predict(
        self,
        split: str = "test",
        tasks: Iterable[str] | None = None,
        *,
        outputs: bool = True,
        max_rows: int | None = None,
        progress: Callable[[int], object] = lambda rows: None,
    ) -> dict[str, list[Prediction]]:
        """The model's answers to a split, by task; the arguments are those of `evaluate`."""
        names = [task.name for task in self.tasks] if tasks is None else list(tasks)
        chosen = [self.task(name) for name in names]
        if not self._has_data:
            self._load_tasks(SPLITS)
            self._describe_tasks()
            chosen = [self.task(name) for name in names]
        if tasks is None:
            chosen = self.tasks_with_rows(split)
        answers: dict[str, list[Prediction]] = {}
        for task in chosen:
            rows = self._rows_of(task, split)
            if max_rows is not None and len(rows) > max_rows:
                draw = seeds.generator(self.seed, "eval rows", task.name)
                keep = torch.randperm(len(rows), generator=draw)[:max_rows].sort().values
                examples = [rows[int(i)] for i in keep]
            else:
                examples = list(rows)
            if outputs and self.evaluators[task.name]:
                self._require_answers(task, examples)
            answers[task.name] = predict(self, task, examples, outputs=outputs, progress=progress)
        return answers

    def predict_rows(self, task: str, rows: Rows | Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Answer new rows of a task, which have its columns but need no label or completion.

        They go through the task's format and template as its training rows do; the columns are
        those of its files. A row that cannot be asked is a UserError.
        """
        chosen = self.task(task)
        if not isinstance(rows, Rows):
            _require_objects(rows)
            table = Table([dict(row) for row in rows], None)
            rows = Rows("rows", "", (("rows", table),))
        loader = TaskLoader(self.recipe, task, self.tokenizer, self.plugins, self.learned.get(task))
        if self._has_data:
            loader.format = chosen.format
        elif loader.needs_train_rows:
            loader.load(("train",))
            loader.notes.clear()  # they are about the training
        questions = loader.questions(rows)
        for message in loader.notes:
            self.note(message)
        return answer(self, chosen, questions)

    def _keep(self, folder: Path, scores: Scores, answers: dict[str, list[Prediction]]) -> None:
        for name, predictions in answers.items():
            write_predictions(folder / f"{name}.jsonl", predictions)
        details = {
            name: {e.name: e.details() for e in self.evaluators[name] if e.details()}
            for name in answers
        }
        write_json(
            folder / "scores.json",
            {
                **scores.to_json(),
                "step": self.step,
                "details": {name: found for name, found in details.items() if found},
            },
        )

    def audit(
        self,
        split: str = "eval",
        auditors: Sequence[Auditor] | None = None,
        *,
        max_rows: int | None = None,
    ) -> list[Finding]:
        """Let auditors (default: all that answer the hook) look at the predictions of a split.

        What they find is returned and added to the run's audits.jsonl.
        """
        answers = self.predict(split, max_rows=max_rows)
        hook = self.plugins.hook.mtlcore_audit
        if auditors is not None:
            hook = self.plugins.only("mtlcore_audit", auditors)
        answered = hook(run=self, predictions=answers)
        self.findings = [finding for some in answered for finding in some or ()]
        if is_main():
            line = {
                "step": self.step,
                "split": split,
                "findings": [finding.to_json() for finding in self.findings],
            }
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(line, ensure_ascii=False, default=str)
            append_text(self.folder / "audits.jsonl", text + "\n")
        return self.findings

    def tasks_with_rows(self, split: str) -> list[Task]:
        """Those that can be scored on a split; the others are told, and none is an error."""
        splits = (split, "eval") if split == "test" else (split,)
        found = [t for t in self.tasks if any(getattr(t, name) is not None for name in splits)]
        if not found:
            self._rows_of(self.tasks[0], split)
        for task in self.tasks:
            if task not in found:
                self.note(f"task {task.name!r} has no {split} rows and is not scored on them")
        return found

    def _rows_of(self, task: Task, split: str) -> Split:
        rows: Split | None = getattr(task, split)
        if rows is None and split == "test":
            self.note(f"task {task.name!r} has no test split: its eval split is scored")
            rows = task.eval
        if rows is None:
            raise UserError(
                f"task {task.name!r} has no {split} rows",
                where=f"tasks.{task.name}.{split}",
                fix=f"name a file for {split}, or a share in tasks.{task.name}.split",
            )
        return rows

    def check(self) -> None:
        """Refuse what the components cannot do with these tasks, before any training."""
        errors, warnings = check_components(
            self.plugins, self.components, self.recipe, self.tasks, self.model.layout
        )
        if errors:
            raise RecipeError(errors)
        for warning in warnings:
            self.note(f"warning: {warning}")

    def _require_answers(self, task: Task, examples: Sequence[Example]) -> None:
        """Refuse metrics on rows that nothing can be answered to, instead of scoring them 0."""
        if not any(example.options or example.prompt_length for example in examples):
            raise UserError(
                f"task {task.name!r} has metrics, but its rows have no prompt to answer",
                where=f"tasks.{task.name}.metrics",
                fix="remove the metrics (the loss is always reported), or use another format",
            )

    def _score(self, task: Task, predictions: list[Prediction], outputs: bool) -> TaskScore:
        metrics: dict[str, float] = {}
        if outputs:
            for result in reversed(
                self.plugins.hook.mtlcore_evaluate(run=self, task=task, predictions=predictions)
            ):
                metrics |= result or {}
        evaluators = self.evaluators[task.name]
        first = evaluators[0] if evaluators and outputs else None
        if first is not None and first.name not in metrics:
            raise MtlcoreError(f"the metric {first.name!r} gave no number of that name")
        if first is not None:  # the primary metric stands first
            metrics = {first.name: metrics[first.name], **metrics}
        return TaskScore(
            loss=sum(p.loss_sum for p in predictions) / sum(p.tokens for p in predictions),
            rows=len(predictions),
            metrics=metrics,
            primary=first.name if first else None,
            value=first.normalized(metrics[first.name]) if first else None,
            auxiliary=task.recipe.role == "auxiliary",
        )

    def generate(
        self,
        prompts: Sequence[str],
        tasks: str | Sequence[str | None] | None = None,
        **options: Any,
    ) -> list[str]:
        """Continue prompts, of one task or of several in one mixed batch.

        `tasks`: one name for all prompts, a name (or None) for each, or None: then the shared
        adapter alone answers, and a note says so. The prompts are what the model reads: formats
        and templates are not applied. Options are those of `generation` in the recipe.
        """
        names = [tasks] * len(prompts) if tasks is None or isinstance(tasks, str) else list(tasks)
        if len(names) != len(prompts):
            raise UserError(
                f"{len(prompts)} prompts but {len(names)} tasks",
                fix="give one task for all prompts, or one for each",
            )
        if not prompts:
            return []
        if None in names:
            if not any(adapter.shared for adapter in self.model.layout.adapters):
                raise UserError(
                    "this model has no shared adapter to answer without a task",
                    fix=f"name a task: {', '.join(task.name for task in self.tasks)}",
                )
            self.note("prompts without a task are answered by the shared adapter alone")
        indices = [SHARED_ONLY if name is None else self.task(name).index for name in names]
        recipes = {self.tasks[i].recipe.generation for i in indices if i != SHARED_ONLY}
        base = recipes.pop() if len(recipes) == 1 else GenerationRecipe()
        merged = _generation_options(base, options)
        ids = [self.tokenizer(prompt).input_ids for prompt in prompts]
        for place, (prompt, tokens) in enumerate(zip(prompts, ids, strict=True)):
            if not tokens:
                raise UserError(
                    f"prompt {place} has no tokens: {prompt!r}", fix="give it some text"
                )
        ids = [i[:-1] if len(i) > 1 and i[-1] == self.tokenizer.eos_token_id else i for i in ids]
        return self.continue_prompts(ids, indices, merged)

    def continue_prompts(
        self, prompts: Sequence[Sequence[int]], tasks: Sequence[int], options: GenerationRecipe
    ) -> list[str]:
        """Generate from token ids; the texts come back without white space at the ends."""
        eos = self.tokenizer.eos_token_id
        pad = self.tokenizer.pad_token_id
        with self.autocast():
            outputs = self.model.generate(
                prompts,
                tasks,
                options,
                pad_token_id=pad if pad is not None else eos,
                eos_token_id=eos,
            )
        return [
            text.strip() for text in self.tokenizer.batch_decode(outputs, skip_special_tokens=True)
        ]

    def export(
        self,
        folder: str | Path,
        *,
        task: str | None = None,
        shared: bool = False,
        merged: bool = False,
    ) -> Path:
        """Write a stock PEFT adapter (or a merged model) that needs no mtlcore to load.

        For one task: its shared, group and own adapters as one LoRA of the summed rank. `shared`:
        the shared adapter alone. `merged`: a full model with the task's adapters (or, without a
        task, the shared one) added into its weights.
        """
        if task is None and not shared and not merged:
            raise UserError(
                "nothing chosen to export", fix="give a task, shared=True or merged=True"
            )
        index = SHARED_ONLY if task is None else self.task(task).index
        if merged:
            return export.merged_model(self.model, index, Path(folder), self.tokenizer)
        return export.peft_adapter(self.model, index, Path(folder), self.recipe.model.name_or_path)

    # -- the record ---------------------------------------------------------------------------

    def environment(self) -> dict[str, Any]:
        """Versions, device, active plugins and data fingerprints: what a run depended on."""
        return {
            "versions": versions(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "base_model": self.base_fingerprint,
            "plugins": self.plugins.active(),
            "data": {task.name: task.fingerprints() for task in self.tasks},
            "flat_batches": self.model.flat,
            "notes": self.notes,
        }


def _require_objects(rows: Sequence[Any]) -> None:
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(
                f"row {number} must be an object of columns, found {kind_of(row)}",
                fix="give a list of rows, each like {'text': 'a good film'}",
            )


def trackers(names: Sequence[str]) -> list[str] | None:
    """The names of `report_to`; one that is unknown or not installed is a UserError.

    accelerate itself leaves out a tracker whose package is missing, and says nothing.
    """
    known = {tracker.value for tracker in LoggerType} - {"all"}
    available = {tracker.value for tracker in get_available_trackers()}
    for name in names:
        if name not in available:
            raise UserError(
                f"the tracker {name!r} is " + ("not installed" if name in known else "unknown"),
                where="training.report_to",
                fix=f"pip install 'mtlcore[{name}]', or the package {name}"
                if name in known
                else did_you_mean(name, known),
            )
    return list(names) or None


def layout_of(recipe: Recipe) -> Layout:
    """The adapters of a recipe."""
    return Layout.build(
        list(recipe.tasks),
        recipe.lora,
        recipe.sharing,
        bottleneck=recipe.bottleneck,
        heads=[name for name, task in recipe.tasks.items() if task.head is not None],
        frozen_tasks=frozen_tasks(recipe),
    )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all, its folder made when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def _generation_options(base: GenerationRecipe, options: Mapping[str, Any]) -> GenerationRecipe:
    for name in options:
        if name not in GenerationRecipe.model_fields:
            raise UserError(
                f"generation has no option {name!r}",
                fix=did_you_mean(name, GenerationRecipe.model_fields),
            )
    try:
        return GenerationRecipe.model_validate({**base.model_dump(), **options})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UserError(
            f"generation.{name}: {first['msg']}, found {first['input']!r}",
            fix="see generation in docs/recipe.md",
        ) from None


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model of a recipe."""
    return tokenizer_of(recipe.model)


def tokenizer_of(model: ModelRecipe) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a model; UserError if it cannot be loaded."""
    require_config(model)
    return read_tokenizer(model)


def require_config(model: ModelRecipe) -> None:
    """Refuse a folder that holds no model."""
    folder = Path(model.name_or_path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no model: config.json is missing",
            where="model.name_or_path",
            fix="give a folder made by save_pretrained (of model and tokenizer)",
        )


def read_tokenizer(model: ModelRecipe) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name, whatever else is there."""
    if not Path(model.name_or_path).exists():
        require_reachable(model.name_or_path, model.revision)
    try:
        return AutoTokenizer.from_pretrained(
            model.name_or_path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise cannot_load("the tokenizer of", model, error) from error
