"""Jinja2 templates over the columns of a row, in a sandbox."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mtlcore.data.example import RowError
from mtlcore.data.fields import checked_text
from mtlcore.data.special import cut_printed, uncut_row
from mtlcore.errors import UserError

if TYPE_CHECKING:
    from jinja2 import nodes
    from transformers import PreTrainedTokenizerBase

    from mtlcore.data.sandbox import NoValueError, Sandbox

TEXT_METHODS = ("capitalize", "lower", "title", "upper")
"""Methods of texts that are filters of Jinja2 too."""
LONGEST = 100_000_000
"""Characters of one text."""
FAILURES = (
    TypeError, ValueError, ArithmeticError, LookupError, AttributeError, AssertionError,
)  # fmt: skip
"""What filters raise that get the wrong value; `truncate` asserts."""


class RowTemplate:
    """A template that a recipe gives for one format option.

    Each column is a variable; `row` is the whole row, for names such as `row["my column"]`. A name
    that the row lacks, and a null or NaN that would be printed as "None" or "nan", are RowErrors.
    The sandbox refuses access to Python's internals, because recipes are passed around.

    The template sees the texts of the row as they are. What it prints is text: a special token is
    meant only where the template itself writes it, as it stands or as a constant `{{ "</s>" }}`.

    As everywhere in Jinja2, one line end at the template's own end is left out. Raises ValueError
    if the source is not a template.
    """

    def __init__(self, source: str, *, option: str) -> None:
        from jinja2 import StrictUndefined, TemplateSyntaxError

        from mtlcore.data.sandbox import OtherTemplateError, Sandbox

        self.option = option
        self._sandbox = Sandbox(undefined=StrictUndefined, finalize=_finalize())
        try:
            self._tree = _printing_blocks(self._sandbox.parse(source))
            self._template = self._sandbox.from_string(self._tree)
        except TemplateSyntaxError as error:
            raise ValueError(
                f"{option} is not a Jinja2 template (line {error.lineno}: {error.message}); "
                "write a column as {{ column }}"
            ) from None
        except OtherTemplateError as error:
            raise ValueError(f"{option}: {error}; write everything into this one") from None
        except (SyntaxError, RecursionError) as error:  # of the Python that Jinja2 makes of it
            raise ValueError(f"{option} is nested too deeply: {error}") from None

    def render(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
        """The text of one row, for `encode_prompt` and its kin, which keep what is printed text.

        RowError if the row does not fit, UserError if no row can.
        """
        from jinja2.exceptions import SecurityError, TemplateError, UndefinedError

        from mtlcore.data.sandbox import NoValueError, TooLargeError

        row = uncut_row(row)
        self._sandbox.begin(row)
        try:
            written = _pieces(self._template.generate({"row": row, **row}))
        except TooLargeError as error:
            raise UserError(
                f"the sandbox refuses this template: {error}",
                where=f"format.{self.option}",
                fix=error.fix,
            ) from None
        except NoValueError as error:
            said, fix = _no_value(error, self._tree, row)
            raise UserError(
                f"the template prints {said}, not a value", where=f"format.{self.option}", fix=fix
            ) from None
        except SecurityError as error:
            raise UserError(
                f"the sandbox refuses this template: {error}",
                where=f"format.{self.option}",
                fix="use the row's columns only, not the internals of Python",
            ) from None
        except UndefinedError as error:
            quoted = str(error).split("'")
            missing = quoted[1] if len(quoted) > 1 else ""
            raise self._misfit(f": {error.message}", missing=missing) from None
        except _NullPrintedError:
            nulls = ", ".join(repr(name) for name, value in row.items() if value is None)
            message = f" prints a null (null here: {nulls or 'inside a column'})"
            raise self._misfit(message + "; write {{ name or '' }} if that is meant") from None
        except _NotFinitePrintedError as error:
            raise self._misfit(f" prints {error}, which is no number") from None
        except (RecursionError, MemoryError) as error:
            raise UserError(
                f"the template never ends or fills the memory: {type(error).__name__}",
                where=f"format.{self.option}",
                fix="a template for a row needs no recursion",
            ) from None
        except (TemplateError, *FAILURES) as error:
            raise self._misfit(f" fails: {type(error).__name__}: {error}") from None
        checked_text("".join(written), self.option)
        # jinja yields the template's own words as plain texts
        return cut_printed(tokenizer, [(text, type(text) is str) for text in written])

    def _misfit(self, what: str, *, missing: str = "") -> RowError:
        return RowError(self.option + what, option=self.option, missing=missing)


class _NullPrintedError(Exception):
    """A null reached the output of a template."""


class _NotFinitePrintedError(Exception):
    """A NaN or an infinity reached the output of a template."""


def _pieces(written: Iterable[str]) -> list[str]:
    """All pieces of a text, as long as it is none that was made to fill the memory."""
    from mtlcore.data.sandbox_sizes import ITEM

    found, left = [], LONGEST
    for piece in written:
        left -= max(len(piece), ITEM)
        if left < 0:
            raise ValueError(f"a text of more than {LONGEST} characters")
        found.append(piece)  # an empty one, too: it keeps the words around it apart
    return found


class _Printed(str):
    """What an expression of a template printed."""

    __slots__ = ()

    def __str__(self) -> str:
        """Itself: the code that jinja makes calls `str` on what it prints."""
        return self


class _PrintedMarkup(_Printed):
    """The same of what the filter `safe` made."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


