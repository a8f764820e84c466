"""Weight files: a folder that is whole has no problem, every damage that a header shows has one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mtlcore.preflight.weights import read_header, weight_problems


def said(folder: Path) -> list[str]:
    return [str(problem).replace(f"{folder}/", "") for problem in weight_problems(folder)]


def write(path: Path, *names: str) -> None:
    save_file({name: torch.ones(3, 4) for name in names}, path)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of two shards with their index."""
    write(tmp_path / "one.safetensors", "a", "b")
    write(tmp_path / "two.safetensors", "c")
    where = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return tmp_path


def test_a_saved_model_is_whole(tiny_model: Path) -> None:
    assert said(tiny_model) == []
    header, size = read_header(tiny_model / "model.safetensors")
    assert size == (tiny_model / "model.safetensors").stat().st_size
    assert header["model.norm.weight"]["shape"] == [64]


def test_no_weights_are_a_problem(tmp_path: Path) -> None:
    assert "holds no weights: model.safetensors (or its index) is missing" in said(tmp_path)[0]


@pytest.mark.parametrize("keep", [0, 7, 8, 20, -1])
def test_a_file_that_is_cut_at_any_place_is_told(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    write(path, "a")
    path.write_bytes(path.read_bytes()[:keep])
    (found,) = said(tmp_path)
    assert found.startswith("model.name_or_path: model.safetensors is ")
    assert "fix: copy the file again" in found


def test_bytes_too_many_and_a_header_that_is_none_are_told(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write(path, "a")
    whole = path.read_bytes()
    path.write_bytes(whole + b"more")
    assert "is too long" in said(tmp_path)[0]
    path.write_bytes(whole[:8] + b"[" + whole[9:])
    assert "its safetensors header cannot be read" in said(tmp_path)[0]


def test_shards_are_whole_or_each_is_told(shards: Path) -> None:
    assert said(shards) == []
    write(shards / "one.safetensors", "a")
    (shards / "two.safetensors").unlink()
    one, two = said(shards)
    assert "one.safetensors lacks 1 weights of its index, e.g. b" in one
    assert "two.safetensors is missing, and model.safetensors.index.json names it" in two


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_told(shards: Path, text: str) -> None:
    (shards / "model.safetensors.index.json").write_text(text)
    (found,) = said(shards)
    assert "model.safetensors.index.json is no index of weights" in found


def test_files_of_torch_save_must_only_be_there(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"")
    assert "pytorch_model.bin is empty" in said(tmp_path)[0]
    path.write_bytes(b"some")
    assert said(tmp_path) == []
