"""Bottleneck adapters of several tasks after one layer, per-task gradients in one backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlcore.model.layers import AdapterLayer

if TYPE_CHECKING:
    from mtlcore.model.layout import AdapterPlan, Routing

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "relu": (F.relu, lambda da, h: da * (h > 0)),
    "gelu": (F.gelu, lambda da, h: torch.ops.aten.gelu_backward(da, h)),
    "silu": (F.silu, lambda da, h: torch.ops.aten.silu_backward(da, h)),
    "tanh": (torch.tanh, lambda da, h: da * (1 - torch.tanh(h).square())),
}
"""Name -> the function, and its backward: (gradient of the output, input) -> of the input."""


class Bottleneck(AdapterLayer):
    """Adapters after a layer: ``y + scale * (act(y Dᵀ + b) U + c)``, summed over the task's.

    Parameter-Efficient Transfer Learning for NLP (Houlsby et al., ICML 2019,
    https://arxiv.org/abs/1902.00751). D [m, d] (`bottleneck_down`), b [m], U [m, d]
    (`bottleneck_up`, the transpose of the up projection), c [d]. The start is the identity: U and
    c are 0, b is 0, D is normal with deviation 0.02.

    Input and output [..., d]. With `routing.sink` set, a backward pass puts the gradients there,
    task by task, and autograd sees none of the weights; else ordinary autograd.
    """

    factors = ("bottleneck_down", "bottleneck_down_bias", "bottleneck_up", "bottleneck_up_bias")

    def __init__(
        self,
        features: int,
        routing: Routing,
        *,
        name: str = "",
        non_linearity: str = "relu",
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        generator: Callable[[str], torch.Generator] | None = None,
    ) -> None:
        super().__init__(routing, name, "bottleneck")
        self.features = features
        self.non_linearity = non_linearity
        dtype = torch.promote_types(dtype, torch.float32)
        for adapter in self.adapters:
            down = torch.empty(adapter.r, features, dtype=dtype)
            nn.init.normal_(
                down, std=0.02, generator=generator(adapter.name) if generator else None
            )
            zeros = [torch.zeros(shape, dtype=dtype) for shape in (adapter.r, down.shape, features)]
            self._set(adapter, [value.to(device) for value in (down, *zeros)])

    def forward(self, y: Tensor) -> Tensor:
        flat = y.reshape(-1, self.features)
        weights = [weight.to(flat.dtype) for weight in self._weights()]
        if self.routing.sink is None and torch.is_grad_enabled():
            return self._plain(flat, weights).view(y.shape)
        apply: Callable[..., Tensor] = _Bottleneck.apply  # torch leaves it untyped
        return apply(flat, self, self._plans(flat.shape[0]), *weights).view(y.shape)

    def after(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        """The forward hook of the layer that it follows."""
        found: Tensor = self(output)
        return found

    def _plain(self, y: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """The specification: every adapter on every token, ordinary autograd."""
        tasks = self.routing.token_tasks(y.shape[0], y.device)
        act = ACTIVATIONS[self.non_linearity][0]
        out = y
        for index, adapter in enumerate(self.adapters):
            down, down_bias, up, up_bias = weights[4 * index : 4 * index + 4]
            serves = [adapter.serves(task) for task in range(len(self.layout.task_names))]
            scale = adapter.scale * torch.tensor([*serves, adapter.shared]).to(y)[tasks]  # [N]
            delta = act(F.linear(y, down, down_bias)) @ up + up_bias
            out = out + delta * scale[:, None]
        return out

    def extra_repr(self) -> str:
        widths = ", ".join(f"{adapter.name}={adapter.r}" for adapter in self.adapters)
        return f"{self.features}, {self.non_linearity}, widths {widths}"


class _Bottleneck(torch.autograd.Function):
    """The adapters by segments; gradients of their weights go to the sink."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        layer: Bottleneck,
        plans: tuple[AdapterPlan, ...],
        *weights: Tensor,
    ) -> Tensor:
        act = ACTIVATIONS[layer.non_linearity][0]
        out = y.clone()
        inner = []  # h = y Dᵀ + b of each run, [n, m]
        for index, (adapter, plan) in enumerate(zip(layer.adapters, plans, strict=True)):
            down, down_bias, up, up_bias = weights[4 * index : 4 * index + 4]
            for start, stop in plan.runs:
                h = torch.addmm(down_bias, y[start:stop], down.t())
                delta = torch.addmm(up_bias, act(h), up)
                out[start:stop].add_(delta, alpha=adapter.scale)
                inner.append(h)
        ctx.layer, ctx.plans = layer, plans
        ctx.save_for_backward(y, *weights, *inner)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        y, *rest = ctx.saved_tensors
        layer = ctx.layer
        sink, adapters = layer.sink(), layer.adapters
        act, act_backward = ACTIVATIONS[layer.non_linearity]
        weights, inner = rest[: 4 * len(adapters)], iter(rest[4 * len(adapters) :])
        dy = dout.clone()
        for index, (adapter, plan) in enumerate(zip(adapters, ctx.plans, strict=True)):
            down, _, up, _ = weights[4 * index : 4 * index + 4]
            segments = iter(plan.segments)
            for start, stop in plan.runs:
                h = next(inner)
                da = (dout[start:stop] @ up.t()).mul_(adapter.scale)
                dh = act_backward(da, h)  # [n, m]
                dy[start:stop].addmm_(dh, down)
                if adapter.frozen:
                    continue
                a = act(h)
                position = start
                while position < stop:
                    task, position, end = next(segments)
                    part = slice(position - start, end - start)
                    mine = dout[position:end]
                    sink.add(layer, index, 0, task, dh[part], y[position:end], 1.0)
                    sink.add(layer, index, 1, task, dh[part], None, 1.0)
                    sink.add(layer, index, 2, task, a[part], mine, adapter.scale)
                    sink.add(layer, index, 3, task, mine, None, adapter.scale)
                    position = end
        return (dy, None, None, *([None] * len(weights)))
