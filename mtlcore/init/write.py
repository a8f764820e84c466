"""Write a recipe for files of rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mtlcore.errors import Problem, RecipeError, UserError, require_free
from mtlcore.files import replace_text
from mtlcore.init.files import tasks_of_files
from mtlcore.init.guess import Guesser, TaskGuess
from mtlcore.init.text import Plan, recipe_text
from mtlcore.recipe_paths import LOCAL_STARTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
"""For the tokenizer that stands in for one which is not at hand."""


def init(
    files: Sequence[str | Path],
    *,
    model: str | None = None,
    out: str | Path = "recipe.yaml",
    force: bool = False,
) -> list[TaskGuess]:
    """Guess the tasks of files (or folders of them), and write a commented recipe for them.

    A task that no format reads is written as a comment with the reason. UserError if a file cannot
    be read, if no task can be guessed, or if `out` exists and `force` is not given.
    """
    from mtlcore.plugins import PluginManager

    path = Path(out)
    require_free(path, force)
    problems: list[Problem] = []
    tasks = tasks_of_files([Path(file) for file in files], problems)
    own = model is not None and Path(model).is_dir()
    if model is not None and not own and model.startswith(LOCAL_STARTS):
        raise UserError(
            f"there is no folder {model}", where="--model", fix="give the model's folder"
        )
    tokenizer = _tokenizer(model if own else None)
    guesser = Guesser(PluginManager.load(), tokenizer)
    guesses = []
    for task in tasks:
        try:
            guesses.append(guesser.task(task))
        except UserError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    if not any(guess.best for guess in guesses):
        raise RecipeError(_problem(guess) for guess in guesses)
    plan = Plan(path, model or MODEL, model is not None, guesses, own)
    text = recipe_text(plan)
    path.parent.mkdir(parents=True, exist_ok=True)
    if force and path.is_file():
        replace_text(path.resolve(), text)  # through a link, as far as it is one
    else:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    return guesses


def _tokenizer(folder: str | None) -> PreTrainedTokenizerBase:
    """That of a model's folder; without one the small tokenizer of the package stands in."""
    from transformers import AutoTokenizer

    from mtlcore.demo.tiny import TOKENIZER
    from mtlcore.recipe import ModelRecipe
    from mtlcore.run import tokenizer_of

    if folder is not None:
        return tokenizer_of(ModelRecipe(name_or_path=folder))
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _problem(guess: TaskGuess) -> Problem:
    source = guess.files.sources["train"]
    return Problem(source.path, guess.problem, guess.fix)
