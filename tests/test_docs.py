"""README.md and docs/: their code runs, their recipes are valid, their links lead somewhere.

The blocks of a page run from top to bottom in one empty folder. The word after the language says
what happens to a block:

    ```python              run; the names it defines stay for later blocks of the page
    ```bash                each line is an `mtlcore` command; `# exit code 2` where it must fail
    ```yaml recipe.yaml    written to that file, as any block with a file name is; all recipes and
                           parts of recipes are checked but `wrong.yaml`
    ```text                after a block that ran: its lines stand in the output, in this order;
                           `...` stands for anything, and numbers may differ by rounding
    ```python no-run       only shown
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import itertools
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from mtlcore.cli import main
from mtlcore.plugins import PluginManager
from mtlcore.recipe_file import read_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands between the fences, and after the first one."""

    page: Path
    line: int
    language: str
    argument: str
    body: str

    @property
    def is_file(self) -> bool:
        return "." in self.argument

    @property
    def runs(self) -> bool:
        return self.language in ("python", "bash") and not self.argument

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        language, _, argument = match["info"].partition(" ")
        line = text.count("\n", 0, match.start("body")) + 1
        yield Block(page, line, language, argument, match["body"])


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


# -- code runs ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that one stands in and can import from; one thread, as models are tiny."""
    import torch

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MTLCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.page == page and block.runs for block in BLOCKS)],
    ids=page_name,
)
def test_the_blocks_of_a_page_run(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A module of its own, so that type hints of its classes can be looked up.
    module = type(sys)(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    output: str | None = None
    for block in blocks_of(page):
        if block.is_file:
            file = folder / block.argument
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.body, encoding="utf-8")
        if block.runs:
            output = run(block, vars(module))
        elif block.language == "text" and output is not None:
            check_output(block, output)
            output = None


def run(block: Block, names: dict[str, Any]) -> str:
    """Run a block; gives what it printed on stdout and stderr."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        if block.language == "python":
            code = "\n" * (block.line - 1) + block.body  # so that tracebacks name the page's line
            exec(compile(code, str(block.page), "exec", dont_inherit=True), names)
        else:
            for command in block.body.replace("\\\n", " ").splitlines():
                run_command(block, command, printed)
    return printed.getvalue()


def run_command(block: Block, command: str, printed: io.StringIO) -> None:
    words = shlex.split(command, comments=True)
    if not words:
        return
    assert "mtlcore" in words, f"{block}: {command!r} cannot be run here: mark it no-run"
    start = words.index("mtlcore")
    variables = dict(word.split("=", 1) for word in words[:start])  # A=b mtlcore ...
    wanted = re.search(r"# exit code (\d+)", command)
    with patch.dict(os.environ, variables), pytest.raises(SystemExit) as ended:
        main(words[start + 1 :])
    expected = int(wanted[1]) if wanted else 0
    assert (ended.value.code or 0) == expected, f"{block}: {command}\n{printed.getvalue()}"


def check_output(block: Block, output: str) -> None:
    """Every line shown is in the output, in order."""
    found = iter(output.splitlines())
    for line in block.body.splitlines():
        if line.strip() not in ("", "..."):
            assert any(is_like(line, other) for other in found), (
                f"{block}: {line!r} is not in the output, or not there:\n{output}"
            )


def is_like(shown: str, found: str) -> bool:
    """Whether two lines are the same, up to spaces, `...` and the last digits of numbers."""
    shown, found = " ".join(shown.split()), " ".join(found.split())
    pattern = ".*".join(
        NUMBER.sub("(NUMBER)", part).replace("(NUMBER)", "\0") for part in shown.split("...")
    )
    pattern = re.escape(pattern).replace(r"\.\*", ".*").replace("\\\0", "\0")
    match = re.fullmatch(pattern.replace("\0", f"({NUMBER.pattern})"), found)
    if match is None:
        return False
    pairs = zip(NUMBER.findall(shown.replace("...", " ")), match.groups(), strict=True)
    return all(float(b) == pytest.approx(float(a), rel=0.05, abs=0.02) for a, b in pairs)


# -- recipes, links, generated pages -----------------------------------------------------------


def yaml_blocks() -> list[Block]:
    """Every YAML block but those that show what is refused."""
    wrong = ("no-run", "wrong.yaml")
    return [block for block in BLOCKS if block.language == "yaml" and block.argument not in wrong]


@pytest.mark.parametrize("block", yaml_blocks(), ids=str)
def test_recipes_and_parts_of_recipes_are_valid(block: Block, tmp_path: Path) -> None:
    text = block.body
    for key, least in (
        ("model", "model: {name_or_path: tiny}\n"),
        ("tasks", "tasks: {a: {train: a.jsonl, format: text}}\n"),
    ):
        if not re.search(rf"^{key}:", text, re.MULTILINE):
            text += least
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text, encoding="utf-8")
    assert read_recipe(recipe, check_files=False).notes == []


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not re.match(r"[a-z]+:", target):
                yield page, target


def anchors(page: Path) -> set[str]:
    """The anchors that a hosting site gives to headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_relative_links_lead_somewhere() -> None:
    found = list(links())
    assert found
    for page, target in found:
        file, _, anchor = target.partition("#")
        goal = (page.parent / file).resolve() if file else page
        assert goal.exists(), f"{page_name(page)}: there is no {target}"
        assert goal.is_relative_to(ROOT), f"{page_name(page)}: {target} leads out"
        if anchor:
            assert anchor in anchors(goal), f"{page_name(page)}: {target}: no such heading"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        goals = {(p.parent / t.partition("#")[0]).resolve() for p, t in links() if p in new}
        new = (goals & set(PAGES)) - reached
    assert reached == set(PAGES)


def test_the_reference_of_the_recipe_is_up_to_date() -> None:
    path = ROOT / "docs" / "build_recipe.py"
    spec = importlib.util.spec_from_file_location("build_recipe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.PAGE.read_text(encoding="utf-8")
    for line, wanted in itertools.zip_longest(found.splitlines(), module.page().splitlines()):
        assert line == wanted, "run: python docs/build_recipe.py"


def test_reliability_lists_every_key_that_a_resumed_run_may_change() -> None:
    from mtlcore.api import MAY_CHANGE

    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    listed = page.partition("which may change:")[2].partition("`--resume` without")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(MAY_CHANGE)


def test_few_blocks_are_not_run() -> None:
    shown = [block for block in BLOCKS if block.language == "python" and block.argument == "no-run"]
    ran = [block for block in BLOCKS if block.language == "python" and not block.argument]
    assert len(shown) <= len(ran) / 4, [str(block) for block in shown]


def test_the_table_of_weightings_says_what_their_classes_say():
    reads = {"nothing": "nothing", "losses": "losses", "gramian": "G", "rows": "J"}
    expected = []
    components = PluginManager.load(environ={"MTLCORE_NO_PLUGINS": "1"}).components()
    for (kind, name), info in components.items():
        if kind == "weighting":
            by_scope = "yes" if "scope" in inspect.signature(info.cls.__init__).parameters else ""
            total = info.cls.native_scale.replace("|", "\\|")
            expected.append(f"| `{name}` | {reads[info.cls.needs]} | {total} | {by_scope} |")
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = [
        line for line in page.splitlines() if re.match(r"\| `\w+` \| (nothing|losses|G|J) ", line)
    ]
    assert sorted(rows) == sorted(expected)
