"""Single-task baselines in one run: what is derived, and that it equals separate runs."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtlcore import api
from mtlcore.errors import UserError
from mtlcore.evaluation import baseline
from mtlcore.recipe import Recipe
from mtlcore.recipe_file import LoadedRecipe, read_recipe
from mtlcore.recipe_yaml import Document
from mtlcore.trainer import Trainer
from tests.models import _rms_norm
from tests.recipes import TASKS, write_tiny_recipe

NAMES = ("sentiment", "spelling", "definitions")
# float64, after 6 steps of AdamW; measured: at most 1e-13. Where a gradient is nearly 0, rounding
# of 1e-16 over the epsilon of 1e-8 becomes 1e-8 times the learning rate.
TOLERANCE = 1e-9


def recipe(**parts: Any) -> LoadedRecipe:
    """A recipe of three tasks that needs no files."""
    task = {"train": {"path": "rows.jsonl"}, "format": "text", "split": {"eval": 0.5}}
    parts = {"model": {"name_or_path": "none"}, "tasks": {n: dict(task) for n in NAMES}} | parts
    made = Recipe.model_validate(parts)
    return LoadedRecipe(made, [], Path("recipe.yaml"), [], Document(parts, {}))


def derived(loaded: LoadedRecipe, **options: Any) -> Recipe:
    return baseline.derive(loaded, Path("out"), **options).recipe


# -- what is derived ---------------------------------------------------------------------------


def test_each_task_has_all_ranks_that_its_rows_pass_through() -> None:
    assert derived(recipe(lora={"r": 5})).sharing == baseline.SharingRecipe(shared=0, own=5)
    shared = {"shared": 4, "own": 2, "groups": {"all": {"tasks": list(NAMES), "r": 3}}}
    assert derived(recipe(sharing=shared)).sharing == baseline.SharingRecipe(shared=0, own=9)


def test_tasks_of_unlike_ranks_or_layers_get_groups_of_their_own() -> None:
    sharing = {
        "shared": 4,
        "own": 2,
        "groups": {"pair": {"tasks": ["sentiment", "spelling"], "r": 3}},
    }
    found = derived(recipe(sharing=sharing)).sharing
    assert found is not None
    assert (found.shared, found.own) == (0, 0)
    ranks = {tuple(group.tasks): group.r for group in found.groups.values()}
    assert ranks == {("sentiment",): 9, ("spelling",): 9, ("definitions",): 6}
    layers = {"shared": 4, "own": 2, "shared_layers": [0], "own_layers": [1]}
    found = derived(recipe(sharing=layers)).sharing
    assert found is not None
    parts = [(g.tasks, g.r, g.layers_to_transform) for g in found.groups.values()]
    assert parts == [part for n in NAMES for part in (([n], 4, [0]), ([n], 2, [1]))]
    same = {"shared": 4, "own": 2, "shared_layers": [1, 0], "own_layers": [0, 1]}
    found = derived(recipe(sharing=same)).sharing
    assert found == baseline.SharingRecipe(shared=0, own=6, own_layers=[0, 1])


def test_what_ties_tasks_together_is_left_out_and_all_else_stays() -> None:
    loaded = recipe(
        weighting="pcgrad",
        sampling={"name": "temperature", "temperature": 2.0},
        regularization=[{"name": "l2_anchor", "strength": 0.01}],
        bottleneck={"shared": 4, "own": 2},
        training={"max_steps": 7, "seed": 3, "report_to": ["wandb"], "learning_rate": 0.5},
    )
    found = derived(loaded)
    assert found.weighting == Recipe.model_fields["weighting"].default
    assert found.sampling == loaded.recipe.sampling
    assert found.regularization == loaded.recipe.regularization
    assert found.bottleneck is not None
    assert (found.bottleneck.shared, found.bottleneck.own) == (0, 6)
    assert found.tasks == loaded.recipe.tasks
    assert (found.training.max_steps, found.training.seed) == (7, 3)
    assert found.training.learning_rate == 0.5
    assert found.training.report_to == []
    assert found.training.output_dir == "out"


def test_auxiliary_tasks_are_left_out_with_their_rows_unless_asked_for() -> None:
    loaded = recipe(training={"per_device_train_batch_size": 12, "max_steps": 5})
    data = loaded.recipe.model_dump(mode="json")
    data["tasks"]["spelling"]["role"] = "auxiliary"
    loaded.recipe = Recipe.model_validate(data)
    made = baseline.derive(loaded, Path("out"))
    assert list(made.recipe.tasks) == ["sentiment", "definitions"]
    assert made.recipe.training.per_device_train_batch_size == 8
    assert made.notes == ["without spelling a batch has 8 rows instead of 12"]
    everything = derived(loaded, auxiliary=True)
    assert list(everything.tasks) == list(NAMES)
    assert everything.training.per_device_train_batch_size == 12
    state = {"step": 9, "tasks": list(NAMES), "rows_drawn": [50, 25, 25]}
    one = derived(loaded, tasks=["sentiment"], state=state)
    assert (one.training.per_device_train_batch_size, one.training.max_steps) == (6, 5)


def test_stages_become_one_of_as_many_steps() -> None:
    stages = [{"name": "a", "tasks": ["sentiment"]}, {"name": "b", "tasks": list(NAMES[1:])}]
    for stage, steps in zip(stages, (3, 4), strict=True):
        stage["max_steps"] = steps
    found = derived(recipe(stages=stages))
    assert (found.stages, found.training.max_steps) == ([], 7)
    del stages[1]["max_steps"]
    with pytest.raises(UserError, match="stages: how many steps") as caught:
        derived(recipe(stages=stages))
    assert "train the recipe first" in str(caught.value)
    state = {"step": 11, "tasks": list(NAMES), "rows_drawn": [1, 1, 1]}
    assert derived(recipe(stages=stages), state=state).training.max_steps == 11


def test_each_task_is_judged_by_itself() -> None:
    training = {
        "eval_steps": 2,
        "early_stopping_patience": 4,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_spelling_loss",
    }
    found = derived(recipe(training=training))
    assert found.training.early_stopping_patience is None
    assert found.training.metric_for_best_model == "eval_loss"
    assert {task.early_stopping_patience for task in found.tasks.values()} == {4}
    del training["early_stopping_patience"]
    found = derived(recipe(training=training))
    assert {task.early_stopping_patience for task in found.tasks.values()} == {baseline.NEVER}


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'spelling'"):
        derived(recipe(), tasks=["speling"])


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        baseline.prepare(tmp_path)


def test_the_baselines_of_a_recipe_lie_beside_its_run(tiny_model: Path, tmp_path: Path) -> None:
    path = write_tiny_recipe(tmp_path, tiny_model)
    made = baseline.prepare(path, ["training.max_steps=3"])
    assert made.output_dir == tmp_path / "run-baseline"
    assert made.recipe.training.max_steps == 3


# -- one run equals several --------------------------------------------------------------------


def in_float64(trainer: Trainer) -> Trainer:
    """Norms without the library's casts to fp32, which hide errors below 1e-7."""
    for module in trainer.run.model.backbone.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(_rms_norm, module)  # type: ignore[assignment]
    return trainer


