"""YAML text -> plain data, with the file and line of every key."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from mtlcore.errors import Problem, did_you_mean
from mtlcore.recipe_checks import FieldProblem, KeyPath, dotted

TAG = "tag:yaml.org,2002:"
MOST_BYTES = 2**20  # of one file: ruamel.yaml reads about 100 kB in a second
MOST_VALUES = 100_000  # with those that aliases repeat: ten levels of ten make 10^10
MOST_LEVELS = 50
LARGEST_INT = 2**63 - 1
NO_TEXT = re.compile(r"[\0\ud800-\udfff]")  # neither paths nor tokenizers take these


@dataclass(frozen=True)
class Place:
    """Where a key was written."""

    file: str  # as the user gave it, or "command line"
    line: int | None  # from 1
    folders: tuple[Path, ...]  # relative paths in the value are looked up here, in this order
    key: str  # the key path as the user wrote it

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass
class Document:
    """A mapping and the place of every key path in it."""

    data: dict[str, Any]
    places: dict[KeyPath, Place]
    problems: list[FieldProblem] = field(default_factory=list)

    def place(self, path: KeyPath) -> Place:
        """Where `path` was written, or the nearest key above it."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def where(self, path: KeyPath) -> str:
        """`recipe.yaml:12, tasks.sentiment.train`, by the words of the one who wrote it."""
        place = self.places.get(path)
        key = place.key if place else dotted(path)
        return ", ".join(part for part in (str(self.place(path)), key) if part)

    def move(self, old: KeyPath, new: KeyPath) -> None:
        """Let `new` be where `old` was written."""
        if old not in self.places:  # data that came from no file
            return
        moved = {path: at for path, at in self.places.items() if path[: len(old)] == old}
        for path in moved:
            self.places[new + path[len(old) :]] = self.places.pop(path)
        for end in range(1, len(new)):
            self.places.setdefault(new[:end], self.places[new])


