"""One Hugging Face causal language model with multi-task adapters in its linear layers."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mtlcore.errors import Problem, RecipeError, UserError, did_you_mean
from mtlcore.losses import Outputs, cross_entropy
from mtlcore.model import attention
from mtlcore.model.bottleneck import Bottleneck
from mtlcore.model.heads import POOLINGS, Heads, PromptStates, TaskFacts
from mtlcore.model.hub import FIX
from mtlcore.model.layers import AdapterLayer, weights_of
from mtlcore.model.layout import Layout, Routing, block_name, block_number, row_segments
from mtlcore.model.lora import MultiTaskLora, finding_packs
from mtlcore.model.output_head import HeadForm, head_form
from mtlcore.ops import sum_by_task, task_cross_entropy
from mtlcore.seeds import generator

if TYPE_CHECKING:
    from mtlcore.data.batches import Batch
    from mtlcore.recipe import BottleneckRecipe, GenerationRecipe, LoraRecipe, ModelRecipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load_backbone(recipe: ModelRecipe, device: torch.device) -> PreTrainedModel:
    """Load the base model: a folder or a hub name. `dtype: auto` is fp32 on CPU, else its own."""
    with _telling(recipe):
        model: Any = AutoModelForCausalLM.from_pretrained(
            recipe.name_or_path,
            revision=recipe.revision,
            dtype=_dtype(recipe, device),
            trust_remote_code=recipe.trust_remote_code,
        )
    loaded: PreTrainedModel = model.to(device)
    return loaded


def empty_backbone(recipe: ModelRecipe, device: torch.device) -> PreTrainedModel:
    """The base model without its weights: by its configuration, on the meta device.

    `device` is where a run would have it, which `dtype: auto` depends on.
    """
    with _telling(recipe), torch.device("meta"):
        config = AutoConfig.from_pretrained(
            recipe.name_or_path,
            revision=recipe.revision,
            trust_remote_code=recipe.trust_remote_code,
        )
        dtype = _dtype(recipe, device)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config,
            dtype=(config.dtype or torch.float32) if dtype == "auto" else dtype,
            trust_remote_code=recipe.trust_remote_code,
        )
    return model


def _dtype(recipe: ModelRecipe, device: torch.device) -> Any:
    return DTYPES.get(recipe.dtype, torch.float32 if device.type == "cpu" else "auto")


@contextmanager
def _telling(recipe: ModelRecipe) -> Iterator[None]:
    """Tell what the library says of a model that it cannot load."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise cannot_load("the model", recipe, error) from error