def final(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.run.model.adapter_state().items()}


def trained(
    path: Path, folder: Path, names: tuple[str, ...], rows: int, *overrides: str
) -> tuple[Trainer, dict[str, Tensor]]:
    """The baselines of some tasks in one run, `rows` rows of each in every step."""
    loaded = read_recipe(
        path,
        [
            *(f"tasks.{name}.max_rows=12" for name in NAMES),  # equal shares of rows
            f"training.per_device_train_batch_size={rows * len(NAMES)}",
            "model.dtype=float64",
            *overrides,
        ],
    )
    made = baseline.derive(loaded, folder, tasks=names)
    assert made.recipe.training.per_device_train_batch_size == rows * len(names)
    trainer = in_float64(api.prepare(made))
    trainer.run.plugins.register(baseline.OwnSharesOfRows())
    trainer.train()
    return trainer, final(trainer)


@pytest.mark.parametrize(
    "overrides",
    [
        ["lora.lora_dropout=0", "training.max_grad_norm=0"],
        ["lora.lora_dropout=0", "training.max_grad_norm=0.05"],
        ["lora.lora_dropout=0.3", "training.max_grad_norm=0.05", "training.weight_decay=0.1"],
        ["bottleneck={shared: 2, own: 3}", "training.gradient_accumulation_steps=2"],
        [
            "lora.lora_dropout=0",
            "training.eval_steps=1",
            "training.eval_metrics=false",
            "training.early_stopping_patience=1",
            "training.load_best_model_at_end=true",
            "training.metric_for_best_model=eval_loss",
            "training.learning_rate=0.02",
        ],
    ],
    ids=["plain", "clipped", "dropout and decay", "bottlenecks", "early stopping and best weights"],
)
def test_baselines_in_one_run_equal_a_run_for_each_task(
    overrides: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    """Unequal lengths, losses of unequal scale, 4 rows of each task in a step."""
    path = write_tiny_recipe(tmp_path, tiny_model, sampling="proportional")
    together, found = trained(path, tmp_path / "together", NAMES, 4, *overrides)
    lengths = {len(example.input_ids) for task in together.run.tasks for example in task.train}
    assert len(lengths) > 1
    stops: set[int] = set()
    for task in together.run.tasks:
        alone, expected = trained(path, tmp_path / task.name, (task.name,), 4, *overrides)
        assert expected
        moved = 0.0
        for name, value in expected.items():
            error = float((found[name] - value).abs().max())
            assert error <= TOLERANCE, f"{name} is {error:.1e} off"
            moved += float(value.abs().sum()) if "lora_B" in name else 0.0
        assert moved > 0
        if "training.early_stopping_patience=1" in overrides:
            stops.add(alone.run.step)
    assert len(stops) != 1, "the tasks should stop at unlike steps"


def test_rows_of_a_task_that_has_stopped_go_to_nobody(tiny_model: Path, tmp_path: Path) -> None:
    path = write_tiny_recipe(tmp_path, tiny_model)
    trainer = api.prepare(baseline.derive(read_recipe(path), tmp_path / "out"))
    run, hook = trainer.run, trainer.run.plugins.hook
    before = [hook.mtlcore_plan_step(run=run, step=step) for step in range(5)]
    run.plugins.register(baseline.OwnSharesOfRows())
    run.active = [True, False, True]
    after = [hook.mtlcore_plan_step(run=run, step=step) for step in range(5)]
    assert after == [[one, 0, three] for one, _, three in before]
    assert run.active == [True, False, True]
    run.active = [False, False, True]
    run.recipe = run.recipe.model_copy(
        update={"training": run.recipe.training.model_copy(
            update={"per_device_train_batch_size": 1})}
    )  # fmt: skip
    for step in range(5):  # even where the draw gives the one row to a task that has stopped
        assert sum(hook.mtlcore_plan_step(run=run, step=step)) == 1


def test_tasks_have_no_effect_on_each_other(tiny_model: Path, tmp_path: Path) -> None:
    """Another weight for one task changes the adapters of that task alone."""
    path = write_tiny_recipe(tmp_path, tiny_model, tasks=TASKS.replace("loss_weight: 2.0", ""))
    finals = []
    for name, extra in (("a", []), ("b", ["tasks.spelling.label_smoothing_factor=0.3"])):
        loaded = read_recipe(path, ["lora.lora_dropout=0", *extra])
        finals.append(final_of(baseline.train(baseline.derive(loaded, tmp_path / name))))
    for key in finals[0]:
        same = torch.equal(finals[0][key], finals[1][key])
        assert same != ("own:spelling" in key), key


def final_of(run: Any) -> dict[str, Tensor]:
    return dict(run.model.adapter_state())


def test_an_interrupted_baseline_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    loaded = baseline.prepare(write_tiny_recipe(tmp_path, tiny_model), ["training.max_steps=2"])
    baseline.train(loaded)
    with pytest.raises(UserError, match="already holds a run"):
        baseline.train(loaded)
    more = baseline.prepare(tmp_path / "recipe.yaml", ["training.max_steps=4"])
    assert baseline.train(more, resume=True).step == 4
    lines = (more.output_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
