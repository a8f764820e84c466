"""Key names of TRL, Axolotl, LLaMA-Factory, Unsloth and swift, each taken with a note."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mtlcore.recipe import LoraRecipe, ModelRecipe, Section, TrainingRecipe, class_at
from mtlcore.recipe_checks import FieldProblem, KeyPath, dotted
from mtlcore.recipe_yaml import Document

# other name -> (section, our name, whose name it is); taken at the top level and in the section
RENAMED: dict[str, tuple[str, str, str]] = {
    "base_model": ("model", "name_or_path", "Axolotl's"),
    "model_name_or_path": ("model", "name_or_path", "TRL's"),
    "model_name": ("model", "name_or_path", "Unsloth's"),
    "model_revision": ("model", "revision", "TRL's"),
    "torch_dtype": ("model", "dtype", "transformers' old"),
    "micro_batch_size": ("training", "per_device_train_batch_size", "Axolotl's"),
    "batch_size": ("training", "per_device_train_batch_size", "another tool's"),
    "eval_batch_size": ("training", "per_device_eval_batch_size", "Axolotl's"),
    "lr": ("training", "learning_rate", "another tool's"),
    "lr_scheduler": ("training", "lr_scheduler_type", "Axolotl's"),
    "optimizer": ("training", "optim", "Axolotl's"),
    "num_epochs": ("training", "num_train_epochs", "Axolotl's"),
    "epochs": ("training", "num_train_epochs", "another tool's"),
    "max_seq_length": ("training", "max_length", "Unsloth's"),
    "max_seq_len": ("training", "max_length", "torchtune's"),
    "sequence_len": ("training", "max_length", "Axolotl's"),
    "cutoff_len": ("training", "max_length", "LLaMA-Factory's"),
    "gradient_clipping": ("training", "max_grad_norm", "DeepSpeed's"),
    "lora_r": ("lora", "r", "Axolotl's"),
    "lora_rank": ("lora", "r", "LLaMA-Factory's"),
    "lora_target": ("lora", "target_modules", "LLaMA-Factory's"),
    "lora_target_modules": ("lora", "target_modules", "Axolotl's"),
    "lora_target_linear": ("lora", "target_modules", "Axolotl's"),
}
# names that mean this only inside their section
RENAMED_INSIDE: dict[str, dict[str, tuple[str, str]]] = {
    "lora": {
        "rank": ("r", "another tool's"),
        "alpha": ("lora_alpha", "another tool's"),
        "dropout": ("lora_dropout", "another tool's"),
        "target": ("target_modules", "another tool's"),
    },
    "tasks": {
        "max_samples": ("max_rows", "LLaMA-Factory's"),
        "num_samples": ("max_rows", "LLaMA-Factory's"),
        "weight": ("loss_weight", "another tool's"),
        "evaluators": ("metrics", "another tool's"),
    },
}
# settings of a task that other tools have once for all; ours may stand at the top level, too
FOR_ALL_TASKS = ("overlong", "on_bad_row")
RENAMED_TASK_WIDE: dict[str, tuple[str, str]] = {
    "excess_length_strategy": ("overlong", "Axolotl's"),
    "truncation_strategy": ("overlong", "swift's"),
    "truncation_mode": ("overlong", "TRL's"),
    "skip_invalid_samples": ("on_bad_row", "another tool's"),
}
# what is so anyway: name -> (the accepted values, why)
ALREADY_SO: dict[str, tuple[tuple[Any, ...], str]] = {
    "train_on_inputs": ((False,), "only answers are learned"),
    "train_on_prompt": ((False,), "only answers are learned"),
    "train_on_completions": ((True,), "only answers are learned"),
    "completion_only_loss": ((True,), "only answers are learned"),
    "padding_free": ((True,), "batches have no padding"),
    "adapter": (("lora",), "LoRA is what is trained"),
    "peft_type": (("LORA", "lora"), "LoRA is what is trained"),
    "finetuning_type": (("lora",), "LoRA is what is trained"),
    "eval_strategy": (("steps", "no"), "eval_steps alone decides"),
    "evaluation_strategy": (("steps", "no"), "eval_steps alone decides"),
    "save_strategy": (("steps", "no"), "save_steps alone decides"),
}
_STEPS = "say it in steps: eval_steps, save_steps"
_MIXING = "how tasks are mixed is said by `sampling`"
# name -> what to do instead
NOT_YET: dict[str, str] = {
    "load_in_4bit": "a quantized base model cannot be loaded; use `model: {dtype: bfloat16}`",
    "load_in_8bit": "a quantized base model cannot be loaded; use `model: {dtype: bfloat16}`",
    "quantization_bit": "a quantized base model cannot be loaded",
    "deepspeed": "remove it",
    "fsdp": "remove it",
    "fsdp_config": "remove it",
    "packing": "remove it: batches have no padding anyway",
    "sample_packing": "remove it: batches have no padding anyway",
    "neat_packing": "remove it: batches have no padding anyway",
    "eval_packing": "remove it: batches have no padding anyway",
    "use_dora": "use plain LoRA, or `use_rslora: true`",
    "modules_to_save": "only adapters are trained",
    "lora_modules_to_save": "only adapters are trained",
    "rank_pattern": "one rank for all layers: lora.r or sharing",
    "alpha_pattern": "one alpha for all layers: lora.lora_alpha",
    "layers_to_transform": "use a regular expression in lora.target_modules",
    "fp16": "use `bf16: true`",
    "tf32": "remove it",
    "torch_compile": "remove it",
    "neftune_noise_alpha": "remove it",
    "group_by_length": "remove it: batches have no padding anyway",
    "assistant_only_loss": "the format messages learns answers only (`train_on: all` or `last`)",
    "evals_per_epoch": _STEPS,
    "saves_per_epoch": _STEPS,
    "interleave_probs": _MIXING,
    "interleave_prob": _MIXING,
    "mix_strategy": _MIXING,
    "stopping_strategy": _MIXING,
    "resume_from_checkpoint": "say it on the command line: mtlcore train RECIPE --resume",
    "auto_resume_from_checkpoints": "say it on the command line: mtlcore train RECIPE --resume",
    "push_to_hub": "upload the exported folder yourself",
}


def _overlong(value: Any) -> Any:
    words = {"delete": "drop", "left": "truncate", "keep_end": "truncate", "raise": "error"}
    return words.get(value, value) if isinstance(value, str) else value


def _target_modules(value: Any) -> Any:
    """LLaMA-Factory writes `all` and `q_proj,v_proj`; Axolotl has a switch for all linears."""
    if value is True or value == "all":
        return "all-linear"
    if isinstance(value, str) and value != "all-linear" and re.fullmatch(r"[\w\s,]+", value):
        return [name.strip() for name in value.split(",") if name.strip()]
    return value


CONVERTED: dict[str, Callable[[Any], Any]] = {
    "excess_length_strategy": _overlong,
    "truncation_strategy": _overlong,
    "truncation_mode": _overlong,
    "skip_invalid_samples": lambda value: "skip" if value is True else "error",
    "lora_target": _target_modules,
    "lora_target_linear": _target_modules,
}
FLAT_SECTIONS: dict[str, type[Section]] = {
    "training": TrainingRecipe,
    "model": ModelRecipe,
    "lora": LoraRecipe,
}


class Translator:
    """Turns one file's mapping into our key names, in place; tells notes and problems."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.notes: list[str] = []
        self.problems: list[FieldProblem] = []

    def translate(self) -> None:
        data = self.document.data
        if isinstance(data.get("model"), str):
            data["model"] = {"name_or_path": data["model"]}
            self.document.move(("model",), ("model", "name_or_path"))
            self._note(("model", "name_or_path"), "`model: ...` is short for `model.name_or_path`")
        self._section(())
        for section in FLAT_SECTIONS:
            if isinstance(data.get(section), dict):
                self._section((section,))
        if isinstance(data.get("tasks"), dict):
            for task, recipe in data["tasks"].items():
                if isinstance(recipe, dict):
                    self._section(("tasks", task))
        self._optimizer()

    def _section(self, path: KeyPath) -> None:
        """Translate the keys of one mapping."""
        section = self._mapping(path)
        fields = class_at(path).model_fields
        for key in list(section):
            if key in fields:
                continue
            if key in NOT_YET:
                self._not_yet(path, key, section.pop(key))
            elif key in ALREADY_SO:
                self._already_so(path, key, section.pop(key))
            elif target := _our_name(path, key):
                self._rename(path, key, *target)

    def _not_yet(self, path: KeyPath, key: str, value: Any) -> None:
        if value is None or value is False:
            self._note((*path, key), f"`{key}` is off, which is so anyway")
        else:
            self._problem((*path, key), f"`{key}` is not supported yet", NOT_YET[key])

    def _already_so(self, path: KeyPath, key: str, value: Any) -> None:
        accepted, reason = ALREADY_SO[key]
        if value in accepted:
            self._note((*path, key), f"`{key}: {_yaml_word(value)}` changes nothing: {reason}")
        else:
            message = f"`{key}: {_yaml_word(value)}` is not supported yet"
            self._problem((*path, key), message, f"remove it: {reason}")

    def _rename(self, path: KeyPath, key: str, new: KeyPath, owner: str) -> None:
        parent = self._mapping(path)
        target = self._mapping(new[:-1])
        old, value = (*path, key), parent.pop(key)
        if key == "lora_target_linear" and not value:
            self._note(old, f"`{key}` is off: lora.target_modules says which layers")
            return
        if new[-1] in target:
            first = self.document.place(new)
            message = f"`{key}` and `{first.key}` ({first}) are the same setting"
            self._problem(old, message, f"keep `{dotted(new)}`")
            return
        target[str(new[-1])] = CONVERTED.get(key, lambda same: same)(value)
        whose = f"is {owner} name" if owner else "stands at the top level"
        self._note(old, f"`{key}` {whose}; reading it as `{dotted(new)}`")
        self.document.move(old, new)

    def _optimizer(self) -> None:
        training = self.document.data.get("training")
        if isinstance(training, dict) and isinstance(training.get("optim"), str):
            optim = training["optim"]
            if optim != "adamw_torch":
                del training["optim"]
                message = f"the optimizer {optim!r} is not supported yet"
                self._problem(("training", "optim"), message, "use adamw_torch")

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        """The mapping at `path`, made if absent; a value that is no mapping is left alone."""
        mapping: dict[str, Any] = self.document.data
        for part in path:
            found = mapping.setdefault(str(part), {})
            if not isinstance(found, dict):
                return {}
            mapping = found
        return mapping

    def _note(self, path: KeyPath, text: str) -> None:
        self.notes.append(f"{self.document.place(path)}: {text}")

    def _problem(self, path: KeyPath, message: str, fix: str) -> None:
        self.problems.append(FieldProblem(path, message, fix))