class UnreadableError(Exception):
    """A file that is no mapping at all; `problem` says why."""

    def __init__(self, where: str, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.problem = Problem(where, message, fix)


def read_document(path: Path, label: str) -> Document:
    """Read one file; `label` is its name in messages."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            what = f"is larger than {MOST_BYTES} bytes"
            raise UnreadableError(label, what, "a recipe is short: name data files in it")
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise UnreadableError(label, "no such file", other_recipes(path)) from None
    except UnicodeDecodeError as error:
        raise UnreadableError(
            label, f"is not UTF-8 text ({error.reason})", "save it as UTF-8"
        ) from None
    except OSError as error:
        fix = "give the YAML file in it" if path.is_dir() else "check its owner and permissions"
        raise UnreadableError(label, f"cannot be read: {error.strerror}", fix) from None
    return parse_document(text, label, (path.parent.absolute(),))


def parse_document(text: str, label: str, folders: tuple[Path, ...]) -> Document:
    """Parse the text of a recipe."""
    node = _compose(text, label)
    if node is None:
        raise UnreadableError(
            label, "the file is empty", "a recipe has at least `model` and `tasks`"
        )
    if not isinstance(node, MappingNode):
        raise UnreadableError(
            f"{label}:{node.start_mark.line + 1}",
            "a recipe is a mapping, like `model: ...`, found "
            + ("a list" if isinstance(node, SequenceNode) else f"{node.value!r}"),
        )
    reader = _NodeReader(label, folders)
    data = reader.value(node, ())
    return Document(data, reader.places, reader.problems)


def parse_value(text: str, label: str) -> Any:
    """Parse the value of a `key=value` override: a scalar, `[a, b]` or `{a: b}`."""
    node = _compose(text, label)
    if node is None:
        return None
    reader = _NodeReader(label, ())
    value = reader.value(node, ())
    if reader.problems:
        raise UnreadableError(label, reader.problems[0].message, reader.problems[0].fix)
    return value


def _compose(text: str, label: str) -> Node | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # YAML allows it
            node: Node | None = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        opened = "flow" in (error.context or "")  # a bracket: the line that opens it is of use
        mark = error.context_mark if opened else error.problem_mark
        where = f"{label}:{mark.line + 1}" if mark else label
        if "'\\t'" in (error.problem or ""):
            raise UnreadableError(where, "a tab stands here", "indent with spaces") from None
        if "another document" in (error.problem or ""):
            raise UnreadableError(
                where, "a second YAML document begins here", "remove `---`"
            ) from None
        message = ", ".join(part for part in (error.context, error.problem) if part)
        raise UnreadableError(where, f"is no valid YAML: {message}", _yaml_hint(error)) from None
    except ReaderError as error:
        raise _odd_character(text, label, error.position) from None
    except RecursionError:
        raise UnreadableError(label, "is nested too deeply", "close the brackets") from None
    except (YAMLError, ValueError) as error:  # ValueError: `!` or `%YAML` followed by nonsense
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise UnreadableError(label, f"is no valid YAML: {what}", "see https://yaml.org") from None
    return node


def _odd_character(text: str, label: str, position: int) -> UnreadableError:
    """The error of a character that no YAML file may hold, such as NUL."""
    where = f"{label}:{text.count(chr(10), 0, position) + 1}"
    what = f"is no valid YAML: the character U+{ord(text[position]):04X} may not stand in it"
    return UnreadableError(where, what, "remove it, or give the file that is a recipe")


def _yaml_hint(error: MarkedYAMLError) -> str:
    if "mapping values are not allowed" in (error.problem or ""):
        return "put quotes around text that contains `: `, and check the indentation"
    if "flow" in (error.context or ""):
        opened, found = error.context_mark, error.problem_mark
        runs_on = opened is not None and found is not None and found.line > opened.line
        return "close the bracket" if runs_on else "look for a missing comma, quote or bracket"
    return "check the indentation of this line and the one above"


def other_recipes(path: Path) -> str:
    """A fix line for a recipe that is not there: the nearest one that is."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    names = [other.name for other in path.parent.iterdir() if other.suffix in (".yaml", ".yml")]
    return did_you_mean(path.name, names) if names else ""


class _NodeReader:
    """Turns nodes into plain data and keeps the line of each key path."""

    def __init__(self, label: str, folders: tuple[Path, ...]) -> None:
        self.label = label
        self.folders = folders
        self.places: dict[KeyPath, Place] = {}
        self.problems: list[FieldProblem] = []
        self._values = 0
        self._open: list[Node] = []  # nodes around the present one: an alias may hold itself
        self._scalars = YAML(typ="safe", pure=True).constructor

    def value(self, node: Node, path: KeyPath, line: int | None = None) -> Any:
        """The plain value of `node`; `line` (from 0) is that of its key."""
        line = node.start_mark.line if line is None else line
        self.places[path] = Place(self.label, line + 1, self.folders, dotted(path))
        self._values += 1
        if self._values > MOST_VALUES:
            raise UnreadableError(
                f"{self.label}:{line + 1}",
                f"has more than {MOST_VALUES} values, counting what aliases (`*name`) repeat",
                "take the aliases away",
            )
        if any(node is other for other in self._open):
            return self._refuse(path, "this anchor contains itself", "take the alias away")
        if len(self._open) == MOST_LEVELS:
            message = f"holds what is nested more than {MOST_LEVELS} levels deep"
            return self._refuse(path[:2], message, "flatten it")
        self._open.append(node)
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, path)
            if isinstance(node, SequenceNode):
                return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
            assert isinstance(node, ScalarNode)
            return self._scalar(node, path)
        finally:
            self._open.pop()

    def _refuse(self, path: KeyPath, message: str, fix: str) -> None:
        self.problems.append(FieldProblem(path, message, fix))

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in node.value:  # `<<: *base` first, so that the mapping's own keys win
            if str(key.tag) == f"{TAG}merge":
                for base in reversed(_merged_nodes(value)):
                    result.update(self.value(base, path))
        lines: dict[str, int] = {}
        for key, value in node.value:
            if str(key.tag) == f"{TAG}merge":
                continue
            if not isinstance(key, ScalarNode):
                self.problems.append(FieldProblem(path, "a key must be text, found a list or map"))
                continue
            clean = NO_TEXT.sub("?", str(key.value))
            name, line = self._text(str(key.value), (*path, clean)), key.start_mark.line
            if name in lines:
                first, second = lines[name] + 1, line + 1
                where = f"lines {first} and {second}" if first != second else f"line {first}"
                message = f"stands here twice: in {where}"
                self.problems.append(FieldProblem((*path, name), message, "keep one of them"))
            lines[name] = line
            result[name] = self.value(value, (*path, name), line)
        return result

    def _scalar(self, node: ScalarNode, path: KeyPath) -> Any:
        kind = str(node.tag)
        if kind in (f"{TAG}str", f"{TAG}timestamp"):  # a recipe has no dates: 2024-01-01 is a name
            return self._text(str(node.value), path)
        kind = kind.removeprefix(TAG)
        if kind not in ("int", "float", "bool", "null"):
            self._refuse(path, f"the YAML tag {kind!r} is not known here", "remove it")
            return str(node.value)
        try:
            value = self._scalars.construct_object(node)
        except (ArithmeticError, LookupError, ValueError):
            self._refuse(path, f"is no value of the YAML type {kind!r}", "write another value")
            return None
        if isinstance(value, int) and abs(value) > LARGEST_INT:
            self._refuse(path, "is too large a whole number", f"at most {LARGEST_INT} is read")
            return None
        return value

    def _text(self, text: str, path: KeyPath) -> str:
        """The text; a NUL or a lone surrogate (`"\\ud800"`) in it is a problem."""
        if found := NO_TEXT.search(text):
            what = "a NUL character" if found[0] == "\0" else "half a surrogate pair"
            self._refuse(path, f"holds {what}", "remove it")
        return NO_TEXT.sub("?", text)


def _merged_nodes(node: Node) -> Sequence[MappingNode]:
    nodes = node.value if isinstance(node, SequenceNode) else [node]
    return [base for base in nodes if isinstance(base, MappingNode)]
