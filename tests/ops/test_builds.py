"""The core as it is not installed here: under sanitizers, by other compilers, for other processors.

`make sanitize` runs this file; only the cases of narrower vectors are part of `make test`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SANITIZERS = (
    "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all "
    "-fno-omit-frame-pointer -g"
)
VECTORS = ("16", "32", "64")  # plain C++, AVX2, AVX-512

# Tensors that claim memory which is not theirs, or that lie at an odd address.
WRONG = {
    "beyond": "torch.from_numpy(as_strided(numpy.ones((2, 500), 'f4'), (2, 501)))",
    "misaligned": "torch.frombuffer(bytearray(4001), dtype=torch.float32, offset=1).view(2, 500)",
}
CALL = """
import os, mtlcore, numpy, torch
from numpy.lib.stride_tricks import as_strided
mtlcore.__path__.insert(0, os.environ["MTLCORE_TEST_CORE"])
from mtlcore import _core
J = {J}
columns = J.shape[1]
chunks, firsts = torch.tensor([[0, 0, columns]]), torch.tensor([0, 1])
_core.combine(J, torch.ones(1, 2), chunks, firsts, torch.empty(columns), 1)
"""


def run(command: list[object], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        # torch's own product, a yardstick of the tests, is as exact on every CPU
        env={**os.environ, "MKL_CBWR": "AVX2", **variables},
        capture_output=True,
        text=True,
    )


def built(folder: Path, **variables: str) -> dict[str, str]:
    """The variable with which tests take a core that is built with these variables."""
    done = run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", folder, "--build-temp", folder],
        MTLCORE_CUDA="off", **variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {"MTLCORE_TEST_CORE": str(folder / "mtlcore")}


def assert_ops_pass(tests: str, **variables: str) -> None:
    # -s: what a sanitizer writes before it ends the process is not to be caught.
    command = [sys.executable, "-m", "pytest", "-qs", "-p", "no:cacheprovider"]
    done = run([*command, "tests/ops", "--ignore", __file__, "-k", tests], **variables)
    assert done.returncode == 0, done.stdout + done.stderr


EVERYTHING = "not interpreter and not machine_code"


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables for a process that takes the core under AddressSanitizer and UBSan."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("needs g++ on Linux")
    core = built(
        tmp_path_factory.mktemp("sanitized"), CXX="g++", CXXFLAGS=SANITIZERS, LDFLAGS=SANITIZERS
    )
    # Python has neither: both must be there before all else.
    libraries = [
        run(["g++", f"-print-file-name={name}"]).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    # Python's own memory is never given back.
    return {**core, "LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}


@pytest.mark.slow
@pytest.mark.parametrize("width", VECTORS)
def test_sanitizers_find_nothing_in_the_ops(sanitized: dict[str, str], width: str) -> None:
    assert_ops_pass(EVERYTHING, MTLCORE_VECTOR_BYTES=width, **sanitized)


@pytest.mark.slow
@pytest.mark.parametrize("width", VECTORS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [("beyond", "heap-buffer-overflow"), ("misaligned", "load of misaligned address")],
)
def test_sanitizers_find_what_is_wrong(
    sanitized: dict[str, str], width: str, wrong: str, message: str
) -> None:
    code = CALL.format(J=WRONG[wrong])
    done = run([sys.executable, "-c", code], MTLCORE_VECTOR_BYTES=width, **sanitized)
    assert done.returncode != 0
    assert message in done.stderr
    assert "combine.cpp" in done.stderr or "simd.h" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("clang++") is None, reason="needs clang++")
def test_clang_builds_the_same_core_without_a_warning(tmp_path: Path) -> None:
    core = built(tmp_path, CXX="clang++", CXXFLAGS="-Werror")
    for width in VECTORS:
        assert_ops_pass(EVERYTHING, MTLCORE_VECTOR_BYTES=width, **core)


@pytest.mark.slow
@pytest.mark.parametrize(
    "compiler", ["aarch64-linux-gnu-g++ -fopenmp", "clang++ --target=aarch64-linux-gnu"]
)
@pytest.mark.parametrize("source", sorted(ROOT.glob("csrc/cpu/*.cpp")), ids=lambda path: path.stem)
def test_the_kernels_compile_for_aarch64_without_a_warning(
    compiler: str, source: Path, tmp_path: Path
) -> None:
    command = compiler.split()
    if not all(shutil.which(name) for name in (command[0], "aarch64-linux-gnu-g++")):
        pytest.skip(f"needs {command[0]} and the headers for aarch64")
    options = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    done = run([*command, *options, "-Icsrc", "-c", source, "-o", tmp_path / "object.o"])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("width", ["16", "32"])
def test_kernels_for_narrower_vectors_match_the_reference(width: str) -> None:
    assert_ops_pass("every_cut or matches_the_reference", MTLCORE_VECTOR_BYTES=width)


def test_an_unknown_width_of_vectors_is_refused() -> None:
    code = "import torch; from mtlcore.ops import gramian; gramian(torch.ones(2, 3))"
    done = run([sys.executable, "-c", code], MTLCORE_VECTOR_BYTES="24")
    assert "MTLCORE_VECTOR_BYTES must be 16, 32 or 64, found 24" in done.stderr