def cannot_load(what: str, recipe: ModelRecipe, error: Exception) -> UserError:
    """The error of a model, or of its tokenizer, that transformers cannot load."""
    if "trust_remote_code" in str(error) and not recipe.trust_remote_code:
        return UserError(
            f"{recipe.name_or_path!r} comes with Python code of its own, which is not run unasked",
            where="model.trust_remote_code",
            fix="read that code; to run it, with all your rights, write "
            "`model: {trust_remote_code: true}`",
        )
    return UserError(
        f"cannot load {what} {recipe.name_or_path!r}: {_first_line(error)}",
        where="model.name_or_path",
        fix=FIX,
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


class MultiTaskModel(nn.Module):
    """A frozen backbone whose linear layers carry the adapters of a layout.

    `tasks` [T] are facts of each task: dropout, label smoothing, head. `forward(batch)` gives loss
    sums per task. Batches are flat [1, N] where the backbone allows (see `flat`), else padded.
    `keep_pooled` asks for `Outputs.pooled`.

    `layers` are the LoRA layers by module name, `bottlenecks` the layers after such modules,
    `heads` the heads; `adapter_layers` holds them all, in the order of the network.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        layout: Layout,
        lora: LoraRecipe,
        *,
        bottleneck: BottleneckRecipe | None = None,
        tasks: Sequence[TaskFacts] = (),
        keep_pooled: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        facts = tuple(tasks) or (TaskFacts(dropout=lora.lora_dropout),) * len(layout.task_names)
        self.backbone = backbone.requires_grad_(False)
        form = head_form(backbone)
        self._head_form = form if isinstance(form, HeadForm) else None
        self.whole_logits_problem = form if isinstance(form, str) else None
        self.layout = layout
        self.routing = Routing(layout, dropout=tuple(fact.dropout for fact in facts))
        self.smoothing = tuple(fact.smoothing for fact in facts)
        self.keep_pooled = keep_pooled
        self.original_attention = backbone.config._attn_implementation
        self.layers: dict[str, MultiTaskLora] = {}
        self.bottlenecks: dict[str, Bottleneck] = {}
        targets = find_targets(backbone, lora.target_modules) if layout.family("lora") else {}
        after = bottleneck_targets(backbone, bottleneck.target_modules) if bottleneck else {}
        self._check_blocks([*targets, *after])
        head: Any = backbone.get_output_embeddings()
        self.heads = Heads(
            head.weight.shape[1],
            self.routing,
            dict(enumerate(facts)),
            dtype=head.weight.dtype,
            device=head.weight.device,
            generator=functools.partial(generator, seed, "head"),
        )
        for name, module in targets.items():
            self._add_lora(name, module, functools.partial(generator, seed, "lora", name))
        for name, module in after.items():
            assert bottleneck is not None
            self.bottlenecks[name] = Bottleneck(
                self._features(module),
                self.routing,
                name=name,
                non_linearity=bottleneck.non_linearity,
                dtype=module.weight.dtype,
                device=module.weight.device,
                generator=functools.partial(generator, seed, "bottleneck", name),
            )
            backbone.get_submodule(name).register_forward_hook(self.bottlenecks[name].after)
        self._modules_after = nn.ModuleList(self.bottlenecks.values())
        order = {name: place for place, name in enumerate([*targets, *after])}
        if after:
            names = (name.removesuffix(".base") for name, _ in backbone.named_modules())
            order = {name: place for place, name in enumerate(dict.fromkeys(names))}
        found: list[AdapterLayer] = [*self.layers.values(), *self.bottlenecks.values()]
        found.sort(key=lambda layer: order[layer.name])
        self.adapter_layers: tuple[AdapterLayer, ...] = (*found, self.heads)
        self._parameters_of: dict[str, list[nn.Parameter]] = {a.name: [] for a in layout.adapters}
        for weight in weights_of(self.adapter_layers):
            self._parameters_of[weight.owner.name].append(weight.parameter)
        for adapter in layout.adapters:
            if not self._parameters_of[adapter.name]:
                raise UserError(
                    f"no layer has the adapter {adapter.name!r}: its blocks hold no target module",
                    where=adapter.blocks_key,
                    fix="name blocks that lora.target_modules reaches",
                )
        attention.attach(backbone, self.routing)
        self._head_hook = head.register_forward_pre_hook(self._before_head)
        self._wants_hidden = self._wants_logits = False
        self._hidden: Tensor | None = None
        self._labelled: Tensor | None = None
        self.flat = False
        self.flat_problem: str | None = "not tried"

    def _add_lora(self, name: str, module: nn.Linear | Conv1D, start: Any) -> None:
        layer = MultiTaskLora(module, self.routing, name=name, generator=start)
        if layer.adapters:
            parent, _, child = name.rpartition(".")
            setattr(self.backbone.get_submodule(parent), child, layer)
            self.layers[name] = layer

    @staticmethod
    def _features(module: nn.Linear | Conv1D) -> int:
        return int(module.weight.shape[1 if isinstance(module, Conv1D) else 0])

    def _check_blocks(self, names: Sequence[str]) -> None:
        """Blocks that adapters are confined to must exist."""
        blocks = {block_number(name) for name, _ in self.backbone.named_modules()} - {None}
        for adapter in self.layout.adapters:
            odd = [block for block in adapter.blocks or () if block not in blocks]
            if odd or adapter.blocks == ():
                last = max((block for block in blocks if block is not None), default=-1)
                raise UserError(
                    f"the model has no block {odd[0]}" if odd else "the list of blocks is empty",
                    where=adapter.blocks_key,
                    fix=f"its blocks are 0 to {last}; without the key every block is adapted",
                )

    def try_flat(self) -> bool:
        """Use flat batches if the rows of one stay apart in this model; else say why not.

        The passes that find out also show which LoRA layers read one input; those run as one then.
        """
        with finding_packs(self.layers.values()):
            self.flat_problem = attention.rows_stay_apart(self.backbone, self.routing)
        self.flat = self.flat_problem is None
        return self.flat

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every trainable weight, with its name."""
        yield from ((n, p) for n, p in self.backbone.named_parameters() if p.requires_grad)
        for weight in weights_of((*self.bottlenecks.values(), self.heads)):
            if weight.parameter.requires_grad:
                yield weight.key, weight.parameter

    def adapter_parameters(self, adapter: str) -> list[nn.Parameter]:
        """The weights of one adapter (or head) in all layers."""
        return self._parameters_of[adapter]

    def adapter_state(self, owner: int | None = None) -> dict[str, Tensor]:
        """All adapter weights by ``<module>.<factor>.<adapter>``, e.g. ``lora_B`` [r, out].

        With `owner` only those that belong to that one task.
        """
        return {
            weight.key: weight.parameter.detach()
            for weight in weights_of(self.adapter_layers)
            if owner is None or weight.owner.owner == owner
        }

    @torch.no_grad()
    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Set all adapter weights; a name that is missing or left over is an error."""
        self.heads.take_sizes(state)
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

    def forward(
        self,
        batch: Batch,
        *,
        draw: tuple[object, ...] | None = None,
        keep_logits: bool = False,
    ) -> Outputs:
        """One pass over a batch of several tasks -> loss sums [T], counts [T], losses [L + H].

        `draw` is what dropout masks depend on beside layer, task and the token's place in the step,
        e.g. (seed, step). Labels are smoothed in training mode only. The logits [L, V] are made
        piece by piece and dropped, unless `keep_logits` asks for them, or the output head is
        trained or has hooks that must see it run.
        """
        attention.use_attention(
            self.backbone, attention.FLAT if batch.row_lengths else self.original_attention
        )
        self.routing.enter(
            batch.rows,
            batch.row_lengths,
            batch.label_index,
            draw=draw,
            true_lengths=batch.true_lengths,
            row_starts=batch.row_starts,
        )
        head: Any = self.backbone.get_output_embeddings()
        self._wants_hidden = self.keep_pooled or bool(batch.head_rows)
        self._wants_logits = keep_logits or self._head_form is None or self._is_touched(head)
        logits = self.backbone(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
            use_cache=False,  # with a cache, packed rows silently see each other
        ).logits[0]  # [L, V], or [0, V] if the loss is taken in pieces
        hidden, self._hidden = self._hidden, None
        labelled, self._labelled = self._labelled, None
        pooled: Tensor | None = None
        head_logits: list[Tensor] = []
        if hidden is not None:
            states = PromptStates(hidden, batch)
            pooled = states.mean if self.keep_pooled else None
            head_logits = self._head_logits(states, batch)
        tokens = logits if labelled is None else labelled
        losses, sums = self._losses(tokens, head_logits, batch)
        return Outputs(
            sums,
            batch.counts,
            losses,
            pooled,
            tuple(head_logits),
            logits if keep_logits else None,
        )

    def _losses(
        self, tokens: Tensor, head_logits: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Losses [L + H] of the tokens and the head segments' rows, smoothed in training; sums [T].

        tokens: the logits [L, V] of the labelled tokens or, to be taken in pieces, their hidden
        states [L, d].
        """
        count = len(batch.counts)
        label_tasks, head_tasks = batch.label_tasks.tensor_split([len(batch.labels)])
        smoothing = None
        if self.training and any(self.smoothing):
            smoothing = torch.tensor(self.smoothing, dtype=torch.float64, device=tokens.device)
        if self._wants_logits:
            shares = None if smoothing is None else smoothing[label_tasks]
            losses = cross_entropy(tokens, batch.labels, shares)
            sums = sum_by_task(losses, label_tasks, count)
        else:
            assert self._head_form is not None
            head: Any = self.backbone.get_output_embeddings()
            losses, sums = task_cross_entropy(
                tokens, head.weight, batch.labels, label_tasks, count,
                bias=head.bias, smoothing=smoothing, **self._head_form._asdict(),
            )  # fmt: skip
        if batch.head_labels is None:
            return losses, sums
        sizes = [len(part) for part in head_logits]
        shares_of = [None] * len(sizes) if smoothing is None else smoothing[head_tasks].split(sizes)
        labels = batch.head_labels.split(sizes)
        of_heads = torch.cat(list(map(cross_entropy, head_logits, labels, shares_of)))
        return torch.cat([losses, of_heads]), sums + sum_by_task(of_heads, head_tasks, count)

    def _head_logits(self, states: PromptStates, batch: Batch) -> list[Tensor]:
        """Logits [n, options] of each segment that a head answers, in the order of the rows."""
        found: list[Tensor] = []
        for task, start, stop in batch.rows:
            rows = [row for row in batch.head_rows if start <= row < stop]
            if rows:
                pooling = self.heads.facts[task].head
                assert pooling is not None
                found.append(self.heads(POOLINGS[pooling](states)[rows], task))
        return found

    def _is_touched(self, head: nn.Module) -> bool:
        """Whether the output head is trained or has hooks of others: then it must run whole."""
        hooks = [
            *head._forward_hooks,
            *head._backward_hooks,
            *head._backward_pre_hooks,
            *(key for key in head._forward_pre_hooks if key != self._head_hook.id),
        ]
        return bool(hooks) or any(p.requires_grad for p in head.parameters())

    def _before_head(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Before the output head: keep the hidden states whose logits are wanted, [1, L, d]."""
        hidden = args[0]
        if self._wants_hidden:
            self._hidden, self._wants_hidden = hidden, False
        if self.routing.label_index is None:
            return None
        labelled = hidden.reshape(1, -1, hidden.shape[-1])[:, self.routing.label_index]
        if not self._wants_logits:
            self._labelled, labelled = labelled[0], labelled[:, :0]
        return (labelled, *args[1:])

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
        for task in tasks:
            if task in self.heads:
                name = self.layout.task_names[task]
                raise UserError(
                    f"task {name!r} is answered by its head, which chooses an option and writes "
                    "no text",
                    where=f"tasks.{name}.head",
                    fix="score it with `mtlcore evaluate`, or train it without a head",
                )
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


def bottleneck_targets(
    backbone: PreTrainedModel, target_modules: str | list[str]
) -> dict[str, nn.Linear | Conv1D]:
    """The layers that a bottleneck follows: "last-linear" of each block, or as `find_targets`."""
    where = "bottleneck.target_modules"
    if target_modules != "last-linear":
        return find_targets(backbone, target_modules, where)
    linear = find_targets(backbone, "all-linear", where)
    last = {block_name(n): n for n in linear if block_number(n) is not None}
    if not last:
        raise UserError(
            "the model has no numbered blocks", where=where, fix="name the layers in a list"
        )
    return {name: linear[name] for name in last.values()}


def find_targets(
    backbone: PreTrainedModel,
    target_modules: str | list[str],
    where: str = "lora.target_modules",
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
        _require_pattern(target_modules, where)
        found = {name: m for name, m in linear.items() if re.fullmatch(target_modules, name)}
    else:
        missing = [t for t in target_modules if not any(_ends_with(n, t) for n in linear)]
        if missing:
            ends = sorted({name.rpartition(".")[2] for name in linear})
            raise RecipeError(
                Problem(
                    where,
                    f"the model has no linear layer {target!r}",
                    f"{did_you_mean(target, ends)} (linear layers: {', '.join(ends)})",
                )
                for target in missing
            )
        found = {n: m for n, m in linear.items() if any(_ends_with(n, t) for t in target_modules)}
    if not found:
        ends = sorted({name.rpartition(".")[2] for name in linear})
        raise UserError(
            f"no linear layer of the model matches {target_modules!r}",
            where=where,
            fix=f"its linear layers are {', '.join(ends)}",
        )
    return found


def _require_pattern(pattern: str, where: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"{pattern!r} is not a regular expression: {error}",
            where=where,
            fix="a text is a regular expression; for layers by name give a list, e.g. [q_proj]",
        ) from None


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