def _finalize() -> Callable[[Sandbox, Any], _Printed]:
    """What jinja calls with each value that is printed."""
    from jinja2 import pass_environment

    return pass_environment(_printed)


def _printed(sandbox: Sandbox, value: Any) -> _Printed:
    if value is None:
        raise _NullPrintedError
    if isinstance(value, float) and not math.isfinite(value):
        raise _NotFinitePrintedError(value)
    if not isinstance(value, str):
        from mtlcore.data.sandbox import require_value

        for part in (value, *value) if isinstance(value, list | tuple) else (value,):
            require_value(part)
        sandbox.require_writable(value)
    return _PrintedMarkup(value) if hasattr(value, "__html__") else _Printed(value)


def _printing_blocks(template: nodes.Template) -> nodes.Template:
    """Let `filter`, `call` and recursive `for` blocks print by an expression, as all else does."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    class Blocks(NodeTransformer):
        def generic_visit(self, node: nodes.Node, *_: Any, **__: Any) -> Any:
            super().generic_visit(node)
            block = isinstance(node, nodes.FilterBlock | nodes.CallBlock)
            if not (block or (isinstance(node, nodes.For) and node.recursive)):
                return node
            return [
                nodes.AssignBlock(nodes.Name(name, "store"), None, [node], lineno=node.lineno),
                nodes.Output([nodes.Name(name, "load")], lineno=node.lineno),
            ]

    name = "_printed_block"
    Blocks().visit(template)
    return template


def _no_value(error: NoValueError, tree: nodes.Template, row: Mapping[str, Any]) -> tuple[str, str]:
    """What a template prints that is no value, by the name that it has there, and the fix."""
    from jinja2 import nodes

    if error.is_series:
        return str(error), "add `| list` or `| join(', ')`"
    called = {id(call.node) for call in tree.find_all(nodes.Call)}
    for found in tree.find_all(nodes.Getattr):
        if found.attr != error.name or id(found) in called:
            continue
        owner = found.node.name if isinstance(found.node, nodes.Name) else ""
        if owner == "row" and found.attr in row:
            return f"{error} (`row.{found.attr}`)", f"write {{{{ row[{found.attr!r}] }}}}"
        name = f"{owner}.{found.attr}" if owner else found.attr
        fix = f"write {{{{ {name}() }}}}" if owner else f"write {name}()"
        if isinstance(row.get(owner), str) and found.attr in TEXT_METHODS:
            fix += f" or {{{{ {owner} | {found.attr} }}}}"
        return f"{error} (`{name}`)", fix
    if error.is_macro:
        return f"{error} (`{error.name}`)", f"write {{{{ {error.name}() }}}}"
    return str(error), "print a column or a text"
