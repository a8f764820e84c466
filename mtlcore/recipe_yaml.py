"""YAML text -> plain data, with the file and line of every key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mtlcore.errors import Problem, did_you_mean
from mtlcore.recipe_checks import FieldProblem, KeyPath, dotted

TAG = "tag:yaml.org,2002:"


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
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UnreadableError(label, "no such file", _other_recipes(path)) from None
    except UnicodeDecodeError as error:
        raise UnreadableError(
            label, f"is not UTF-8 text ({error.reason})", "save it as UTF-8"
        ) from None
    except OSError as error:
        raise UnreadableError(label, f"cannot be read: {error.strerror}") from None
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
    except YAMLError as error:
        raise UnreadableError(label, f"is no valid YAML: {str(error).splitlines()[0]}") from None
    return node


def _yaml_hint(error: MarkedYAMLError) -> str:
    if "mapping values are not allowed" in (error.problem or ""):
        return "put quotes around text that contains `: `, and check the indentation"
    if "flow" in (error.context or ""):
        return "close the bracket"
    return "check the indentation of this line and the one above"


def _other_recipes(path: Path) -> str:
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
        self._open: list[Node] = []  # nodes around the present one: an alias may hold itself
        self._scalars = YAML(typ="safe", pure=True).constructor

    def value(self, node: Node, path: KeyPath, line: int | None = None) -> Any:
        """The plain value of `node`; `line` (from 0) is that of its key."""
        line = node.start_mark.line if line is None else line
        self.places[path] = Place(self.label, line + 1, self.folders, dotted(path))
        if any(node is other for other in self._open):
            self.problems.append(FieldProblem(path, "this anchor contains itself"))
            return None
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
            name, line = str(key.value), key.start_mark.line
            if name in lines:
                message = f"stands here twice: in lines {lines[name] + 1} and {line + 1}"
                self.problems.append(FieldProblem((*path, name), message, "keep one of them"))
            lines[name] = line
            result[name] = self.value(value, (*path, name), line)
        return result

    def _scalar(self, node: ScalarNode, path: KeyPath) -> Any:
        kind = str(node.tag)
        if kind == f"{TAG}timestamp":  # a recipe has no dates: 2024-01-01 is a name
            return str(node.value)
        if kind.removeprefix(TAG) not in ("str", "int", "float", "bool", "null"):
            message = f"the YAML tag {kind.removeprefix(TAG)!r} is not known here"
            self.problems.append(FieldProblem(path, message, "remove it"))
            return str(node.value)
        return self._scalars.construct_object(node)


def _merged_nodes(node: Node) -> Sequence[MappingNode]:
    nodes = node.value if isinstance(node, SequenceNode) else [node]
    return [base for base in nodes if isinstance(base, MappingNode)]
