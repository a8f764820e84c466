from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from mtlcore import recipe as recipe_module
from mtlcore.recipe import ComponentSpec, Recipe, SourceRecipe, class_at
from mtlcore.recipe_checks import FieldProblem, dotted
from mtlcore.recipe_validate import validate


def recipe_data(**changes: Any) -> dict[str, Any]:
    """The smallest recipe of two tasks, with some sections changed."""
    task = {"train": "imdb", "format": "classification", "metrics": ["accuracy"]}
    return {"model": {"name_or_path": "tiny"}, "tasks": {"a": task, "b": dict(task)}} | changes


def problems(**changes: Any) -> list[FieldProblem]:
    recipe, found = validate(recipe_data(**changes))
    assert (recipe is None) == bool(found)
    return found


def only_problem(**changes: Any) -> str:
    (found,) = problems(**changes)
    return f"{found.where}: {found.message}"


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("bf16", "maybe", "give true or false"),
        ("max_steps", "eight", "give a whole number"),
        ("loss_watchdog_threshold", -1, "give a number greater than 0"),
        ("report_to", 3, "give a list"),
        ("run_name", [], "give text, in quotes"),
        ("max_steps", "16", "write 16 without quotes"),
        ("max_steps", "1_000", "write 1_000 without quotes"),
        ("learning_rate", "0.1", "write 0.1 without quotes"),
        ("seed", "0", "write 0 without quotes"),
        ("output_dir", "", "give it another value, or remove the key"),
        ("on_nonfinite_loss", "zzz", "choose one of these"),
        ("on_nonfinite_loss", "stopp", "did you mean 'stop'?"),
    ],
)
def test_each_wrong_value_has_a_fix(key: str, value: object, fix: str) -> None:
    (found,) = problems(training={key: value})
    assert (found.path, found.fix) == (("training", key), fix)


def test_defaults_are_those_of_the_documentation() -> None:
    recipe = Recipe.model_validate(recipe_data())
    assert recipe.weighting.name == "equal"
    assert recipe.sampling.name == "proportional"
    assert recipe.tasks["a"].rows.name == "shuffled"
    assert recipe.tasks["a"].train.path == "imdb"
    assert recipe.training.learning_rate == 2e-4
    assert recipe.sharing is None


@pytest.mark.parametrize(
    ("written", "name", "options"),
    [
        ("pcgrad", "pcgrad", {}),
        ({"name": "pcgrad"}, "pcgrad", {}),
        ({"name": "pcgrad", "scope": "layer"}, "pcgrad", {"scope": "layer"}),
        ({"name": "x", "options": ["yes", "no"]}, "x", {"options": ["yes", "no"]}),
        ({"name": "x", "options": {"c": 1}}, "x", {"c": 1}),
        ({"name": "x", "options": {"c": 1}, "d": 2}, "x", {"options": {"c": 1}, "d": 2}),
    ],
)
def test_a_component_is_a_name_with_options_beside_it(
    written: Any, name: str, options: dict[str, Any]
) -> None:
    spec = ComponentSpec.model_validate(written)
    assert (spec.name, spec.options) == (name, options)
    assert ComponentSpec.model_validate(spec.model_dump()) == spec


def test_a_source_is_a_path_or_a_mapping() -> None:
    assert SourceRecipe.model_validate("a.jsonl") == SourceRecipe(path="a.jsonl")
    assert SourceRecipe(path="a.jsonl").model_dump() == "a.jsonl"
    hub = SourceRecipe(path="imdb", split="train")
    assert hub.model_dump() == {"path": "imdb", "split": "train"}


def test_plugins_may_be_a_plain_list() -> None:
    assert Recipe.model_validate(recipe_data(plugins=["./x.py"])).plugins.load == ["./x.py"]


def test_a_recipe_is_equal_after_dumping_and_reading() -> None:
    data = recipe_data(
        weighting={"name": "pcgrad", "scope": "layer"}, sharing={"shared": 4, "own": 2}
    )
    recipe = Recipe.model_validate(data)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "learning_rate", 0),
        ("training", "learning_rate", float("nan")),
        ("training", "learning_rate", True),
        ("training", "max_steps", -1),
        ("training", "max_steps", 1.5),
        ("training", "warmup_ratio", 1.1),
        ("training", "seed", "x"),
        ("training", "lr_scheduler_type", "liner"),
        ("lora", "r", 0),
        ("lora", "lora_dropout", 1.0),
        ("lora", "target_modules", 3),
        ("sharing", "own", -1),
        ("model", "name_or_path", ""),
        ("model", "dtype", "float16"),
        ("model", "nonsense", 1),
    ],
)
def test_values_out_of_range_are_refused_at_their_key(section: str, key: str, value: Any) -> None:
    whole = {"name_or_path": "tiny", key: value} if section == "model" else {key: value}
    assert only_problem(**{section: whole}).startswith(f"{section}.{key}: ")


def test_numbers_may_be_written_as_yaml_1_1_reads_them() -> None:
    recipe = Recipe.model_validate(recipe_data(training={"learning_rate": "1e-4"}))
    assert recipe.training.learning_rate == 1e-4


def test_group_members_must_exist_once() -> None:
    groups = {"g": {"tasks": ["a", "bb", "a"], "r": 4}}
    found = problems(sharing={"groups": groups})
    assert [problem.where for problem in found] == [
        "sharing.groups.g.tasks[1]",
        "sharing.groups.g.tasks[2]",
    ]


