"""A hub that cannot be reached is told within seconds, and nobody else is kept waiting."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from mtlcore.errors import UserError
from mtlcore.model import hub
from mtlcore.recipe import ModelRecipe
from mtlcore.run import tokenizer_of

MODEL = ModelRecipe(name_or_path="nobody/nothing")


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a hub that nobody listens at, yet."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        number = taken.getsockname()[1]
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{number}")
        monkeypatch.setattr(hub, "PAUSE", 0.1)
        yield number


def test_a_hub_that_cannot_be_reached_is_told_at_once(port: int) -> None:
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        tokenizer_of(MODEL)
    assert time.monotonic() - began < 5
    assert caught.value.problem.where == "model.name_or_path"
    assert f"the hub http://127.0.0.1:{port} cannot be reached: " in str(caught.value)
    assert "fix: give a folder made by save_pretrained" in str(caught.value)


def test_a_model_in_the_cache_is_named(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path)
    kept = tmp_path / "models" / "small"
    kept.mkdir(parents=True)
    (kept / "config.json").touch()
    with pytest.raises(UserError, match=f"; here is {kept}$"):
        tokenizer_of(MODEL)


@pytest.mark.parametrize("way", ["offline", "proxy", "cache", "connection"])
def test_where_the_library_may_find_the_model_it_is_asked(
    way: str, port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if way == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    if way == "proxy":
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    if way == "cache":
        monkeypatch.setattr(
            huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path)
        )
    with socket.create_server(("127.0.0.1", 0)) as server:
        if way == "connection":
            endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        hub.require_reachable("nobody/nothing", None)


def test_what_is_no_name_of_a_model_is_left_to_the_library(port: int) -> None:
    hub.require_reachable("./nowhere", None)
