"""One Hugging Face causal language model with multi-task adapters in its linear layers."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mtlcore.errors import UserError, did_you_mean
from mtlcore.losses import Outputs, task_losses
from mtlcore.model import attention
from mtlcore.model.layout import Layout, Routing, row_segments
from mtlcore.model.lora import MultiTaskLora
from mtlcore.seeds import generator

if TYPE_CHECKING:
    from mtlcore.data.batches import Batch
    from mtlcore.recipe import GenerationRecipe, LoraRecipe, ModelRecipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load_backbone(recipe: ModelRecipe, device: torch.device) -> PreTrainedModel:
    """Load the base model: a folder or a hub name. `dtype: auto` is fp32 on CPU, else its own."""
    dtype: Any = DTYPES.get(recipe.dtype, torch.float32 if device.type == "cpu" else "auto")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            recipe.name_or_path,
            revision=recipe.revision,
            dtype=dtype,
            trust_remote_code=recipe.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load the model {recipe.name_or_path!r}: {_first_line(error)}",
            where="model.name_or_path",
            fix="give a folder made by save_pretrained, or the name of a model on the hub "
            "that this machine can reach",
        ) from error
    loaded: PreTrainedModel = model.to(device)
    return loaded


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


class MultiTaskModel(nn.Module):
    """A frozen backbone whose linear layers carry the adapters of a layout.

    `forward(batch)` gives token-loss sums per task. Batches are flat [1, N] where the backbone
    allows (see `flat`), else padded.
    """

    def __init__(
        self, backbone: PreTrainedModel, layout: Layout, lora: LoraRecipe, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.layout = layout
        self.routing = Routing(layout)
        self.original_attention = backbone.config._attn_implementation
        self.layers: dict[str, MultiTaskLora] = {}
        for name, module in find_targets(backbone, lora.target_modules).items():
            layer = MultiTaskLora(
                module,
                self.routing,
                dropout=lora.lora_dropout,
                generator=functools.partial(generator, seed, "lora", name),
            )
            parent, _, child = name.rpartition(".")
            setattr(backbone.get_submodule(parent), child, layer)
            self.layers[name] = layer
        attention.attach(backbone, self.routing)
        head = backbone.get_output_embeddings()
        head.register_forward_pre_hook(self._labelled_only)
        self.flat = False
        self.flat_problem: str | None = "not tried"

    def try_flat(self) -> bool:
        """Use flat batches if the rows of one stay apart in this model; else say why not."""
        self.flat_problem = attention.rows_stay_apart(self.backbone, self.routing)
        self.flat = self.flat_problem is None
        return self.flat

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every trainable weight, with its name."""
        return ((n, p) for n, p in self.backbone.named_parameters() if p.requires_grad)

    def adapter_parameters(self, adapter: str) -> list[nn.Parameter]:
        """The weights of one adapter in all layers."""
        return [f[adapter] for layer in self.layers.values() for f in (layer.lora_A, layer.lora_B)]

    def adapter_state(self) -> dict[str, Tensor]:
        """All adapter weights by ``<module>.lora_A.<adapter>`` / ``lora_B`` (B is [r, out])."""
        return {
            f"{name}.{factor}.{adapter}": parameter.detach()
            for name, layer in self.layers.items()
            for factor in ("lora_A", "lora_B")
            for adapter, parameter in getattr(layer, factor).items()
        }

    @torch.no_grad()
    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Set all adapter weights; a name that is missing or left over is an error."""
        own = self.adapter_state()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())
            raise UserError(
                f"the adapters do not fit this model: {len(odd)} names differ, e.g. {odd[0]!r}",
                fix="use the recipe and the base model that the adapters were trained with",
            )
        for name, parameter in own.items():
            if parameter.shape != state[name].shape:
                raise UserError(
                    f"{name} is {list(state[name].shape)}, this model has {list(parameter.shape)}",
                    fix="use the recipe and the base model that the adapters were trained with",
                )
            parameter.copy_(state[name])

    def forward(self, batch: Batch) -> Outputs:
        """One pass over a batch of several tasks -> loss sums [T], counts [T], token losses [L]."""
        attention.use_attention(
            self.backbone, attention.FLAT if batch.row_lengths else self.original_attention
        )
        self.routing.enter(batch.rows, batch.row_lengths, batch.label_index)
        logits = self.backbone(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
            use_cache=False,  # with a cache, packed rows silently see each other
        ).logits  # [1, L, V]
        return task_losses(logits[0], batch)

    def _labelled_only(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Before the head: keep the hidden states whose logits are wanted, [1, L, d]."""
        if self.routing.label_index is None:
            return None
        hidden = args[0]
        return (hidden.reshape(1, -1, hidden.shape[-1])[:, self.routing.label_index], *args[1:])

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tasks: Sequence[int],
        options: GenerationRecipe,
        *,
        pad_token_id: int,
        eos_token_id: int | None,
    ) -> list[list[int]]:
        """Continue prompts of one or several tasks in one batch (`SHARED_ONLY` = no task).

        Returns the new token ids of each prompt, without the end token, in the order given.
        Prompts are padded on the left; sampling draws from torch's global generator.
        """
        order = sorted(range(len(prompts)), key=lambda i: tasks[i])
        width = max(len(prompt) for prompt in prompts)
        ids = [[pad_token_id] * (width - len(prompts[i])) + list(prompts[i]) for i in order]
        mask = [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in order]
        backbone: Any = self.backbone
        with self._generating(row_segments([tasks[i] for i in order])):
            sampling = (
                {"temperature": options.temperature, "top_p": options.top_p}
                if options.do_sample
                else {"temperature": None, "top_p": None, "top_k": None}
            )
            found = backbone.generate(
                input_ids=torch.tensor(ids, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                max_new_tokens=options.max_new_tokens,
                do_sample=options.do_sample,
                num_beams=options.num_beams,
                pad_token_id=pad_token_id,
                eos_token_id=eos_token_id,
                **sampling,
            )[:, width:].tolist()
        outputs: list[list[int]] = [[] for _ in prompts]
        for place, new in zip(order, found, strict=True):
            end = new.index(eos_token_id) if eos_token_id in new else len(new)
            outputs[place] = new[:end]
        return outputs

    @contextmanager
    def _generating(self, rows: Sequence[Any]) -> Iterator[None]:
        """The state of plain generation: the model's own attention and every position's logits."""
        was_training = self.training
        self.eval()
        attention.use_attention(self.backbone, self.original_attention)
        self.routing.enter(rows, None)
        try:
            yield
        finally:
            self.routing.leave()
            self.train(was_training)


def find_targets(
    backbone: PreTrainedModel, target_modules: str | list[str]
) -> dict[str, nn.Linear | Conv1D]:
    """The linear layers to adapt, by name, chosen as PEFT does.

    "all-linear": every one but the output head; another string: a regular expression that must
    match the full name; a list: names, or their last parts.
    """
    head = backbone.get_output_embeddings()
    linear = {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    if target_modules == "all-linear":
        found = linear
    elif isinstance(target_modules, str):
        _require_pattern(target_modules)
        found = {name: m for name, m in linear.items() if re.fullmatch(target_modules, name)}
    else:
        missing = [t for t in target_modules if not any(_ends_with(n, t) for n in linear)]
        if missing:
            ends = sorted({name.rpartition(".")[2] for name in linear})
            raise UserError(
                f"the model has no linear layer {missing[0]!r}",
                where="lora.target_modules",
                fix=f"{did_you_mean(missing[0], ends)} (linear layers: {', '.join(ends)})",
            )
        found = {n: m for n, m in linear.items() if any(_ends_with(n, t) for t in target_modules)}
    if not found:
        ends = sorted({name.rpartition(".")[2] for name in linear})
        raise UserError(
            f"no linear layer of the model matches {target_modules!r}",
            where="lora.target_modules",
            fix=f"its linear layers are {', '.join(ends)}",
        )
    return found


def _require_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"{pattern!r} is not a regular expression: {error}",
            where="lora.target_modules",
            fix="a text is a regular expression; for layers by name give a list, e.g. [q_proj]",
        ) from None


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