def _our_name(path: KeyPath, key: str) -> tuple[KeyPath, str] | None:
    """Our key path for another tool's `key` found in the mapping at `path`, and whose it is."""
    section = str(path[0]) if path else ""
    if key in RENAMED and section in ("", RENAMED[key][0]):
        ours, name, owner = RENAMED[key]
        return (ours, name), owner
    if key in RENAMED_INSIDE.get(section, {}):
        name, owner = RENAMED_INSIDE[section][key]
        return (*path, name), owner
    if key in RENAMED_TASK_WIDE and section in ("", "tasks"):
        name, owner = RENAMED_TASK_WIDE[key]
        return (*path, name), owner
    if not path and key not in ("name_or_path", "r"):  # TRL writes all keys at the top level
        for name, recipe in FLAT_SECTIONS.items():
            if key in recipe.model_fields:
                return (name, key), ""
    return None


def spread_over_tasks(document: Document) -> list[str]:
    """Give `overlong` and `on_bad_row` of the top level to every task that has none."""
    notes: list[str] = []
    for key in FOR_ALL_TASKS:
        if key not in document.data:
            continue
        value, place = document.data.pop(key), document.places[(key,)]
        notes.append(f"{place}: `{key}` at the top level goes to every task that does not set it")
        tasks = document.data.get("tasks")
        for task, recipe in tasks.items() if isinstance(tasks, dict) else ():
            if isinstance(recipe, dict) and key not in recipe:
                recipe[key] = value
                document.places[("tasks", task, key)] = place
    return notes


def _yaml_word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