def test_every_task_needs_an_adapter() -> None:
    assert "all ranks are 0" in only_problem(sharing={"shared": 0})
    groups = {"g": {"tasks": ["a"], "r": 4}}
    assert "no adapter for b" in only_problem(sharing={"shared": 0, "groups": groups})
    assert not problems(sharing={"shared": 0, "own": 2})
    assert "nothing to act on" in only_problem(sharing={"shared": 2, "own_layers": [0]})
    groups["g"]["tasks"] = ["a", "b"]
    assert not problems(sharing={"shared": 0, "groups": groups})


@pytest.mark.parametrize("name", ["a b", "../a", "", "é", "-a", "a.b"])
def test_unsafe_task_names_are_refused(name: str) -> None:
    found = problems(tasks={name: {"train": "imdb", "format": "text"}})
    assert "letters, digits, _ and -" in found[0].message


def test_a_recipe_needs_a_main_task() -> None:
    assert "there is no task" in only_problem(tasks={})
    task = {"train": "imdb", "format": "text", "role": "auxiliary"}
    assert "all tasks are auxiliary" in only_problem(tasks={"a": task})


def test_the_split_leaves_rows_to_learn_from() -> None:
    task = {"train": "imdb", "format": "text", "split": {"eval": 0.5, "test": 0.5}}
    assert "nothing is left" in only_problem(tasks={"a": task})


@pytest.mark.parametrize(
    "metric", ["eval_overall", "eval_loss", "eval_a_loss", "eval_b_accuracy", "eval_b_accuracy_top"]
)
def test_best_model_metrics_are_those_that_exist(metric: str) -> None:
    training = {
        "metric_for_best_model": metric,
        "load_best_model_at_end": True,
        "eval_steps": 10,
        "eval_metrics": True,
    }
    assert not problems(training=training)


@pytest.mark.parametrize("metric", ["eval_c_loss", "eval_a_f1", "loss", "eval_overall_loss"])
def test_other_best_model_metrics_are_refused(metric: str) -> None:
    found = only_problem(training={"metric_for_best_model": metric})
    assert found.startswith("training.metric_for_best_model: no task and metric")


def test_what_picks_the_best_model_needs_evaluations() -> None:
    assert "eval_steps is not set" in problems(training={"early_stopping_patience": 2})[0].message
    assert "eval_steps is not set" in problems(training={"load_best_model_at_end": True})[0].message
    best = {"load_best_model_at_end": True, "eval_steps": 5}
    assert not problems(training=best)
    tasks = {"a": {"train": "imdb", "format": "text"}}
    assert "no main task has a metric" in only_problem(training=best, tasks=tasks)
    assert not problems(training={**best, "metric_for_best_model": "eval_loss"}, tasks=tasks)


def test_one_way_of_warming_up() -> None:
    both = {"warmup_ratio": 0.1, "warmup_steps": 5}
    assert "warmup_ratio is given too" in only_problem(training=both)
    constant = {"warmup_steps": 5, "lr_scheduler_type": "constant"}
    assert "no warm-up" in only_problem(training=constant)


def test_components_of_one_list_have_different_names() -> None:
    assert "2 times" in only_problem(regularization=["ewc", {"name": "ewc", "strength": 1}])


def test_rules_between_fields_are_checked_beside_wrong_fields() -> None:
    found = problems(
        lora={"r": "x"}, sharing={"shared": 0}, training={"eval_steps": "x", "max_step": 1}
    )
    assert {problem.where for problem in found} == {
        "lora.r",
        "sharing",
        "training.eval_steps",
        "training.max_step",
    }


def test_wrong_fields_bring_no_follow_up_problems() -> None:
    training = {"eval_steps": "often", "early_stopping_patience": 2, "eval_metrics": True}
    assert only_problem(training=training).startswith("training.eval_steps")
    groups = {"g": {"tasks": ["a", 3], "r": 4}}
    assert only_problem(sharing={"groups": groups}).startswith("sharing.groups.g.tasks[1]")
    assert only_problem(tasks=None).startswith("tasks: is empty")
    assert only_problem(sharing={"shared": 0, "own": "x"}).startswith("sharing.own")


def test_python_users_see_rules_between_fields_too() -> None:
    with pytest.raises(ValidationError, match="all ranks are 0"):
        Recipe.model_validate(recipe_data(sharing={"shared": 0}))


def test_every_field_has_a_one_line_description() -> None:
    sections = [
        value
        for value in vars(recipe_module).values()
        if isinstance(value, type) and issubclass(value, BaseModel) and value is not BaseModel
    ]
    assert len(sections) > 10
    for section in sections:
        assert section.__doc__
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            assert "\n" not in field.description


def test_class_at_follows_key_paths() -> None:
    assert class_at(("tasks", "any", "metrics", 0)) is ComponentSpec
    assert class_at(("tasks", "any", "eval")) is SourceRecipe
    assert class_at(("training", "max_steps")) is int
    assert class_at(("training", "nothing")) is None
    assert class_at(("training", "seed", "deeper")) is None


def test_dotted_writes_key_paths_as_users_do() -> None:
    assert dotted(("regularization", 0, "name")) == "regularization[0].name"


def test_the_recipe_imports_no_torch() -> None:
    code = "import sys, mtlcore.recipe_file; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
