"""The tiny random model and the small tokenizer; the cached model's stamp."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mtlcore.demo import build_data, model
from mtlcore.demo.tiny import TOKENIZER, make_tiny_model
from mtlcore.errors import UserError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def test_tokenizer_gives_every_row_back() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    assert len(tokenizer) <= 1000
    assert sum(file.stat().st_size for file in TOKENIZER.iterdir()) <= 60_000
    for file in sorted((TOKENIZER.parent / "data").rglob("dev.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            for value in map(str, json.loads(line).values()):
                assert tokenizer.decode(tokenizer(value)["input_ids"]) == value
    text = " two  spaces\n\ttab, œuvre, 日本 😀"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_tokenizer_has_its_special_tokens_and_adds_none_by_itself() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    special = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert len(special) == 3
    assert None not in special
    assert not special & set(tokenizer("a word")["input_ids"])
    assert tokenizer("a<|eos|>")["input_ids"][-1] == tokenizer.eos_token_id


def test_tiny_model_loads_and_answers(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tiny_model = AutoModelForCausalLM.from_pretrained(tiny)
    assert tiny_model.dtype == torch.float32
    assert tiny_model.config.vocab_size == len(tokenizer)
    assert tiny_model.num_parameters() < 200_000
    inputs = tokenizer("Translate to French:", return_tensors="pt")
    logits = tiny_model(**inputs).logits  # [1, tokens, V]
    assert logits.shape == (1, inputs["input_ids"].shape[1], len(tokenizer))
    assert torch.isfinite(logits).all()


def test_same_seed_same_weights_and_the_global_generator_is_left_alone(
    tiny: Path, tmp_path: Path
) -> None:
    before = torch.random.get_rng_state()
    again = make_tiny_model(tmp_path / "again")
    other = make_tiny_model(tmp_path / "other", seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tiny, again, other)]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_tokenizer_training_is_deterministic(tmp_path: Path) -> None:
    rows = [{"id": str(number), "text": f"some words, number {number}"} for number in range(50)]
    for name in ("one", "two"):
        build_data.train_tokenizer(rows, tmp_path / name, vocabulary=300)
    one, two = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_model_folder_is_complete_only_with_its_stamp_and_all_bytes(tmp_path: Path) -> None:
    assert not model.is_complete(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    stamp = {
        "layout": model.LAYOUT,
        "gguf_sha256": model.GGUF_SHA256,
        "sizes": {"model.safetensors": 4},
    }
    (tmp_path / model.STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    assert model.is_complete(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"12")
    assert not model.is_complete(tmp_path)
    (tmp_path / model.STAMP).write_text("[]", encoding="utf-8")
    assert not model.is_complete(tmp_path)


def test_a_ready_model_is_returned_without_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "is_complete", lambda folder: True)
    said: list[str] = []
    assert model.fetch_model(said.append, cache=tmp_path) == tmp_path / "models" / model.FOLDER
    assert said == []
    assert list(tmp_path.iterdir()) == []


def test_missing_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = model.importlib.util.find_spec
    monkeypatch.setattr(
        model.importlib.util, "find_spec", lambda name: None if name == "gguf" else find_spec(name)
    )
    with pytest.raises(UserError, match=r"not installed: gguf\n.*mtlcore\[demo\]"):
        model.fetch_model(cache=tmp_path)
