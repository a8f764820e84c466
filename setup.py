"""Build the compiled core with CMake; everything else about the package is in pyproject.toml.

`MTLCORE_CUDA=auto|on|off` says whether the CUDA kernels are compiled (auto: when nvcc is found).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Run CMake once for the one extension and put the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        cuda = os.environ.get("MTLCORE_CUDA", "auto").lower()
        if cuda not in ("auto", "on", "off"):
            raise SystemExit(f"MTLCORE_CUDA must be auto, on or off, found {cuda!r}")
        cmake = shutil.which("cmake")
        if cmake is None:
            raise SystemExit("building mtlcore needs cmake on the PATH")
        target = (Path.cwd() / self.get_ext_fullpath(ext.name)).parent.resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            cmake,
            # The cache of an earlier build names a ninja that went away with its build environment.
            "--fresh",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            f"-DMTLCORE_CUDA={cuda}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            "-DCMAKE_BUILD_TYPE=Release",
        ]
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel"], check=True)


plugins = [f"mtlcore_plugins.{name}" for name in find_packages("plugins")]
setup(
    packages=[*find_packages(include=["mtlcore", "mtlcore.*"]), "mtlcore_plugins", *plugins],
    package_dir={"mtlcore": "mtlcore", "mtlcore_plugins": "plugins"},
    ext_modules=[Extension("mtlcore._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
