"""Installation in empty environments: from the tree (twice), a wheel and an sdist; no editable one.

Slow: every case compiles the core in an isolated build environment, so it needs a package index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# Run outside the tree, so that only what was installed can be imported.
USE = """
import pathlib, sys, torch, mtlcore, mtlcore_plugins
from mtlcore import _core
from mtlcore.ops import active_backend, combine, gramian
home = pathlib.Path(mtlcore.__file__).resolve()
assert home.is_relative_to(pathlib.Path(sys.prefix).resolve()), home
assert (home.parent / "py.typed").exists()
assert active_backend("gramian", "cpu") == "cpp"
J = torch.arange(6.0).reshape(2, 3)
assert gramian(J).tolist() == [[5.0, 14.0], [14.0, 50.0]]
assert combine(J, torch.tensor([1.0, 2.0])).tolist() == [6.0, 9.0, 12.0]
print(_core.has_cuda)
"""


@pytest.fixture
def tree(tmp_path):
    """A clean copy of what is in the repository: installing leaves files behind."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    copy = tmp_path / "tree"
    for name in listed:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture
def environment(tmp_path):
    """The Python of a new environment that sees our torch, but no mtlcore.

    A .pth line adds a folder of links to the packages of the environment that runs the tests:
    a second torch would be a download of its own.
    """
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    links = tmp_path / "links"
    links.mkdir()
    for package in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not package.name.startswith(("mtlcore", "__editable__", "pip", "_", "distutils-")):
            (links / package.name).symlink_to(package)
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    purelib = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True)
    (Path(purelib.stdout.strip()) / "links.pth").write_text(f"{links}\n")
    return python


def pip(python, *arguments, cwd, cuda="off"):
    """Run pip with plain build isolation; nvcc is left out unless a test is about it."""
    command = [python, "-m", "pip", *arguments]
    outside = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MTLCORE_BACKEND")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**outside, "MTLCORE_CUDA": cuda},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def use(python, cwd):
    """What the installed package prints: whether it has CUDA kernels."""
    done = subprocess.run([python, "-c", USE], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_the_tree_installs_twice(tree, environment, tmp_path):
    for _ in range(2):
        pip(environment, "install", "--no-deps", "--force-reinstall", ".", cwd=tree)
        assert use(environment, tmp_path) == "False"


def test_a_wheel_installs(tree, environment, tmp_path):
    pip(sys.executable, "wheel", "--no-deps", "-w", tmp_path / "dist", ".", cwd=tree)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    pip(environment, "install", "--no-deps", wheel, cwd=tmp_path)
    assert use(environment, tmp_path) == "False"


def test_an_sdist_installs(tree, environment, tmp_path):
    command = [sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path / "dist", "."]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    pip(environment, "install", "--no-deps", sdist, cwd=tmp_path)
    assert use(environment, tmp_path) == "False"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_cuda_kernels_are_compiled_in_and_import_without_a_driver(tree, environment, tmp_path):
    pip(environment, "install", "--no-deps", ".", cwd=tree, cuda="on")
    assert use(environment, tmp_path) == "True"


def test_an_unknown_cuda_choice_is_refused(tree):
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        cwd=tree,
        env={**os.environ, "MTLCORE_CUDA": "yes"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "MTLCORE_CUDA must be auto, on or off, found 'yes'" in done.stdout + done.stderr
