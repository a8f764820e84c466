"""Jinja2's sandbox, which also refuses huge results and the printing of what is no value."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import update_wrapper, wraps
from typing import Any

from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.filters import make_attrgetter
from jinja2.nodes import (
    Concat,
    Dict,
    Extends,
    Filter,
    For,
    FromImport,
    Getitem,
    Import,
    Include,
    List,
    Node,
    Slice,
    Template,
    Tuple,
)
from jinja2.runtime import Context, LoopContext, Macro, Undefined, str_join
from jinja2.sandbox import (
    MAX_RANGE,
    ImmutableSandboxedEnvironment,
    SandboxedEscapeFormatter,
    SandboxedFormatter,
    safe_range,
)
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from mtlcore.data import sandbox_sizes as sizes
from mtlcore.data.sandbox_sizes import ITEM, length, written

MOST = 1_000_000
"""Characters or items that one operation may make beyond the row's, and bits of a number."""
TIMES = 100
"""How often that much all operations on one row may make."""
WIDEST_INDENT = 100
"""Columns of an indent of JSON, and characters between the lines of `wordwrap`."""
NO_FILTERS = ("pprint", "urlize")
"""Filters that no prompt needs, and that can make a huge text of a short one."""
TEXT_FILTERS = frozenset([
    "capitalize", "center", "e", "escape", "forceescape", "format", "indent", "lower", "replace",
    "safe", "string", "striptags", "title", "tojson", "trim", "truncate", "upper", "urlencode",
    "wordcount", "wordwrap", "xmlattr",
])  # fmt: skip
"""Filters that make a text of whatever they get."""
KEY_FILTERS = frozenset(["dictsort", "groupby", "sort", "unique"])
"""Filters that hold a copy of every text that they compare."""
NUMBER_FILTERS = frozenset([
    "batch", "center", "indent", "round", "slice", "tojson", "truncate", "wordwrap",
])  # fmt: skip
"""Filters whose numbers say how much they make."""
HAND_OUT = frozenset([
    "attr", "cycle", "d", "default", "first", "get", "items", "keys", "last", "max", "min", "next",
    "random", "values",
])  # fmt: skip
"""Filters and methods that give what is there and make nothing."""
TEXT_METHODS = frozenset([
    "capitalize", "casefold", "count", "decode", "endswith", "find", "hex", "index", "isalnum",
    "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric",
    "isprintable", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition",
    "removeprefix", "removesuffix", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split",
    "splitlines", "startswith", "strip", "striptags", "swapcase", "title", "unescape", "upper",
])  # fmt: skip
"""Methods of texts and bytes whose result is at most a few times as long as what they get."""
SIZED_METHODS: dict[str, Callable[..., int]] = {
    "center": sizes.pad, "encode": sizes.encode, "expandtabs": sizes.expandtabs,
    "ljust": sizes.pad, "replace": sizes.replace, "rjust": sizes.pad, "zfill": sizes.pad,
}  # fmt: skip
"""Methods of texts and bytes that can make much of little, and the size of what they make."""
OWN_MODULES = frozenset(["builtins", "datetime", "decimal", "jinja2", "markupsafe"])
"""Where the types are whose methods are known not to make what a number tells them to."""
NO_TEXT: set[object] = {object.__repr__, object.__str__}
"""How a thing that has no text of its own makes one: with its address in the memory."""


class TooLargeError(SecurityError):
    """One operation of a template would make or take more than `MOST`."""

    def __init__(self, message: str, fix: str = "") -> None:
        self.fix = fix or (
            f"use smaller numbers or texts: one operation may make {MOST} characters more than "
            f"the row has, all of a row together {TIMES} times as much"
        )
        super().__init__(message)


class NoValueError(Exception):
    """A template prints what is no value: a method, a function, a class, a generator."""

    def __init__(self, value: Any) -> None:
        self.name = str(getattr(value, "__name__", None) or getattr(value, "name", ""))
        self.is_series = isinstance(value, Iterator)
        self.is_macro = isinstance(value, Macro)
        super().__init__(_kind(value))


