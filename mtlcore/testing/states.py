"""What a component's state may hold, and whether it stays what it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from safetensors.torch import load, save
from torch import Tensor

from mtlcore.testing.trial import NotConformant

if TYPE_CHECKING:
    from mtlcore.components import Component

State = dict[str, Any]
JSON = "JSON makes lists of tuples, and texts of the keys of a dict"


def first_difference(found: Any, expected: Any, path: str = "") -> str | None:
    """Where two states or plans differ first, in words; None if they are the same bits."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for key in [*expected, *(key for key in found if key not in expected)]:
            if key not in found or key not in expected:
                return f"{path}[{key!r}] is " + ("missing" if key not in found else "too much")
            if difference := first_difference(found[key], expected[key], f"{path}[{key!r}]"):
                return difference
        return None
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple):
        for place, (one, other) in enumerate(zip(found, expected, strict=False)):
            if difference := first_difference(one, other, f"{path}[{place}]"):
                return difference
        if len(found) != len(expected):
            return f"{path} has {len(found)} items, not {len(expected)}"
        return None
    if isinstance(found, Tensor) and isinstance(expected, Tensor):
        return _tensor_difference(found, expected, path)
    both_nan = found != found and expected != expected
    return None if both_nan or found == expected else f"{path} is {found!r}, not {expected!r}"


def _tensor_difference(found: Tensor, expected: Tensor, path: str) -> str | None:
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return (
            f"{path} is {found.dtype} {list(found.shape)}, "
            f"not {expected.dtype} {list(expected.shape)}"
        )
    other = (found != expected) & ~(found.isnan() & expected.isnan())
    if not other.any():
        return None
    place = other.nonzero()[0].tolist()
    at = tuple(place)
    return f"{path}{place} is {found[at].item()!r}, not {expected[at].item()!r}"


def through_files(cls: type[Component], state: Mapping[str, Any]) -> State:
    """The state as a checkpoint gives it back: tensors of safetensors, the rest of JSON."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items() if isinstance(v, Tensor)}
    values = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise NotConformant(
                cls, f"state_dict has the key {name!r}", fix="use text for the names of its parts"
            )
        if not isinstance(value, Tensor):
            values[name] = _through_json(cls, name, value)
    return {**values, **load(save(tensors))}


def _through_json(cls: type[Component], name: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise NotConformant(
            cls,
            f"state_dict()[{name!r}] cannot be saved: {error}",
            fix="return tensors, or what JSON holds (numbers, text, lists, dicts with text as "
            "keys); a tensor within a list or dict needs a name of its own in state_dict",
        ) from error


class StateWatch:
    """Looks at the state of one component after every step."""

    def __init__(self, cls: type[Component], component: Component) -> None:
        self.cls, self.component = cls, component
        self._before: tuple[str, State, State] | None = None

    def look(self, when: str) -> State:
        """The state of now, through files; what was returned before must not have changed."""
        if self._before is not None:
            moment, given, copied = self._before
            if difference := first_difference(given, copied, "state_dict()"):
                raise NotConformant(
                    self.cls,
                    f"the state returned {moment} had changed {when}: {difference}",
                    fix="return copies in state_dict (tensor.clone(), dict(...), "
                    "copy.deepcopy(...)): the component goes on writing into what it returned",
                )
        given = self.component.state_dict()
        found = through_files(self.cls, given)
        self._before = (when, given, copy.deepcopy(given))
        return found


def load_state(cls: type[Component], component: Component, state: Mapping[str, Any]) -> None:
    """Give a component its state; an empty one is that of a checkpoint from before it had any."""
    try:
        component.load_state_dict(state)
    except Exception as error:  # whatever the component raises is the finding
        fix = (
            f"take what state_dict returned as it comes out of a file: {JSON}"
            if state
            else "read the state with state.get(name, default): a checkpoint that was written "
            "before the component had state holds nothing of it"
        )
        raise NotConformant(
            cls,
            f"load_state_dict of {parts_of(state)} raised {type(error).__name__}: {error}",
            fix=fix,
        ) from error


def parts_of(state: Mapping[str, Any]) -> str:
    """The names in a state, in words."""
    return ", ".join(map(repr, state)) or "nothing ({})"
