"""Everything that is wrong with a recipe, its plugins, its model and its rows, at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mtlcore.data.check_report import CheckReport
from mtlcore.data.checks import Looked, look_at_tasks
from mtlcore.errors import MtlcoreError, Problem, UserError, nearest, require_tasks
from mtlcore.plugins import PluginManager
from mtlcore.preflight.records import readable
from mtlcore.recipe_components import Named, named_components
from mtlcore.recipe_file import ReadRest, in_file_order, key_path, read_rest
from mtlcore.recipe_rest import LENIENT
from mtlcore.run_folder import require_no_run, require_writable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mtlcore.data.task_checks import Progress
    from mtlcore.model.backbone import MultiTaskModel
    from mtlcore.recipe import Recipe


def check_recipe(
    recipe: str | Path,
    overrides: Iterable[str] = (),
    *,
    tasks: Sequence[str] | None = None,
    columns: Sequence[str] = (),
    progress: Progress | None = None,
) -> CheckReport:
    """Look at all that a run would read, and say what it would take; loads no weights.

    `columns` name groups of people to count. Keys of the recipe that are wrong are taken out, and
    the rest is looked at; what follows from them is not told again. Raises RecipeError only if
    the file cannot be read at all; everything else is in the report, in the order of the file.
    """
    read = read_rest(recipe, overrides)
    preflight = _Preflight(read, progress or (lambda what: None))
    return preflight.run(tasks, columns)


class _Preflight:
    """One check: `report` has what was found so far."""

    def __init__(self, read: ReadRest, progress: Progress) -> None:
        self.read = read
        self.recipe: Recipe = read.loaded.recipe
        self.progress = progress
        self.report = CheckReport()
        self.backbone: PreTrainedModel | None = None
        self.unknown: set[str] = set()
        """Keys of components that a plugin which could not be loaded may have."""

    def run(self, tasks: Sequence[str] | None, columns: Sequence[str]) -> CheckReport:
        """The whole report."""
        if not self.read.rest.is_spoiled(("tasks",)):
            require_tasks(tasks or (), self.recipe.tasks, "--task")
        self._look_at_folder()
        plugins = self._plugins()
        self.progress(self._source_of_tokenizer())
        tokenizer = self._tokenizer()
        looked = self._look_at_tasks(plugins, tokenizer, tasks, columns)
        self.progress("looking at the model")
        model = self._model(looked)
        if model is not None:
            self._plan(looked, model)
        return self._finished()

    def _look_at_folder(self) -> None:
        """Whether the run's folder can be made, and is free."""
        if self.read.rest.is_spoiled(("training", "output_dir")):
            return
        folder = self.read.loaded.output_dir
        self.report.collect(require_writable, folder)
        try:
            require_no_run(folder, ": `mtlcore train` will refuse it")
        except UserError as error:
            self.report.warnings += error.problems

    def _plugins(self) -> PluginManager:
        """What can be loaded of the plugins."""
        report, chosen = self.report, self.recipe.plugins
        manager = PluginManager()
        told = len(report.errors)
        report.collect(manager.discover, local=chosen.load, disable=chosen.disable)
        if len(report.errors) > told:  # third-party code is forbidden here
            manager.discover(disable=chosen.disable)
        report.errors += [fault.problem for fault in manager.faults()]
        for broken in manager.broken:
            if not manager.is_fatal(broken):
                report.warnings.append(Problem("", str(broken), "see `mtlcore plugins doctor`"))
        for name, fix in manager.unmatched.items():
            where = f"plugins.disable[{chosen.disable.index(name)}]"
            report.warnings.append(Problem(where, f"no plugin is called {name!r}", fix))
        try:
            manager.check_pending()
        except MtlcoreError as error:
            report.errors.append(Problem("plugins", str(error)))
        if len(report.errors) > told or any(
            path[0] == "plugins" for path in self.read.rest.spoiled
        ):
            known = list(manager.components())
            self.unknown = {
                key
                for key, (kind, spec, _) in self._named().items()
                if not nearest(spec.name, [name for other, name in known if other == kind])
            }
        return manager

    def _named(self) -> dict[str, Named]:
        """Every component of the recipe, formats too."""
        formats = {
            f"tasks.{name}.format": Named("format", task.format, name)
            for name, task in self.recipe.tasks.items()
        }
        return named_components(self.recipe) | formats

    def _source_of_tokenizer(self) -> str:
        """What is about to be read: the hub may take its time."""
        name = self.recipe.model.name_or_path
        if Path(name).is_dir() or self.read.rest.is_spoiled(("model", "name_or_path")):
            return "reading the tokenizer"
        return f"no folder {name!r} is here: asking the hub for it, or its cache"

    def _tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, and the base model on the way; None if there is none."""
        from mtlcore.run import read_tokenizer

        if self.read.rest.is_spoiled(("model", "name_or_path")):
            return None
        is_folder = Path(self.recipe.model.name_or_path).is_dir()
        if is_folder:
            self._read_base()
        try:
            tokenizer = read_tokenizer(self.recipe.model)
        except UserError as error:
            if not is_folder or self.backbone is not None:  # else the folder is no model at all
                self.report.errors += error.problems
            return None
        if not is_folder:
            self._read_base()
        return tokenizer

    def _read_base(self) -> None:
        from mtlcore.preflight.model import check_base

        try:
            self.backbone = check_base(self.recipe, self.report)
        except Exception as error:  # code of an architecture that cannot do without its weights
            self._not_looked_at("the model", error)

    def _look_at_tasks(
        self,
        plugins: PluginManager,
        tokenizer: PreTrainedTokenizerBase | None,
        tasks: Sequence[str] | None,
        columns: Sequence[str],
    ) -> Looked:
        readable = self.read.rest.readable_tasks()
        if tasks is not None or len(readable) < len(self.recipe.tasks):
            tasks = [name for name in readable if tasks is None or name in tasks]
        recipe = self.recipe if tokenizer is not None else _of_any_length(self.recipe)
        looked = look_at_tasks(
            recipe,
            tokenizer or stand_in_tokenizer(),
            plugins,
            self.report,
            tasks=tasks,
            columns=columns,
            progress=self.progress,
            ask_components=not self.read.rest.is_spoiled(("tasks",)),
        )
        if tokenizer is None:
            self.report.notes.append(
                "rows were read with another tokenizer, that of the model being unknown: their "
                "lengths were not looked at"
            )
            for check in self.report.tasks.values():
                for split in check.splits.values():
                    split.tokens, split.labelled_tokens = None, 0
        return looked

    def _model(self, looked: Looked) -> MultiTaskModel | None:
        """The model with its adapters; None if it cannot be made."""
        from mtlcore.preflight.model import describe, with_adapters

        if self.backbone is None or looked.layout is None:
            return None
        try:
            model = with_adapters(
                self.backbone, self.recipe, looked.layout, looked.tasks, self.report
            )
        except Exception as error:
            self._not_looked_at("the model", error)
            return None
        heads = looked.layout.family("head")
        if model is not None and self.read.is_whole and not (heads and self._misses(looked)):
            self.report.model = describe(model, self.recipe)
        return model

    def _misses(self, looked: Looked) -> bool:
        return len(looked.tasks) < len(self.recipe.tasks)

    def _plan(self, looked: Looked, model: MultiTaskModel) -> None:
        """Estimate what the run would take, where all that it depends on is known."""
        from mtlcore.preflight.estimate import make_plan

        if not self.read.is_whole or looked.components.problems or self._misses(looked):
            wrong = not self.read.is_whole or self.report.errors
            self.report.notes.append(
                "steps, memory and disk are not estimated, because of the errors"
                if wrong
                else "steps, memory and disk are estimated when all tasks are looked at"
            )
            return
        folder = self.read.loaded.output_dir
        try:
            plan = make_plan(model, self.recipe, looked, folder)
        except UserError as error:  # of a sampler whose shares are none
            self.report.errors += error.problems
            return
        except Exception as error:  # of a sampler that asks for what only a run has
            self._not_looked_at("steps, memory and disk", error)
            return
        self.report.plan = plan
        can_be_made = all(p.where != "training.output_dir" for p in self.report.errors)
        if can_be_made and plan.disk.free < plan.disk.needed:
            self.report.warnings.append(
                Problem(
                    "training.output_dir",
                    f"the checkpoints need about {readable(plan.disk.needed)}, and "
                    f"{readable(plan.disk.free)} are free there",
                    "free some, or lower training.save_total_limit",
                )
            )

    def _not_looked_at(self, what: str, error: Exception) -> None:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        self.report.notes.append(f"{what}: not looked at, {type(error).__name__}: {said}")

    def _finished(self) -> CheckReport:
        """Each problem once, with its place, in the order of the file."""
        read, report = self.read, self.report
        errors = list(map(read.loaded.placed, self._news(report.errors)))
        report.errors = [*read.broken, *in_file_order([*read.keys, *errors])]
        report.warnings = in_file_order(map(read.loaded.placed, self._news(report.warnings)))
        report.notes[:0] = read.loaded.notes
        return report

    def _news(self, problems: Iterable[Problem]) -> Iterator[Problem]:
        """Without what follows from keys and plugins that were told to be wrong."""
        for problem in dict.fromkeys(problems):
            path = key_path(problem.where)
            follows = path is not None and self.read.rest.is_spoiled(path)
            if not follows and problem.where not in self.unknown:
                yield problem


def stand_in_tokenizer() -> PreTrainedTokenizerBase:
    """One that reads any text, for a model whose own cannot be had."""
    from transformers import AutoTokenizer

    from mtlcore.demo.tiny import TOKENIZER

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.content }}{{ eos_token }}\n{% endfor %}"
    )
    return tokenizer


def _of_any_length(recipe: Recipe) -> Recipe:
    training = recipe.training.model_copy(update={"max_length": LENIENT["max_length"]})
    return recipe.model_copy(update={"training": training})
