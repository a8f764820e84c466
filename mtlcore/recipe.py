"""The recipe: what one run is, as pydantic models (unknown keys refused, every field described).

Reading YAML, other tools' key names and error texts with line numbers are in `recipe_file.py`;
rules that concern several fields are in `recipe_checks.py`. This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mtlcore.errors import is_quoted_number


def _only_numbers(value: object) -> object:
    """`learning_rate: true` would otherwise be read as 1.0, and `r: "16"` as 16."""
    if isinstance(value, bool) or is_quoted_number(value):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


Int = Annotated[int, BeforeValidator(_only_numbers)]
Float = Annotated[float, BeforeValidator(_only_numbers)]
# The limit stands before the validator, or the JSON schema of a union does not show it.
PositiveInt = Annotated[int, Field(gt=0), BeforeValidator(_only_numbers)]
PositiveFloat = Annotated[float, Field(gt=0), BeforeValidator(_only_numbers)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """Base of all parts of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ComponentSpec(Section):
    """A component by name, then its options: `pcgrad` or `{name: pcgrad, scope: layer}`."""

    name: Text = Field(description="Name of an installed component (`mtlcore plugins list`).")
    options: dict[str, Any] = Field(default={}, description="Keyword arguments of its constructor.")

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: object) -> object:
        """Take the options that stand beside `name` into `options`."""
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict):
            return value
        if not set(value) - {"name", "options"} and isinstance(value.get("options", {}), dict):
            return value
        options = {key: option for key, option in value.items() if key != "name"}
        return {key: value[key] for key in ("name",) if key in value} | {"options": options}

    @model_serializer
    def _to_yaml(self) -> str | dict[str, Any]:
        return {"name": self.name, **self.options} if self.options else self.name


class ModelRecipe(Section):
    """The language model that is fine-tuned; its own weights stay frozen."""

    name_or_path: Text = Field(description="Hub name or local folder of a causal language model.")
    revision: Text | None = Field(default=None, description="Branch, tag or commit on the hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        default="auto", description="Number type of the frozen weights; auto is float32 on a CPU."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with the model."
    )
    attn_implementation: Literal["flat", "padded"] = Field(
        default="flat", description="flat: no padding at all; padded: the model's own attention."
    )


def _path_or_inputs(schema: dict[str, Any]) -> None:
    """Either is enough: `path` is made of `inputs_of`."""
    schema["anyOf"] = [{"required": [key]} for key in ("path", "inputs_of")]
    del schema["required"]


