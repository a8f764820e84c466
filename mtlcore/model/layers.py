"""What every layer with adapter weights has in common, whatever their family."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from mtlcore.arena import Sink
    from mtlcore.model.layout import Adapter, AdapterPlan, Layout, Routing


class AdapterLayer(nn.Module):
    """Adapters in one place of the network; their weights are found by adapter and by factor.

    `factors` name the weights of one adapter in that place, e.g. ("lora_A", "lora_B"); each is a
    ParameterDict by the adapter's name. `adapters` are those of the layout that lie here, `places`
    their positions in the layout. Backward passes give the gradients of factor f of adapter a to
    the sink as ``sink.add(layer, a, f, ...)``, with a counted in `adapters`.
    """

    factors: ClassVar[tuple[str, ...]]
    adapters: tuple[Adapter, ...]
    places: tuple[int, ...]

    def __init__(self, routing: Routing, name: str, family: str) -> None:
        super().__init__()
        self.routing = routing
        self.name = name
        here = [
            (place, adapter)
            for place, adapter in enumerate(routing.layout.adapters)
            if adapter.family == family and adapter.lies_in(name)
        ]
        self.places = tuple(place for place, _ in here)
        self.adapters = tuple(adapter for _, adapter in here)
        for factor in self.factors:
            self.add_module(factor, nn.ParameterDict())

    @property
    def layout(self) -> Layout:
        return self.routing.layout

    def parameter(self, adapter: int, factor: int) -> nn.Parameter:
        """One weight: `adapter` counts in `adapters`, `factor` in `factors`."""
        found: nn.Parameter = getattr(self, self.factors[factor])[self.adapters[adapter].name]
        return found

    def sink(self) -> Sink:
        """The sink of the backward pass that is running."""
        sink = self.routing.sink
        if sink is None:
            raise RuntimeError(
                "the sink of this forward pass is gone: set Routing.sink before the forward and "
                "keep it until the backward, or leave it None for ordinary autograd"
            )
        return sink

    def _set(self, adapter: Adapter, values: Iterable[Tensor]) -> None:
        """Make the weights of one adapter from its start values, one per factor."""
        for factor, value in zip(self.factors, values, strict=True):
            getattr(self, factor)[adapter.name] = nn.Parameter(
                value, requires_grad=not adapter.frozen
            )

    def _weights(self) -> list[Tensor]:
        """All weights, adapter by adapter, in the order of `factors`."""
        factors = [getattr(self, factor) for factor in self.factors]
        return [factor[adapter.name] for adapter in self.adapters for factor in factors]

    def _plans(self, tokens: int) -> tuple[AdapterPlan, ...]:
        plans = self.routing.plans(tokens)
        return tuple([plans[place] for place in self.places])


class Weight(NamedTuple):
    """One adapter weight of the model: where it lies, whose it is, and its name in checkpoints."""

    layer: AdapterLayer
    adapter: int
    factor: int
    key: str

    @property
    def owner(self) -> Adapter:
        """The adapter that it is part of."""
        return self.layer.adapters[self.adapter]

    @property
    def parameter(self) -> nn.Parameter:
        return self.layer.parameter(self.adapter, self.factor)


def weights_of(layers: Iterable[AdapterLayer]) -> Iterator[Weight]:
    """Every adapter weight, with its name ``<module>.<factor>.<adapter>``."""
    for layer in layers:
        for index, adapter in enumerate(layer.adapters):
            for number, factor in enumerate(layer.factors):
                yield Weight(layer, index, number, f"{layer.name}.{factor}.{adapter.name}")
