"""What a reader relies on: hooks documented, ops and plugins complete, a core without names.

The code blocks, recipes and links of README.md and docs/ are in test_docs.py.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtlcore import hookspecs, ops
from mtlcore.plugins import ComponentInfo, PluginManager, hook_arguments

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "mtlcore").rglob("*.py"))


def first_party() -> list[ComponentInfo]:
    manager = PluginManager(environ={"MTLCORE_NO_PLUGINS": "1"})
    manager.discover()
    assert manager.broken == []
    return list(manager.components().values())


COMPONENTS = first_party()
OP_MODULES = sorted(path.stem for path in (ROOT / "mtlcore/ops/reference").glob("[a-z]*.py"))


# -- hooks -------------------------------------------------------------------------------------


def documented_hooks() -> dict[str, str]:
    """Every heading of docs/hooks.md that is a hook, with the signature below it."""
    text = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^### (mtlcore_\w+)\n\n`([^`]+)`$", text, re.MULTILINE))


def test_the_documented_hooks_are_those_of_the_specification() -> None:
    assert list(documented_hooks()) == list(hook_arguments())


@pytest.mark.parametrize("hook", hook_arguments())
def test_every_hook_is_documented_with_its_exact_signature(hook: str) -> None:
    signature = str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")
    assert documented_hooks()[hook] == f"{hook}{signature}"


# -- ops ---------------------------------------------------------------------------------------


OF_THE_BACKWARD = {"lora_grads": "lora"}  # of lora_shrink and lora_expand: not public
ON_CPU_ALONE = {"solvers"}  # they see T tasks, not P weights


def ops_of(module: str) -> list[ops.OpStatus]:
    """The cells of the table for the ops whose public function is in that module."""

    def home(op: str) -> str:
        return OF_THE_BACKWARD.get(op) or getattr(ops, op).__module__.rpartition(".")[2]

    return [one for one in ops.table() if home(one.op) == module]


def test_every_op_is_public_and_has_a_reference() -> None:
    helpers = {"__init__", "backend", "checks", "slices"}
    public = {path.stem for path in (ROOT / "mtlcore" / "ops").glob("*.py")} - helpers
    assert public == set(OP_MODULES)
    names = {status.op for status in ops.table()}
    assert {status.op for module in OP_MODULES for status in ops_of(module)} == names
    assert names - set(OF_THE_BACKWARD) <= set(ops.__all__)


@pytest.mark.parametrize("module", OP_MODULES)
@pytest.mark.parametrize(
    ("backend", "path"),
    [
        ("cpp", "csrc/cpu/{}.cpp"),
        ("cuda", "csrc/cuda/{}.cu"),
        ("triton", "mtlcore/ops/triton/{}.py"),
        ("reference", "tests/ops/test_{}.py"),
        ("reference", "benchmarks/bench_{}.py"),
    ],
)
def test_every_op_has_its_files(module: str, backend: str, path: str) -> None:
    """A file for each backend that it has: none needs CUDA where Triton serves, nor any torch's;
    on the CPU alone none of both."""
    missing = {f"{one.op} has no {one.backend} kernel" for one in ops_of(module)}
    has = [one for one in ops_of(module) if one.backend == backend and one.reason not in missing]
    assert (ROOT / path.format(module)).is_file() == bool(has)
    of_torch = any(one.backend == "torch" and one.available for one in ops_of(module))
    on_cpu_alone = module in ON_CPU_ALONE and backend in ("cuda", "triton")
    assert has or backend == "cuda" or of_torch or on_cpu_alone


# -- plugins -----------------------------------------------------------------------------------

UNPUBLISHED_WEIGHTINGS = {"equal", "fixed"}  # they may name a paper, and need not


@pytest.mark.parametrize("info", COMPONENTS, ids=lambda info: f"{info.kind}/{info.name}")
def test_every_plugin_has_its_summary_paper_and_test(info: ComponentInfo) -> None:
    doc = vars(info.cls).get("__doc__") or ""
    assert 20 < len(doc.splitlines()[0]) < 100, "the first line is the summary"
    if info.kind == "weighting" and info.name not in UNPUBLISHED_WEIGHTINGS:
        assert re.search(r"\(.+\d{4}\), https://", info.cls.paper), "title (venue), URL"
        assert info.cls.native_scale, "what its weights sum to"  # type: ignore[attr-defined]
    folder = Path(info.file).parent.name
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests" / folder).glob("*.py")]
    assert any(re.search(rf"\b{info.cls.__name__}\b", text) for text in tests), "no test names it"


# -- the core ----------------------------------------------------------------------------------


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def compared_texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every text that something is compared with: `==`, `!=`, `in`, `not in`, `case`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        else:
            continue
        for part in parts:
            for inner in ast.walk(part):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                    yield inner.lineno, inner.value


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_knows_no_plugin(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for module in imports(tree):
        assert module.partition(".")[0] not in ("mtlcore_plugins", "plugins"), module
    names = {info.name for info in COMPONENTS}
    found = [(line, text) for line, text in compared_texts(tree) if text in names]
    assert found == [], "the core asks for a component by name"


def test_the_sources_of_the_core_are_formatted() -> None:
    """As `make fix` does it."""
    files = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    command = [Path(sys.executable).with_name("clang-format"), "--dry-run", "--Werror", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- files -------------------------------------------------------------------------------------


def test_no_file_names_a_folder_of_the_machine_it_was_written_on() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git working tree")
    names = "|".join(("root", "work", "home", "Users", "tmp"))
    folder = re.compile(rf"(?<![\w.~$}}])/(?:{names})/")
    for name in filter(None, listed.stdout.split("\0")):
        file = ROOT / name
        if not file.is_file():
            continue
        text = file.read_bytes().decode("utf-8", errors="replace")
        found = folder.search(text)
        assert found is None, f"{name}:{text.count(chr(10), 0, found.start()) + 1}: {found[0]}"