class OtherTemplateError(ValueError):
    """A template asks for another one."""


class Sandbox(ImmutableSandboxedEnvironment):
    """No internals of Python, no files, no other templates, and no huge results.

    What an operation would make is computed, or bounded, before it is made. Where the result is at
    most a few times as large as what goes in, as of `upper`, it is looked at afterwards. What goes
    in is never larger than `most`: lists inside each other are counted as they would be written
    out. All that is made counts towards `left`, and so does every step of a loop, so that many
    small operations make nothing huge either.
    """

    intercepted_binops = frozenset(["+", "-", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.most = self.left = MOST  # what Jinja2 computes before there is a row
        self.code_generator_class = _Code
        self.globals.pop("lipsum")
        self.globals["range"] = _range
        for name in NO_FILTERS:
            self.filters.pop(name)
        filters: dict[str, Any] = self.filters
        tests: dict[str, Any] = self.tests
        self.filters = {
            **{name: self._bounded(name, made) for name, made in filters.items()},
            "_made": self.made,
            "_steps": self._steps,
            "_text": self._text,
        }
        for name in ("lower", "upper"):
            self.tests[name] = self._bounded(name, tests[name])
        self.policies["json.dumps_function"] = self._dumps

    def begin(self, row: Mapping[str, Any]) -> None:
        """Forget what was made so far: a text for this row is made next."""
        self.most = MOST + written(dict(row), float("inf"))
        self.left = TIMES * self.most

    def _parse(self, source: str, *args: Any) -> Template:
        """The tree of a source, all that makes something a call of this sandbox.

        OtherTemplateError if it includes, imports or extends another.
        """
        tree = super()._parse(source, *args)
        for node in tree.find_all((Include, Import, FromImport, Extends)):
            tag = "from" if isinstance(node, FromImport) else type(node).__name__.lower()
            raise OtherTemplateError(f"line {node.lineno}: {{% {tag} %}} reads another template")
        _Counted().visit(tree)
        return tree

    def require_small(self, size: int, unit: str = "characters") -> None:
        """TooLargeError if one operation would make or take that much."""
        if size > self.most:
            raise TooLargeError(f"a result of more than {MOST} {unit} beyond the row's own")

    def require_writable(self, value: Any) -> None:
        """TooLargeError if a value would be huge if it were written out, NoValueError if it can't.

        Any operation may write it, were it in the message of an error.
        """
        if isinstance(value, str):
            return
        self.require_small(written(value, self.most, _of_other))

    def spend(self, size: int) -> None:
        """Count what was made for this row."""
        self.left -= size
        if self.left < 0:
            raise TooLargeError(f"more than {TIMES * self.most} characters in all operations")

    def made(self, value: Any) -> Any:
        """The value itself, which is new, counted."""
        if isinstance(value, int):
            _require_bits(value.bit_length())
            return value
        size = length(value)
        is_text = isinstance(value, str | bytes)
        self.require_small(size, "characters" if is_text else "items")
        self.spend(size if is_text else ITEM * size)
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`, unless the result would be huge."""
        texts = isinstance(left, str | bytes) or isinstance(right, str | bytes)
        unit = "characters" if texts else "items"
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "%" and isinstance(left, str | bytes):
            self._require_filled(left, right)
        elif operator == "+" and not numbers:
            self.require_small(length(left) + length(right), unit)
        elif operator == "*" and numbers:
            _require_bits(left.bit_length() + right.bit_length())
        elif operator == "*":
            self.require_small(length(left) * _repeats(right), unit)
            self.require_small(length(right) * _repeats(left), unit)
        elif operator == "**" and numbers:
            _require_bits(left.bit_length() * right)
        return self.made(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method that the template names, unless its result would be huge."""
        self.spend(ITEM * (len(args) + len(kwargs)))
        if isinstance(obj, LoopContext):
            args = tuple(map(self._steps, args))
        owner = getattr(obj, "__self__", None)
        if owner is not None:
            args = self._method_arguments(obj, owner, args, kwargs)
        elif isinstance(obj, type):  # dict and namespace copy
            self.spend(ITEM * sum(map(length, args)))
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(owner, str | bytes) and isinstance(result, list | tuple):
            self.spend(sum(map(length, result)))
        return result if getattr(obj, "__name__", "") in HAND_OUT else self.made(result)

    def _method_arguments(
        self, method: Any, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        """What a method may be called with, which it can go through once more."""
        name = method.__name__
        args = tuple(map(_kept, args))
        self._require_arguments(args, kwargs)
        if isinstance(owner, str | bytes):
            if name in SIZED_METHODS:
                self.require_small(SIZED_METHODS[name](owner, *args, **kwargs))
            elif name not in TEXT_METHODS:
                raise TooLargeError(f"the method {name!r} of a text", "write it with filters")
            elif name == "join" and args:
                self.require_small(sizes.join(owner, args[0], self.most, _of_other))
        elif isinstance(owner, type) and issubclass(owner, str | bytes):
            raise TooLargeError(f"the method {name!r} of a text", "write it with filters")
        elif name == "to_bytes" or type(owner).__module__.split(".")[0] not in OWN_MODULES:
            _require_numbers((*args, *kwargs.values()))
        return args

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`; that there is none is told with the argument written out."""
        self.require_writable(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, which looks at every field before it is written."""
        if super().wrap_str_format(value) is None:
            return None
        text = value.__self__
        escape = {"escape": text.escape} if isinstance(text, Markup) else {}

        def fill(*args: Any, **kwargs: Any) -> str:
            made = _EscapeFormatter if escape else _Formatter
            if value.__name__ == "format_map":
                args, kwargs = (), *args
            filled: str = made(self, len(text), **escape).vformat(text, args, kwargs)
            return filled if type(text) is str else Markup(filled)

        return update_wrapper(fill, value)

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that refuses to make huge results; what Jinja2 notes at functions stays."""
        start = int(hasattr(function, "jinja_pass_arg"))

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            value, rest = _kept_for(name, args[start]), args[start + 1 :]
            self._require_arguments(rest, kwargs)
            if name in NUMBER_FILTERS:
                _require_numbers((*rest, *kwargs.values()))
            if name in TEXT_FILTERS:
                require_value(value)
            if name in TEXT_FILTERS or name in KEY_FILTERS:
                self.require_writable(value)
            if name in _BEFORE:
                _BEFORE[name](self, value, *rest, **kwargs)
            result = function(*args[:start], value, *rest, **kwargs)
            return result if name in HAND_OUT else self.made(result)

        return bounded

    def _require_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for argument in (*args, *kwargs.values()):
            if not (callable(argument) or isinstance(argument, Iterator)):
                self.require_writable(argument)

    def _require_filled(self, format: str | bytes, values: Any) -> None:
        text = format if isinstance(format, str) else str(format, "latin-1")
        _require_narrow(text)
        for value in values if isinstance(values, tuple) else (values,):
            require_value(value)
            self.require_writable(value)
        self.require_small(sizes.fill_in(text, values, self.most))

    def _require_filled_by(self, format: Any, *args: Any, **kwargs: Any) -> None:
        self._require_filled(str(format), kwargs or args)

    def _require_replaced(self, text: Any, old: Any, new: Any, count: int | None = None) -> None:
        size = sizes.replace(str(text), str(old), str(new), -1 if count is None else count)
        self.require_small(size)

    def _require_joined(self, items: Any, d: Any = "", attribute: Any = None) -> None:
        found = items if attribute is None else map(make_attrgetter(self, attribute), items)
        self.require_small(sizes.join(str(d), found, self.most, _of_other))

    def _require_indented(self, text: Any, *args: Any, **kwargs: Any) -> None:
        self.require_small(sizes.indent(text, *args, **kwargs) if isinstance(text, str) else 0)

    def _require_wrapped(
        self,
        text: Any,
        width: Any = 79,
        break_long_words: bool = True,
        wrapstring: str | None = None,
        break_on_hyphens: bool = True,
    ) -> None:
        if wrapstring is not None and len(wrapstring) > WIDEST_INDENT:
            raise TooLargeError(f"a wrapstring of more than {WIDEST_INDENT} characters")
        if wrapstring is not None and len(wrapstring) > 1:
            self.require_small(len(text) * len(wrapstring))

    def _require_padded(self, items: Any, count: Any, fill_with: Any = None) -> None:
        self.spend(ITEM * (_count(items) + (count if isinstance(count, int) else 0)))

    def _require_summed(self, items: Any, attribute: Any = None, start: Any = 0) -> None:
        found = items if attribute is None else map(make_attrgetter(self, attribute), items)
        if isinstance(start, list | tuple):
            self.require_small(length(start) + sum(map(length, found)), "items")

    def _require_sorted(self, items: Any, *args: Any, **kwargs: Any) -> None:
        """One key for each item and each name in `attribute`."""
        names = [text for text in (*args, *kwargs.values()) if isinstance(text, str)]
        keys = 1 + sum(text.count(",") for text in names)
        self.require_small(keys * written(items, self.most))

    def _require_grouped(
        self, items: Any, attribute: Any, default: Any = None, case_sensitive: bool = False
    ) -> None:
        self.require_small(_count(items) * length(default))
        self.spend(2 * ITEM * _count(items))

    def _dumps(self, value: Any, *, indent: int | str | None = None, **options: Any) -> str:
        """JSON, which grows with every level and line if it is indented."""
        if indent is None:
            return json.dumps(value, **options)
        if (len(indent) if isinstance(indent, str) else indent) > WIDEST_INDENT:
            raise TooLargeError(f"an indent of more than {WIDEST_INDENT} columns")
        pieces = _Pieces(self)
        pieces.extend(json.JSONEncoder(indent=indent, **options).iterencode(value))
        return "".join(pieces)

    def _text(self, parts: Iterable[Any]) -> str:
        """What `~` makes."""
        for part in parts:
            require_value(part)
        self.require_small(sizes.join("", parts, self.most, _of_other))
        made: str = self.made(str_join(parts))
        return made

    def _steps(self, items: Iterable[Any]) -> Iterator[Any]:
        """What a loop goes through, each step counted."""
        for item in items:
            self.spend(ITEM)
            yield item

    def pieces(self) -> _Pieces:
        """Where the code of a template keeps the text of a block or macro."""
        return _Pieces(self)

    def concat(self, pieces: Iterable[str]) -> str:
        """The text of a block or a macro."""
        if isinstance(pieces, _Pieces):
            return "".join(pieces)
        found = _Pieces(self)
        found.extend(pieces)
        return "".join(found)


_BEFORE: dict[str, Callable[..., None]] = {
    "batch": Sandbox._require_padded,
    "dictsort": Sandbox._require_sorted,
    "format": Sandbox._require_filled_by,
    "groupby": Sandbox._require_grouped,
    "indent": Sandbox._require_indented,
    "join": Sandbox._require_joined,
    "replace": Sandbox._require_replaced,
    "slice": Sandbox._require_padded,
    "sort": Sandbox._require_sorted,
    "sum": Sandbox._require_summed,
    "wordwrap": Sandbox._require_wrapped,
}
"""Filters that can make much of little, and what refuses that."""
TWICE = frozenset([*_BEFORE, *KEY_FILTERS])
"""Filters whose input is gone through before they do so themselves."""


class _Pieces(list[str]):
    """The pieces of a text that a template keeps, as long as they are not too many."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__()
        self._sandbox = sandbox
        self._size = 0

    def append(self, piece: str) -> None:
        self._size += len(piece)
        self._sandbox.require_small(self._size)
        self._sandbox.spend(max(len(piece), ITEM))
        super().append(piece)

    def extend(self, pieces: Iterable[str]) -> None:
        for piece in pieces:
            self.append(piece)


class _Code(CodeGenerator):
    """The Python of a template, which keeps the text of a block or macro in `_Pieces`."""

    def buffer(self, frame: Frame) -> None:
        frame.buffer = self.temporary_identifier()
        self.writeline(f"{frame.buffer} = environment.pieces()")


class _Counted(NodeTransformer):
    """Let all that makes a value without a call be a call of the sandbox."""

    def generic_visit(self, node: Node, *_: Any, **__: Any) -> Node:
        super().generic_visit(node)
        if isinstance(node, For):
            node.iter = _filter("_steps", node.iter)
        elif isinstance(node, Concat):
            return _filter("_text", List(node.nodes, lineno=node.lineno))
        series = isinstance(node, List | Dict) or (isinstance(node, Tuple) and node.ctx == "load")
        if series or (isinstance(node, Getitem) and isinstance(node.arg, Slice)):
            return _filter("_made", node)
        return node


def _filter(name: str, node: Any) -> Filter:
    return Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Formatter(SandboxedFormatter):
    """`str.format` that stops when what it made is huge, and looks at each value beforehand."""

    def __init__(self, sandbox: Sandbox, size: int, **options: Any) -> None:
        super().__init__(sandbox, **options)
        self._sandbox = sandbox
        self._size = size

    def get_field(self, *args: Any) -> Any:
        value, name = super().get_field(*args)
        self._sandbox.require_writable(value)
        return value, name

    def format_field(self, value: Any, format_spec: str) -> Any:
        _require_narrow(format_spec)
        made = super().format_field(value, format_spec)
        self._size += len(made)
        self._sandbox.require_small(self._size)
        return made


class _EscapeFormatter(_Formatter, SandboxedEscapeFormatter):
    """The same of what the filter `safe` made."""


def _range(*args: int) -> range:
    try:
        return safe_range(*args)
    except OverflowError:
        raise TooLargeError(f"a range of more than {MAX_RANGE} numbers") from None


def _kept(value: Any) -> Any:
    """Something that can be gone through twice."""
    return list(value) if isinstance(value, Iterator) else value


def _kept_for(name: str, value: Any) -> Any:
    return _kept(value) if name in TWICE else value


def _require_narrow(format: str) -> None:
    if any(len(number) > sizes.MOST_DIGITS for number in sizes.NUMBERS.findall(format)):
        raise TooLargeError(f"a width of more than 6 digits in {format[:40]!r}")


def _require_numbers(arguments: Iterable[Any]) -> None:
    if any(abs(value) > MOST for value in arguments if isinstance(value, int)):
        raise TooLargeError(f"an argument of more than {MOST}")


def _require_bits(bits: int) -> None:
    if bits > MOST:
        raise TooLargeError(f"a number of more than {MOST} bits")


def require_value(value: Any) -> Any:
    """The value itself; NoValueError if its text would be an address in the memory or the like."""
    makes_text: set[object] = {type(value).__repr__, type(value).__str__}
    code = callable(value) and not isinstance(value, Undefined)
    if code or isinstance(value, Iterator) or makes_text == NO_TEXT:
        raise NoValueError(value)
    return value


def _kind(value: Any) -> str:
    """What a thing that is no value is called."""
    if isinstance(value, Macro):
        return "a macro"
    if isinstance(value, Iterator):
        return "a generator"
    if isinstance(value, type):
        return "a class"
    if hasattr(value, "__self__"):
        return "a method"
    return "a function" if callable(value) else "an object of Python"


def _of_other(part: Any) -> int:
    """Characters of an object that is no text, number or list."""
    return len(repr(require_value(part)))


def _count(items: Any) -> int:
    return len(items) if isinstance(items, Sized) else 0


def _repeats(value: Any) -> int:
    return max(0, value) if isinstance(value, int) else 0
