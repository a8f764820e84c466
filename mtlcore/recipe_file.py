"""Read and write recipe files.

    loaded = read_recipe("recipe.yaml", overrides=("training.learning_rate=1e-4",))
    loaded.recipe, loaded.notes

Defaults < files named by `extends` < the file < `key=value` overrides. All problems are collected
and raised together, each with file, line, key and fix; `read_rest` goes on with what is right.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mtlcore.errors import Problem, RecipeError, UserError, did_you_mean
from mtlcore.recipe import (
    ComponentSpec,
    HeadRecipe,
    Recipe,
    Section,
    SourceRecipe,
    StartRecipe,
    class_at,
)
from mtlcore.recipe_aliases import Translator, spread_over_tasks
from mtlcore.recipe_checks import FieldProblem, KeyPath, dotted
from mtlcore.recipe_paths import resolve_paths
from mtlcore.recipe_rest import Rest, rest_of
from mtlcore.recipe_validate import validate
from mtlcore.recipe_yaml import (
    Document,
    Place,
    UnreadableError,
    other_recipes,
    parse_value,
    read_document,
)

# values that may be written short: `pcgrad` is {name: pcgrad}, `a.jsonl` is {path: a.jsonl}
SHORT_FORMS: dict[Any, str] = {
    ComponentSpec: "name",
    SourceRecipe: "path",
    HeadRecipe: "name",
    StartRecipe: "run",
}
COMMAND_LINE = "command line"
MOST_FILES = 100
KEY = re.compile(r"[\w-]+(\.[\w-]+|\[\d+\])*")
"""`tasks.reviews.metrics[0]`."""


def key_path(where: str) -> KeyPath | None:
    """`tasks.reviews.metrics[0]` -> its parts; None for a text that is no key of a recipe."""
    if not KEY.fullmatch(where):
        return None
    parts = re.findall(r"\[(\d+)\]|([\w-]+)", where)
    path: KeyPath = tuple(name or int(index) for index, name in parts)
    return path if path[0] in Recipe.model_fields else None


def in_file_order(found: Iterable[tuple[Place | None, Problem]]) -> list[Problem]:
    """Problems by file, then by line; what has no place comes last."""
    pairs = list(found)
    files = dict.fromkeys(place.file for place, _ in pairs if place is not None)
    order = {name: n for n, name in enumerate(files)}

    def position(pair: tuple[Place | None, Problem]) -> tuple[int, int]:
        place = pair[0]
        return (len(order), 0) if place is None else (order[place.file], place.line or 0)

    return [problem for _, problem in sorted(pairs, key=position)]


@dataclass
class LoadedRecipe:
    """A recipe that was read, with what its reader has to say."""

    recipe: Recipe
    notes: list[str]
    path: Path
    sources: list[Path]  # all files that it was made of, the last one wins
    document: Document  # with the place of every key

    @property
    def output_dir(self) -> Path:
        """The run folder: training.output_dir, or runs/<name of the recipe file>."""
        return Path(self.recipe.training.output_dir or Path("runs") / self.path.stem)

    def located(self, problem: Problem) -> Problem:
        """The problem with file and line, if `where` is a key of the recipe."""
        path = key_path(problem.where)
        return problem if path is None else replace(problem, where=self.document.where(path))

    def placed(self, problem: Problem) -> tuple[Place | None, Problem]:
        """The located problem with its place, for `in_file_order`."""
        path = key_path(problem.where)
        return None if path is None else self.document.place(path), self.located(problem)

    @contextmanager
    def locating_errors(self) -> Iterator[None]:
        """Give the errors raised within the file and line of their keys."""
        try:
            yield
        except UserError as error:
            error.set_problems(map(self.located, error.problems))
            raise


def read_recipe(
    path: str | os.PathLike[str], overrides: Iterable[str] = (), *, check_files: bool = True
) -> LoadedRecipe:
    """Read a recipe file; raises RecipeError with every problem at once.

    `check_files=False` lets data files be missing: a finished run may outlive its data.
    """
    reading = _Reading()
    file = Path(path)
    document = reading.whole(file, overrides)
    recipe = reading.finish(document, check_files=check_files)
    return LoadedRecipe(recipe, reading.notes, file, reading.sources, document)


@dataclass
class ReadRest:
    """What `read_rest` could read, and what is wrong: with files as a whole, and with keys."""

    loaded: LoadedRecipe
    rest: Rest
    broken: list[Problem]
    keys: list[tuple[Place | None, Problem]]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong, so that the recipe is the one that was meant."""
        return not self.broken and not self.keys