class SourceRecipe(Section):
    """Where rows come from: `data/train.jsonl` or `{path: ..., split: ...}`."""

    model_config = ConfigDict(json_schema_extra=_path_or_inputs)

    path: Text = Field(
        description="A file (jsonl, json, csv, tsv, parquet, txt), a save_to_disk folder or a hub "
        "name."
    )
    name: Text | None = Field(default=None, description="Configuration of a hub data set.")
    split: Text | None = Field(
        default=None, description="Split of a hub data set or of a saved folder."
    )
    revision: Text | None = Field(default=None, description="Branch, tag or commit on the hub.")
    data_files: str | list[str] | None = Field(
        default=None, description="Files inside the folder or hub data set at `path`."
    )
    inputs_of: Literal["all"] | list[str] | None = Field(
        default=None,
        description="In place of a path: the train prompts of these main tasks, in a column text.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("inputs_of") and "path" not in value:
            return {**value, "path": path_of_inputs(value["inputs_of"])}
        return {"path": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _to_yaml(self, handler: SerializerFunctionWrapHandler) -> str | dict[str, Any]:
        given = {key: value for key, value in handler(self).items() if value is not None}
        if self.inputs_of and self.path == path_of_inputs(self.inputs_of):
            del given["path"]
        return self.path if set(given) == {"path"} else given


def path_of_inputs(tasks: object) -> str:
    """What stands for the path of rows that are other tasks' inputs."""
    names = tasks if isinstance(tasks, list) else [tasks]
    return f"inputs of {', '.join(map(str, names))}"


class SplitRecipe(Section):
    """How eval and test rows are taken from `train` when the task names no files for them."""

    eval: Float = Field(
        default=0.1, ge=0, lt=1, description="Share of the rows kept for evaluation."
    )
    test: Float = Field(
        default=0.0, ge=0, lt=1, description="Share of the rows kept for the final test."
    )
    by: Text | None = Field(
        default=None,
        description="Column whose equal values stay together on one side (patient, product).",
    )
    stratify: Text | None = Field(
        default=None, description="Column whose shares are kept on every side."
    )
    seed: Annotated[int, Field(ge=0), BeforeValidator(_only_numbers)] | None = Field(
        default=None, description="Seed of the split; default training.seed."
    )


class GenerationRecipe(Section):
    """How answers are generated when the task is evaluated or asked."""

    max_new_tokens: Int = Field(default=64, gt=0, description="Longest answer in tokens.")
    do_sample: bool = Field(
        default=False, description="Draw tokens; false takes the likeliest one."
    )
    temperature: Float = Field(default=1.0, gt=0, description="Divides the logits when drawing.")
    top_p: Float = Field(
        default=1.0, gt=0, le=1, description="Draw from the likeliest tokens up to this."
    )
    num_beams: Int = Field(default=1, gt=0, description="Beams of beam search; 1 is none.")


class CleaningRecipe(Section):
    """What is done to the rows of a task before they are split; all of it is off by default."""

    unicode: Literal["keep", "NFC", "NFKC"] = Field(
        default="keep", description="Unicode normal form of every text column."
    )
    whitespace: bool = Field(
        default=False, description="Strip texts; make runs of white space one space."
    )
    duplicates: Literal["keep", "drop"] = Field(
        default="keep", description="Rows whose texts and label equal those of an earlier one."
    )
    leakage: Literal["keep", "drop"] = Field(
        default="keep",
        description="Train rows whose texts stand among the eval or test rows too; of an auxiliary "
        "task: among those of any main task.",
    )


class HeadRecipe(Section):
    """What answers the task: `classification`, or `{name: classification, pooling: mean}`."""

    name: Literal["classification"] = Field(
        description="classification: a linear layer of the task's own on pooled hidden states."
    )
    pooling: Literal["last", "mean"] = Field(
        default="last", description="Hidden state of the last prompt token, or the mean of all."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class TaskRecipe(Section):
    """One task: its rows, how they become text, and how it is scored."""

    train: SourceRecipe = Field(description="Rows to learn from.")
    eval: SourceRecipe | None = Field(default=None, description="Rows for scores during training.")
    test: SourceRecipe | None = Field(default=None, description="Rows for the final scores.")
    split: SplitRecipe = Field(
        default=SplitRecipe(), description="Split of `train` without such files."
    )
    format: ComponentSpec = Field(description="How a row becomes prompt and answer.")
    columns: dict[str, str] = Field(
        default={}, description="The format's column names -> the names in your file."
    )
    metrics: list[ComponentSpec] = Field(
        default=[], description="Scores; the first is the primary one."
    )
    loss_weight: Float = Field(
        default=1.0, gt=0, description="Multiplies the task's loss, before all."
    )
    max_share: Float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="At most this share of a step's rows, while other tasks can have the rest.",
    )
    rows: ComponentSpec = Field(
        default=ComponentSpec(name="shuffled"), description="Which rows of the task come next."
    )
    generation: GenerationRecipe = Field(default=GenerationRecipe(), description="How it answers.")
    head: HeadRecipe | None = Field(
        default=None, description="A head of its own; without one the language model answers."
    )
    cleaning: CleaningRecipe = Field(
        default=CleaningRecipe(), description="Normal forms, duplicates and leaked rows."
    )
    lora_dropout: Float | None = Field(
        default=None, ge=0, lt=1, description="Dropout on its rows; default lora.lora_dropout."
    )
    weight_decay: Float | None = Field(
        default=None, ge=0, description="Of its own weights; default training.weight_decay."
    )
    label_smoothing_factor: Float | None = Field(
        default=None, ge=0, lt=1, description="Default training.label_smoothing_factor."
    )
    early_stopping_patience: PositiveInt | None = Field(
        default=None,
        description="Stop this task after so many evaluations without a better score of its own.",
    )
    role: Literal["main", "auxiliary"] = Field(
        default="main", description="auxiliary: learned for the sake of the main tasks."
    )
    overlong: Literal["drop", "truncate", "error"] = Field(
        default="truncate", description="What to do with rows longer than training.max_length."
    )
    on_bad_row: Literal["error", "skip", "warn"] = Field(
        default="error", description="What to do with rows that the format cannot read."
    )
    max_rows: PositiveInt | None = Field(
        default=None, description="Use at most so many rows per split."
    )

    def columns_of_files(self, names: Iterable[str]) -> list[str]:
        """Those of a row's columns that have their name from a file, not from `columns` alone."""
        return [name for name in names if self.columns.get(name, name) == name]


class LoraRecipe(Section):
    """The adapter, in PEFT's words."""

    r: Int = Field(
        default=16,
        gt=0,
        description="Rank; lora_alpha / r is the scale of every adapter, also with `sharing`.",
    )
    lora_alpha: Float = Field(
        default=32.0, gt=0, description="Scale of the adapter's output, times r."
    )
    lora_dropout: Float = Field(
        default=0.0, ge=0, lt=1, description="Dropout on the adapter's input."
    )
    target_modules: str | list[str] = Field(
        default="all-linear",
        description="all-linear, a list of module names, or a regular expression.",
    )
    use_rslora: bool = Field(default=False, description="Scale by lora_alpha / sqrt(r).")


class GroupRecipe(Section):
    """An adapter that several tasks share."""

    tasks: list[str] = Field(min_length=1, description="Names of the member tasks.")
    r: Int = Field(gt=0, description="Rank of the group's adapter.")
    layers_to_transform: list[Int] | None = Field(
        default=None, description="Blocks of the network that have it, from 0; default all."
    )


class SharingRecipe(Section):
    """Which ranks are shared by all tasks, by groups, or belong to one task."""

    shared: Int = Field(default=16, ge=0, description="Rank of the adapter that all tasks share.")
    own: Int = Field(
        default=0, ge=0, description="Rank of the adapter that each task has for itself."
    )
    groups: dict[str, GroupRecipe] = Field(
        default={}, description="Adapters of groups of tasks, by name."
    )
    shared_layers: list[Int] | None = Field(
        default=None, description="Blocks that have the shared adapter, from 0; default all."
    )
    own_layers: list[Int] | None = Field(
        default=None, description="Blocks that have the tasks' own adapters; default all."
    )


class BottleneckRecipe(Section):
    """A second kind of adapter: a small network after chosen layers (Houlsby et al., ICML 2019).

    It is no LoRA: a run that has it cannot be exported to PEFT or merged.
    """

    shared: Int = Field(default=0, ge=0, description="Width of the one that all tasks share.")
    own: Int = Field(default=0, ge=0, description="Width of the one that each task has for itself.")
    non_linearity: Literal["relu", "gelu", "silu", "tanh"] = Field(
        default="relu", description="Between its down and its up projection."
    )
    scaling: Float = Field(default=1.0, gt=0, description="Multiplies what it adds.")
    target_modules: str | list[str] = Field(
        default="last-linear",
        description="last-linear (of each block), a list of module names, or a regular expression.",
    )


class TrainingRecipe(Section):
    """The loop, in the words of `transformers.TrainingArguments`."""

    output_dir: Text | None = Field(
        default=None, description="Run folder; default runs/<recipe name>."
    )
    learning_rate: Float = Field(default=2e-4, gt=0, description="Highest learning rate.")
    max_steps: PositiveInt | None = Field(
        default=None, description="Optimizer steps; wins over epochs."
    )
    num_train_epochs: Float = Field(
        default=1.0, gt=0, description="Passes over the largest main task's rows."
    )
    per_device_train_batch_size: Int = Field(
        default=16, gt=0, description="Rows per pass, all tasks."
    )
    per_device_eval_batch_size: Int = Field(
        default=32, gt=0, description="Rows per pass in evaluation."
    )
    gradient_accumulation_steps: Int = Field(
        default=1, gt=0, description="Passes per optimizer step."
    )
    max_length: Int = Field(
        default=512, gt=1, description="Longest row in tokens, prompt and answer."
    )
    seed: Int = Field(default=0, ge=0, description="Seed of everything that is drawn.")
    weight_decay: Float = Field(default=0.0, ge=0, description="AdamW's weight decay.")
    label_smoothing_factor: Float = Field(
        default=0.0, ge=0, lt=1, description="Share of the target spread over all tokens or labels."
    )
    max_grad_norm: Float = Field(
        default=1.0, ge=0, description="Gradients are clipped to it; 0 is off."
    )
    on_nonfinite_loss: Literal["stop", "skip_rows", "lower_learning_rate"] = Field(
        default="stop",
        description="NaN or infinite losses: stop, leave their rows out, or skip the step and "
        "halve the learning rate.",
    )
    loss_watchdog_threshold: PositiveFloat | None = Field(
        default=None, description="Stop when the mean loss of the steps stays above this."
    )
    loss_watchdog_patience: PositiveInt = Field(
        default=3, description="Steps in a row above the threshold that stop the run."
    )
    adam_beta1: Float = Field(default=0.9, ge=0, lt=1, description="AdamW's first decay rate.")
    adam_beta2: Float = Field(default=0.999, ge=0, lt=1, description="AdamW's second decay rate.")
    adam_epsilon: Float = Field(default=1e-8, gt=0, description="AdamW's epsilon.")
    optim: Literal["adamw_torch"] = Field(default="adamw_torch", description="The optimizer.")
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
    ] = Field(default="linear", description="Course of the learning rate, by transformers' names.")
    warmup_ratio: Float = Field(
        default=0.0, ge=0, le=1, description="Share of the steps to warm up in."
    )
    warmup_steps: Int = Field(default=0, ge=0, description="Steps to warm up in.")
    bf16: bool = Field(default=False, description="Compute in bfloat16 (autocast).")
    gradient_checkpointing: bool = Field(default=False, description="Less memory for more time.")
    gradients: Literal["auto", "one_pass", "multi_pass"] = Field(
        default="auto",
        description="How the gradients of the tasks are taken; all give the same numbers.",
    )
    logging_steps: Int = Field(default=10, gt=0, description="Log every so many steps.")
    eval_steps: PositiveInt | None = Field(
        default=None, description="Evaluate every so many steps."
    )
    eval_max_rows: PositiveInt | None = Field(
        default=None, description="Evaluate at most so many rows per task during training."
    )
    eval_metrics: bool = Field(
        default=True, description="Score the metrics during training too, not only the losses."
    )
    save_steps: PositiveInt | None = Field(
        default=None, description="Checkpoint every so many steps."
    )
    save_total_limit: PositiveInt | None = Field(default=2, description="Checkpoints to keep.")
    load_best_model_at_end: bool = Field(
        default=False, description="End with the best weights seen."
    )
    metric_for_best_model: Text = Field(
        default="eval_overall",
        description="eval_overall, eval_loss, eval_<task>_loss or eval_<task>_<metric>.",
    )
    greater_is_better: bool | None = Field(
        default=None, description="Default: known from the metric."
    )
    early_stopping_patience: PositiveInt | None = Field(
        default=None, description="Stop after so many evaluations without a better score."
    )
    report_to: list[str] = Field(default=[], description="Loggers to write to, by name.")
    run_name: Text | None = Field(
        default=None, description="Name of the run in loggers and reports."
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_logger(cls, value: object) -> object:
        """`none` and `wandb` are written without a list in other tools."""
        if isinstance(value, str):
            return [] if value == "none" else [value]
        return value


class StageRecipe(Section):
    """A part of the run with tasks of its own: `{name: domain, tasks: [corpus], max_steps: 50}`."""

    name: Text = Field(description="Its name in the log, the record and the hooks.")
    tasks: list[str] = Field(min_length=1, description="The tasks that are trained in it.")
    max_steps: PositiveInt | None = Field(
        default=None, description="Its optimizer steps; default from num_train_epochs."
    )
    num_train_epochs: Float | None = Field(
        default=None, gt=0, description="Default training.num_train_epochs."
    )
    learning_rate: Float | None = Field(
        default=None, gt=0, description="Default training.learning_rate."
    )


class StartRecipe(Section):
    """A finished run to go on from, with its tasks: what `mtlcore adapt` writes."""

    run: Text = Field(description="The folder of that run.")
    step: Int | None = Field(default=None, ge=0, description="Its checkpoint; default its last.")
    own_from: dict[str, str] = Field(
        default={}, description="New task -> old task whose own adapter it starts from."
    )
    nearest: bool = Field(
        default=True,
        description="Other new tasks start from the old task whose adapters fit their rows best.",
    )
    freeze_own: bool = Field(
        default=True, description="The old tasks' own adapters and heads are not trained."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: object) -> object:
        return {"run": value} if isinstance(value, str) else value


class PluginsRecipe(Section):
    """Plugins of this run: `{load: [./mine.py], disable: [name]}`; a plain list is `load`."""

    load: list[str] = Field(
        default=[], description="Local Python files to load; their code is executed."
    )
    disable: list[str] = Field(default=[], description="Installed plugins not to load.")

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: object) -> object:
        return {"load": value} if isinstance(value, list) else value


def class_at(path: Sequence[str | int]) -> Any:
    """The class that the recipe has at a key path: a Section, a plain type, or None if unknown.

    `("tasks", "any", "format")` -> ComponentSpec, `("training", "seed")` -> int.
    """
    found: Any = Recipe
    for part in path:
        if isinstance(found, type) and issubclass(found, Section):
            field = found.model_fields.get(str(part))
            found = field.annotation if field else None
        else:  # dict[str, X] or list[X]
            found = get_args(found)[-1] if get_origin(found) in (dict, list) else None
        if type(None) in get_args(found):  # X | None
            found = next(kind for kind in get_args(found) if kind is not type(None))
        if get_origin(found) is Annotated:
            found = get_args(found)[0]
    return found


class Recipe(Section):
    """One run: a model, its tasks, and how they are learned together."""

    model: ModelRecipe = Field(description="The language model to fine-tune.")
    tasks: dict[str, TaskRecipe] = Field(description="The tasks, by name.")
    lora: LoraRecipe = Field(default=LoraRecipe(), description="The adapter.")
    sharing: SharingRecipe | None = Field(
        default=None,
        description="Shared, group and own ranks; without it one shared adapter of lora.r.",
    )
    bottleneck: BottleneckRecipe | None = Field(
        default=None, description="Bottleneck adapters beside LoRA; without it there are none."
    )
    start: StartRecipe | None = Field(
        default=None, description="A finished run to go on from; without it a fresh start."
    )
    stages: list[StageRecipe] = Field(
        default=[], description="Parts of the run, in order; without them one with all tasks."
    )
    weighting: ComponentSpec = Field(
        default=ComponentSpec(name="equal"),
        description="How the tasks' gradients become one update.",
    )
    sampling: ComponentSpec = Field(
        default=ComponentSpec(name="proportional"),
        description="How many rows each task gets per step.",
    )
    regularization: list[ComponentSpec] = Field(
        default=[], description="Penalties added to the loss."
    )
    replay: ComponentSpec | None = Field(
        default=None, description="Which rows of earlier stages and runs are trained on again."
    )
    monitoring: list[ComponentSpec] = Field(
        default=[], description="Observers that measure the tasks while they are trained."
    )
    auditing: list[ComponentSpec] = Field(default=[], description="Checks for bias and leaks.")
    overall: ComponentSpec = Field(
        default=ComponentSpec(name="mean"),
        description="How the tasks' primary scores become the one overall score.",
    )
    training: TrainingRecipe = Field(default=TrainingRecipe(), description="The loop.")
    plugins: PluginsRecipe = Field(
        default=PluginsRecipe(), description="Plugins to load or to leave out."
    )

    @model_validator(mode="after")
    def _rules_between_fields(self) -> Recipe:
        from mtlcore.recipe_checks import problems_between_fields

        problems = problems_between_fields(self)
        if problems:
            text = "; ".join(f"{problem.where}: {problem.message}" for problem in problems)
            raise PydanticCustomError(
                "between_fields", "{text}", {"text": text, "problems": problems}
            )
        return self
