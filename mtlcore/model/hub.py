"""Whether the hub can be reached: its own library tries for the most part of a minute."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit
from urllib.request import getproxies

from mtlcore.cache import cache_folder
from mtlcore.errors import UserError

TRIES, PAUSE, TIMEOUT = 2, 1.0, 5.0
"""Seconds between the tries and of each; a download has no such limit."""
FIX = (
    "give a folder made by save_pretrained (of model and tokenizer), or the name of a model on the "
    "hub that this machine can reach"
)


def require_reachable(name: str, revision: str | None) -> None:
    """Refuse a model that must come from the hub if no connection to it can be opened."""
    from huggingface_hub import constants, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE or getproxies():  # it tells at once, or knows another way
        return
    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return
    except ValueError:  # no name of a model: transformers says what it may be
        return
    hub = urlsplit(constants.ENDPOINT)
    place = hub.hostname or "", hub.port or (80 if hub.scheme == "http" else 443)
    for attempt in range(TRIES):
        try:
            socket.create_connection(place, TIMEOUT).close()
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            return
        if attempt + 1 < TRIES:
            time.sleep(PAUSE)
    kept = sorted(config.parent for config in (cache_folder() / "models").glob("*/config.json"))
    raise UserError(
        f"{name!r} is no folder here, and the hub {constants.ENDPOINT} cannot be reached: {reason}",
        where="model.name_or_path",
        fix=FIX + (f"; here is {', '.join(map(str, kept))}" if kept else ""),
    )