def read_rest(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> ReadRest:
    """Read a recipe file as far as it is right.

    Raises RecipeError only if nothing can be read: no such file, no YAML, no mapping.
    """
    reading = _Reading()
    file = Path(path)
    document = reading.whole(file, overrides)
    recipe = reading.judge(document)
    rest = Rest(recipe) if recipe else rest_of(document.data, reading.wrong)
    loaded = LoadedRecipe(rest.recipe, reading.notes, file, reading.sources, document)
    return ReadRest(loaded, rest, reading.broken, [*reading.keys])


def recipe_from_mapping(
    data: Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    over: Iterable[str | os.PathLike[str]] = (),
) -> LoadedRecipe:
    """Make a recipe of a dict, as `read_recipe` makes one of a file; `over` are files below it."""
    reading = _Reading()
    here = Path.cwd()
    above = Document(dict(_copied(data)), {(): Place("recipe", None, (here,), "")})
    reading.translate(above)
    document = Document({}, {(): above.places[()]})
    for file in over:
        if (below := reading.file(Path(file), os.fspath(file))) is not None:
            document = merge(document, below)
    document = merge(document, above)
    for override in _whole_parts_first(overrides):
        document = reading.override(document, override, here)
    recipe = reading.finish(document)
    return LoadedRecipe(recipe, reading.notes, Path("recipe.yaml"), [], document)


def read_part(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The keys of a file that holds a part of a recipe, unchecked."""
    try:
        return read_document(Path(path), os.fspath(path)).data
    except UnreadableError as error:
        raise RecipeError([error.problem]) from None


def write_recipe(recipe: Recipe, path: str | os.PathLike[str]) -> None:
    """Write every value of `recipe` as YAML; reading it gives an equal recipe."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 100
    with Path(path).open("w", encoding="utf-8") as stream:
        yaml.dump(_plain(recipe), stream)


def _plain(section: Section) -> Any:
    """The section as YAML data, without the keys that are unset."""
    if isinstance(section, ComponentSpec | SourceRecipe):
        return section.model_dump(mode="json")
    fields = type(section).model_fields
    values = {name: getattr(section, name) for name in fields}
    return {
        name: _plain_value(value)
        for name, value in values.items()
        if not (value is None and fields[name].default is None)
    }


def _plain_value(value: Any) -> Any:
    if isinstance(value, Section):
        return _plain(value)
    if isinstance(value, dict):
        return {key: _plain_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_value(item) for item in value]
    return value


@dataclass
class _Reading:
    """What piles up while the files of one recipe are read."""

    notes: list[str] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)
    broken: list[Problem] = field(default_factory=list)  # of files and overrides as a whole
    keys: list[tuple[Place, Problem]] = field(default_factory=list)  # of single keys
    wrong: list[KeyPath] = field(default_factory=list)  # keys whose values cannot be used
    lost_base: bool = False  # whether a file that the recipe extends could not be read
    fix: str = ""  # how to see what is wrong with rows and model too

    def whole(self, path: Path, overrides: Iterable[str]) -> Document:
        """A file with the overrides laid over it; RecipeError if it cannot be read at all."""
        document = self.file(path, os.fspath(path))
        if document is None:
            raise RecipeError(self.broken)
        command = shlex.join(["mtlcore", "check", os.fspath(path), *(given := list(overrides))])
        self.fix = f"`{command}` looks at rows and model too, and tells everything at once"
        for override in _whole_parts_first(given):
            document = self.override(document, override, path.parent.absolute())
        return document

    def file(self, path: Path, label: str, around: tuple[Path, ...] = ()) -> Document | None:
        """Read a file on top of the files that it extends; `around` are the files extending it."""
        try:
            document = read_document(path, label)
        except UnreadableError as error:
            self.broken.append(error.problem)
            return None
        around = (*around, Path(os.path.realpath(path)))
        merged = Document({}, {(): document.places[()]})
        for base in self._bases(document):
            base_path, base_label = path.parent / base, os.path.join(os.path.dirname(label), base)
            where = document.where(("extends",))
            if len(around) + len(self.sources) > MOST_FILES:
                what = f"this makes more than {MOST_FILES} files"
                self.broken = [Problem(where, what, "extend each file once")]
            elif os.path.realpath(base_path) in map(str, around):
                circle = " -> ".join(file.name for file in (*around, base_path))
                fix = "take one of them out of `extends`"
                self.broken.append(Problem(where, f"goes in a circle: {circle}", fix))
            elif not os.path.isfile(base_path):
                fix = other_recipes(base_path)
                self.broken.append(Problem(where, f"no such file: {base_label}", fix))
            elif (below := self.file(base_path, base_label, around)) is not None:
                merged = merge(merged, below)
                continue
            self.lost_base = True
        self.sources.append(path)
        self.translate(document)
        return merge(merged, document)

    def _bases(self, document: Document) -> list[str]:
        """Take `extends` out of a document."""
        bases = document.data.pop("extends", None) or []
        bases = [bases] if isinstance(bases, str) else bases
        if isinstance(bases, list) and all(isinstance(base, str) for base in bases):
            return bases
        where = document.where(("extends",))
        self.broken.append(Problem(where, f"should be a file or a list of files, found {bases!r}"))
        return []

    def translate(self, document: Document) -> None:
        """Turn other tools' key names into ours."""
        translator = Translator(document)
        translator.translate()
        self.notes += translator.notes
        self.add(document, document.problems + translator.problems)

    def override(self, document: Document, text: str, folder: Path) -> Document:
        """Lay one `key=value` over the recipe."""
        key, equals, value_text = text.partition("=")
        path: KeyPath = tuple(key.strip().split("."))
        where = f"{COMMAND_LINE}, {text}"
        if not equals or not all(path):
            self.broken.append(Problem(where, "is no `key=value`", "write training.max_steps=100"))
            return document
        try:
            value = parse_value(value_text, where)
        except UnreadableError as error:
            self.broken.append(error.problem)
            return document
        # a path typed in a shell is relative to where one stands
        place = Place(COMMAND_LINE, None, (Path.cwd(), folder), key.strip())
        above = Document(_nested(path, value), _places_of(path, value, place, document))
        if not isinstance(value, dict):  # nothing of what was there stays
            for below in [found for found in document.places if found[: len(path)] == path]:
                del document.places[below]
        self.translate(above)
        tasks = document.data.get("tasks")
        if (
            path[0] == "tasks"
            and len(path) > 2
            and isinstance(tasks, dict)
            and path[1] not in tasks
        ):
            fix = did_you_mean(str(path[1]), tasks)
            self.broken.append(Problem(where, f"the recipe has no task {path[1]!r}", fix))
            return document
        return merge(_with_default_names(document, path), above)

    def finish(self, document: Document, *, check_files: bool = True) -> Recipe:
        """Validate, or raise everything that was found on the way."""
        recipe = self.judge(document, check_files=check_files)
        if recipe is None:
            found = [*self.broken, *in_file_order(self.keys)]
            raise RecipeError(found, self.fix if check_files else "")
        return recipe

    def judge(self, document: Document, *, check_files: bool = True) -> Recipe | None:
        """The recipe if nothing is wrong, with it or on the way."""
        self.notes += spread_over_tasks(document)
        missing = resolve_paths(document)
        recipe, problems = validate(document.data)
        if self.lost_base:  # what is missing may stand there
            problems = [problem for problem in problems if problem.path in document.places]
        found = [*(missing if check_files else []), *problems]
        self.add(document, found)
        self.wrong += [problem.path for problem in found]
        return None if self.broken or self.keys else recipe

    def add(self, document: Document, problems: Iterable[FieldProblem]) -> None:
        told = {problem.where for _, problem in self.keys}
        for problem in problems:
            where = document.where(problem.path)
            if where in told:  # a value that could not be read fails the next check too
                continue
            whole = Problem(where, problem.message, problem.fix)
            self.keys.append((document.place(problem.path), whole))


def merge(below: Document, above: Document) -> Document:
    """Lay `above` over `below`: mappings are merged, everything else is replaced."""
    data = _merged(below.data, above.data, ())
    places = below.places | above.places
    if () in below.places:  # what is missing is missing in the file, not in what is laid over it
        places[()] = below.places[()]
    return Document(data, places)


def _merged(below: Any, above: Any, path: KeyPath) -> Any:
    if isinstance(below, list) and isinstance(above, dict) and set(above) <= _indices(below):
        return [  # `regularization.0.strength=5`
            _merged(item, above[str(i)], (*path, i)) if str(i) in above else item
            for i, item in enumerate(below)
        ]
    short = SHORT_FORMS.get(class_at(path)) if path else None
    if short and isinstance(above, dict):
        below = {short: below} if isinstance(below, str) else below
        if isinstance(below, dict) and above.get(short, below.get(short)) != below.get(short):
            return above  # another component: the options of the old one are not its own
    if isinstance(below, dict) and isinstance(above, dict):
        both = dict(below)
        for key, value in above.items():
            both[key] = _merged(below.get(key), value, (*path, key))
        return both
    return above


def _whole_parts_first(overrides: Iterable[str]) -> list[str]:
    """A component that was named after its options would drop them."""

    def depth(override: str) -> int:
        return override.partition("=")[0].strip().removesuffix(".name").count(".")

    return sorted(overrides, key=depth)


def _with_default_names(document: Document, path: KeyPath) -> Document:
    """Write down the default component whose option is overridden: `weighting.normalize=...`."""
    here: Any = document.data
    for end, key in enumerate(path[:-1], start=1):
        here = here.get(key) if isinstance(here, dict) else None
        fields = getattr(class_at(path[: end - 1]), "model_fields", {})
        default = fields[key].default if key in fields else None
        if here is None and isinstance(default, ComponentSpec):
            return merge(document, Document(_nested(path[:end], default.name), {}))
    return document


def _places_of(path: KeyPath, value: Any, place: Place, document: Document) -> dict[KeyPath, Place]:
    """The places of an override: a part around it that is there already keeps its own."""
    places: dict[KeyPath, Place] = {(): place}
    here: Any = document.data
    indexed: KeyPath = ()  # the path with numbers for the items of lists
    for end, key in enumerate(path, start=1):
        is_item = isinstance(here, list) and key in _indices(here)
        indexed = (*indexed, int(key) if is_item else key)
        is_there = is_item or (isinstance(here, dict) and key in here)
        here = here[indexed[-1]] if is_there else None
        becomes_another = path[end:] == (SHORT_FORMS.get(class_at(path[:end])),)
        if not is_there or becomes_another:
            places[path[:end]] = place
    for start in (path, indexed):  # aliases are looked for by the text, problems by numbers
        for inner in _paths_in(value):
            places[start + inner] = replace(place, key=dotted((*path, *inner)))
    return places


def _paths_in(value: Any) -> Iterator[KeyPath]:
    """The path to a value, (), and those to all that it holds."""
    yield ()
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from ((key, *inner) for inner in _paths_in(item))


def _indices(items: list[Any]) -> set[str]:
    return {str(index) for index in range(len(items))}


def _nested(path: KeyPath, value: Any) -> dict[str, Any]:
    """`("a", "b"), 1` -> `{"a": {"b": 1}}`."""
    for key in reversed(path):
        value = {str(key): value}
    return dict(value)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value
