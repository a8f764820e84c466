from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtlcore.errors import Problem, RecipeError
from mtlcore.ops.backend import BackendError
from mtlcore.recipe import Recipe
from mtlcore.recipe_aliases import ALREADY_SO, NOT_YET, RENAMED
from mtlcore.recipe_file import LoadedRecipe, read_recipe, recipe_from_mapping, write_recipe

Write = Callable[..., Path]

GOOD = """
    model: {name_or_path: tiny}
    tasks:
      a: {train: imdb, format: classification, metrics: [accuracy]}
      b: {train: imdb, format: {name: prompt_completion, template: "{{ x }}"}}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a file of the present folder."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return Path(name)

    return write_file


def read(text: str, write: Write, *overrides: str) -> LoadedRecipe:
    return read_recipe(write(text), overrides)


def problems(text: str, write: Write, *overrides: str) -> list[Problem]:
    with pytest.raises(RecipeError) as caught:
        read(text, write, *overrides)
    return caught.value.problems


def only_problem(text: str, write: Write, *overrides: str) -> Problem:
    (found,) = problems(text, write, *overrides)
    return found


def test_a_good_recipe_is_read_without_notes(write: Write) -> None:
    loaded = read(GOOD, write)
    assert loaded.recipe.tasks["b"].format.options == {"template": "{{ x }}"}
    assert loaded.notes == []
    assert loaded.sources == [Path("recipe.yaml")]
    assert loaded.output_dir == Path("runs/recipe")


def test_numbers_of_yaml_1_1_are_numbers(write: Write) -> None:
    training = read(GOOD + "    training: {learning_rate: 1e-4, max_steps: 1e3}\n", write)
    assert training.recipe.training.learning_rate == 1e-4
    assert training.recipe.training.max_steps == 1000


def test_an_unknown_key_of_a_group_is_told_the_keys_that_a_group_has(write: Write) -> None:
    """And none of another section that is spelt alike (`tasks.<name>.train`)."""
    groups = "    sharing: {own: 2, groups: {g: {tasks: [a, b], r: 2, rank: 3}}}\n"
    problem = only_problem(GOOD + groups, write)
    assert problem.where.endswith("sharing.groups.g.rank")
    assert problem.fix == "known: layers_to_transform, r, tasks"


def test_a_number_in_quotes_is_an_error_but_not_on_the_command_line(write: Write) -> None:
    problem = only_problem(GOOD + '    lora: {r: "16"}\n', write)
    assert problem.where.endswith(":6, lora.r")
    assert problem.message == "should be a number, found '16'"
    assert problem.fix == "write 16 without quotes"
    assert read(GOOD, write, "lora.r=4", "training.learning_rate=1e-3").recipe.lora.r == 4


# -- files that are no recipes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("", "recipe.yaml", "the file is empty"),
        ("# nothing\n", "recipe.yaml", "the file is empty"),
        ("- a\n- b\n", "recipe.yaml:1", "found a list"),
        ("hello\n", "recipe.yaml:1", "found 'hello'"),
        ("model: x\n\ttasks: y\n", "recipe.yaml:2", "a tab stands here"),
        ("model: [x\n", "recipe.yaml:1", "is no valid YAML"),
        ("model: x\ntasks: y: z\n", "recipe.yaml:2", "is no valid YAML"),
        ("model: x\n---\nmodel: y\n", "recipe.yaml:2", "a second YAML document"),
        ("model: *nothing\n", "recipe.yaml:1", "undefined alias"),
        ("model: \x07\n", "recipe.yaml:1", "U+0007 may not stand in it"),
    ],
)
def test_what_is_no_recipe_is_said_with_its_line(
    text: str, where: str, message: str, write: Write
) -> None:
    problem = only_problem(text, write)
    assert problem.where == where
    assert message in problem.message


def test_a_missing_file_names_the_nearest_one(write: Write) -> None:
    write(GOOD)
    with pytest.raises(RecipeError, match=r"recipe\.yml: no such file\n.*'recipe\.yaml'"):
        read_recipe("recipe.yml")
    with pytest.raises(RecipeError, match="the folder nowhere does not exist"):
        read_recipe("nowhere/recipe.yaml")


def test_a_folder_and_other_encodings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("model: é".encode("latin-1"))
    with pytest.raises(RecipeError, match="is not UTF-8"):
        read_recipe(tmp_path / "latin.yaml")


def test_a_misspelt_key_hides_no_fault_of_the_right_one(write: Write) -> None:
    text = GOOD + "    training: {max_stepps: 3, max_steps: -3, sed: 1}\n    modl: other\n"
    found = [(p.where, p.message.split(",")[0]) for p in problems(text, write)]
    assert found == [
        ("recipe.yaml:6, training.max_steps", "should be greater than 0"),
        ("recipe.yaml:6, training.max_stepps", "unknown key `max_stepps`"),
        ("recipe.yaml:6, training.sed", "unknown key `sed`"),
        ("recipe.yaml:7, modl", "unknown key `modl`"),
    ]


def test_duplicate_keys_are_errors_with_both_lines(write: Write) -> None:
    problem = only_problem(GOOD + "    training:\n      seed: 1\n      seed: 2\n", write)
    assert problem.where == "recipe.yaml:8, training.seed"
    assert "lines 7 and 8" in problem.message


def test_anchors_and_merge_keys_work(write: Write) -> None:
    loaded = read(
        """
        model: {name_or_path: tiny}
        tasks:
          a: &base {train: imdb, format: text, loss_weight: 2}
          b: {<<: *base, loss_weight: 3}
        """,
        write,
    )
    assert loaded.recipe.tasks["b"].train.path == "imdb"
    assert loaded.recipe.tasks["b"].loss_weight == 3


def test_an_anchor_that_contains_itself_is_refused(write: Write) -> None:
    found = problems("model: {name_or_path: tiny}\ntasks: &x {a: *x}\n", write)
    assert "contains itself" in found[0].message


def test_tags_are_refused_and_dates_are_text(write: Write) -> None:
    text = "    training: {run_name: 2024-01-01, seed: !!python/tuple 3}\n"
    assert "YAML tag" in problems(GOOD + text, write)[0].message
    named = read(GOOD + "    training: {run_name: 2024-01-01}\n", write)
    assert named.recipe.training.run_name == "2024-01-01"


# -- wrong keys and values ---------------------------------------------------------------------


def test_ten_faults_are_told_at_once(write: Write) -> None:
    write("{}", "data/sentiment.jsonl")
    found = problems(
        """
        model: {name_or_path: tiny, dtype: flot32}
        tasks:
          sentiment:
            train: data/sentimnt.jsonl
            format: classification
            los_weight: 2
          my task:
            train: imdb
            metrics: [accuracy]
        lora: {r: sixteen, learning_rate: 1}
        sharing: {groups: {g: {tasks: [sentimant], r: 4}}}
        load_in_4bit: true
        training:
          max_steps: -5
          early_stopping_patience: 3
        """,
        write,
    )
    told = {problem.where: problem for problem in found}
    assert list(told) == [
        "recipe.yaml:2, model.dtype",
        "recipe.yaml:5, tasks.sentiment.train",
        "recipe.yaml:7, tasks.sentiment.los_weight",
        "recipe.yaml:8, tasks.my task.format",
        "recipe.yaml:8, tasks.my task",
        "recipe.yaml:11, lora.r",
        "recipe.yaml:11, lora.learning_rate",
        "recipe.yaml:12, sharing.groups.g.tasks[0]",
        "recipe.yaml:13, load_in_4bit",
        "recipe.yaml:15, training.max_steps",
        "recipe.yaml:16, training.early_stopping_patience",
    ]
    fixes = [problem.fix for problem in found]
    assert "did you mean 'float32'?" in fixes
    assert "did you mean 'data/sentiment.jsonl'?" in fixes
    assert "did you mean 'loss_weight'?" in fixes
    assert "it belongs under `training`" in fixes
    assert "did you mean 'sentiment'?" in fixes
    assert "not supported yet" in told["recipe.yaml:13, load_in_4bit"].message
    assert told["recipe.yaml:11, lora.r"].message == "should be a whole number, found 'sixteen'"
    assert all("input" not in problem.message.lower() for problem in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weighting: 3", "should be a component's name, or `{name: ..., option: ...}`, found 3"),
        ("weighting:", "is empty"),
        ("weighting: {scope: layer}", "`name` is missing"),
        ("lora: 16", "should be a mapping of keys to values, found 16"),
        ("lora: {target_modules: 3}", "should be text or should be a list, found 3"),
        ("training: {bf16: perhaps}", "should be true or false, found 'perhaps'"),
        ("training: {seed: true}", "should be a number, found true"),
        ("regularization: ewc", "should be a list, found 'ewc'"),
        ("plugins: {load: [3]}", "should be text, found 3"),
        ("sharing: {groups: {g: {tasks: [], r: 2}}}", "should have at least 1 item, found []"),
    ],
)
def test_messages_are_free_of_jargon(text: str, message: str, write: Write) -> None:
    assert only_problem(f"{GOOD}\n    {text}\n", write).message == message


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        (
            "weighting: {pcgrad: {every: 5, scope: 'a: b'}}",
            'if pcgrad is the component\'s name, write {name: pcgrad, every: 5, scope: "a: b"}',
        ),
        ("weighting: {main: {name: upgrad}}", "add `name: ...`"),
        ("weighting: {scope: layer}", "add `name: ...`"),
        ("warmup: 5", "did you mean `training.warmup_steps`?"),
        ("every: 5", "it is an option of a weighting: `weighting: {name: ..., every: ...}`"),
    ],
)
def test_options_have_their_place_beside_a_name(text: str, fix: str, write: Write) -> None:
    assert only_problem(f"{GOOD}\n    {text}\n", write).fix.startswith(fix)


def test_missing_sections_are_named(write: Write) -> None:
    found = problems("lora: {r: 4}\n", write)
    assert [problem.message for problem in found] == ["`model` is missing", "`tasks` is missing"]


# -- extends -----------------------------------------------------------------------------------


def test_extends_merges_maps_and_the_later_file_wins(write: Write) -> None:
    write(GOOD + "    training: {seed: 1, max_steps: 7}\n    lora: {r: 4}\n", "base.yaml")
    write("training: {seed: 2, logging_steps: 3}\n", "more/second.yaml")
    loaded = read(
        "extends: [base.yaml, more/second.yaml]\ntraining: {logging_steps: 9}\n"
        "tasks: {a: {loss_weight: 3}}\n",
        write,
    )
    training = loaded.recipe.training
    assert (training.seed, training.max_steps, training.logging_steps) == (2, 7, 9)
    assert loaded.recipe.lora.r == 4
    assert loaded.recipe.tasks["a"].loss_weight == 3
    assert loaded.recipe.tasks["a"].train.path == "imdb"
    assert [path.name for path in loaded.sources] == ["base.yaml", "second.yaml", "recipe.yaml"]


def test_extends_replaces_a_component_with_its_options(write: Write) -> None:
    write(GOOD + "    weighting: {name: pcgrad, scope: layer}\n", "base.yaml")
    assert read("extends: base.yaml\nweighting: upgrad\n", write).recipe.weighting.options == {}
    same = read("extends: base.yaml\nweighting: {name: pcgrad, seed: 1}\n", write)
    assert same.recipe.weighting.options == {"scope": "layer", "seed": 1}
    other = read("extends: base.yaml\nweighting: {name: upgrad, c: 1}\n", write)
    assert other.recipe.weighting.options == {"c": 1}


def test_errors_name_the_file_in_which_the_key_stands(write: Write) -> None:
    write(GOOD + "    lora:\n      rr: 4\n", "sub/base.yaml")
    found = problems("extends: sub/base.yaml\ntraining: {sed: 1}\n", write)
    assert {problem.where for problem in found} == {
        "sub/base.yaml:7, lora.rr",
        "recipe.yaml:2, training.sed",
    }


def test_circles_and_missing_bases_are_refused(write: Write) -> None:
    write("extends: recipe.yaml\n", "base.yaml")
    found = problems("extends: base.yaml\n" + textwrap.dedent(GOOD), write)
    assert found[0].where == "base.yaml:1, extends"
    assert "recipe.yaml -> base.yaml -> recipe.yaml" in found[0].message
    found = problems("extends: nothing.yaml\n" + textwrap.dedent(GOOD), write)
    assert "no such file: nothing.yaml" in found[0].message
    found = problems("extends: 3\n" + textwrap.dedent(GOOD), write)
    assert "a file or a list of files" in found[0].message


# -- overrides ---------------------------------------------------------------------------------


def test_overrides_win_and_are_parsed_as_yaml(write: Write) -> None:
    recipe = read(
        GOOD + "    training: {learning_rate: 1, seed: 5}\n",
        write,
        "training.learning_rate=1e-4",
        "lora.target_modules=[q_proj, v_proj]",
        "sharing={shared: 4, own: 2}",
        "training.max_steps=",
        "tasks.a.loss_weight=2",
        "tasks.b.format.template=a=b",
    ).recipe
    assert recipe.training.learning_rate == 1e-4
    assert recipe.training.seed == 5
    assert recipe.lora.target_modules == ["q_proj", "v_proj"]
    assert recipe.sharing is not None
    assert recipe.sharing.own == 2
    assert recipe.training.max_steps is None
    assert recipe.tasks["a"].loss_weight == 2
    assert recipe.tasks["b"].format.options == {"template": "a=b"}


def test_overrides_of_components(write: Write) -> None:
    text = GOOD + "    weighting: {name: pcgrad, scope: layer}\n"

    def weighting(*overrides: str) -> Any:
        return read(text, write, *overrides).recipe.weighting.model_dump()

    assert weighting("weighting=upgrad") == "upgrad"
    assert weighting("weighting.name=upgrad") == "upgrad"
    assert weighting("weighting.name=upgrad", "weighting.c=1") == {"name": "upgrad", "c": 1}
    assert weighting("weighting.c=1", "weighting.name=upgrad") == {"name": "upgrad", "c": 1}
    assert weighting("weighting.c=1", "weighting=upgrad") == {"name": "upgrad", "c": 1}
    assert weighting("weighting.scope=model") == {"name": "pcgrad", "scope": "model"}
    listed = read(
        GOOD + "    regularization: [ewc, l2]\n", write, "regularization.1.strength=5"
    ).recipe.regularization
    assert [spec.model_dump() for spec in listed] == ["ewc", {"name": "l2", "strength": 5}]


def test_options_of_the_default_component_can_be_overridden(write: Write) -> None:
    recipe = read(GOOD, write, "weighting.normalize=sum_to_one", "tasks.a.rows.seed=1").recipe
    assert recipe.weighting.model_dump() == {"name": "equal", "normalize": "sum_to_one"}
    assert recipe.tasks["a"].rows.model_dump() == {"name": "shuffled", "seed": 1}


@pytest.mark.parametrize(
    ("override", "message", "fix"),
    [
        ("training.learning_rat=1", "unknown key `learning_rat`", "'learning_rate'"),
        ("trainin.seed=1", "unknown key `trainin`", "'training'"),
        ("tasks.aa.loss_weight=1", "the recipe has no task 'aa'", "'a'"),
        ("training.seed", "is no `key=value`", "training.max_steps=100"),
        ("=3", "is no `key=value`", "training.max_steps=100"),
        ("training.seed=[", "is no valid YAML", "bracket"),
        ("regularization.3.strength=1", "should be a list", ""),
        ("training.seed=-1", "should be greater than or equal to 0, found -1", ""),
    ],
)
def test_wrong_overrides_name_the_command_line(
    override: str, message: str, fix: str, write: Write
) -> None:
    problem = only_problem(GOOD, write, override)
    assert problem.where.startswith("command line, ")
    assert message in problem.message
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (("weighting.scope=layer",), "recipe.yaml:3, weighting"),
        (("weighting=other", "weighting.scope=layer"), "command line, weighting"),
        (("weighting.scope=layer", "weighting.name=other"), "command line, weighting.name"),
    ],
)
def test_a_part_is_where_its_name_was_given(
    overrides: tuple[str, ...], where: str, write: Write
) -> None:
    """Not where an option of it was."""
    text = (
        "model: {name_or_path: tiny}\ntasks: {a: {train: imdb, format: text}}\nweighting: pcgrad\n"
    )
    loaded = read(text, write, *overrides)
    assert loaded.located(Problem("weighting", "wrong")).where == where


def test_what_an_override_holds_is_where_it_was_given(write: Write) -> None:
    text = """
        model: {name_or_path: tiny}
        tasks: {a: {train: imdb, format: text, metrics: [loss]}}
        weighting: {name: cagrad, c: 0.5}
        regularization: [{name: ewc, strength: 1}]
        """
    whole = ["weighting={name: cagrad, c: 1}", "regularization=[{name: ewc, strength: 2}]"]
    loaded = read(text, write, *whole)
    for key in ("weighting.c", "weighting.name", "regularization[0].strength"):
        assert loaded.located(Problem(key, "wrong")).where == f"command line, {key}"
    loaded = read(text, write, "regularization.0.strength=2")
    found = loaded.located(Problem("regularization[0].strength", "wrong")).where
    assert found == "command line, regularization.0.strength"
    assert loaded.located(Problem("regularization[0].name", "wrong")).where.startswith(
        "recipe.yaml:5"
    )


def test_a_part_of_a_mapping_is_not_where_an_option_of_it_was_given() -> None:
    data = {
        "model": {"name_or_path": "tiny"},
        "tasks": {"a": {"train": "imdb", "format": "text"}},
        "weighting": "pcgrd",
    }
    loaded = recipe_from_mapping(data, ["weighting.scope=layer"])
    where = loaded.located(Problem("weighting", "wrong")).where
    assert "weighting" in where
    assert "command line" not in where


def test_a_file_named_within_an_overridden_part_is_looked_up_where_one_stands(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        "model: tiny\ntasks: {a: {train: {path: far.jsonl}, format: text}}\nplugins: [./far.py]\n"
    )
    here = tmp_path / "here"
    here.mkdir()
    for name in ("near.jsonl", "near.py"):
        (here / name).touch()
    monkeypatch.chdir(here)
    overrides = ["tasks.a.train={path: near.jsonl}", "plugins=[./near.py]"]
    recipe = read_recipe("../recipe.yaml", overrides).recipe
    assert str(here / "near.jsonl") in repr(recipe.tasks["a"].train)
    assert str(here / "near.py") in repr(recipe.plugins)


# -- other tools' names ------------------------------------------------------------------------


def test_a_flat_recipe_of_another_tool_is_read_with_notes(write: Write) -> None:
    loaded = read(
        """
        base_model: tiny
        micro_batch_size: 8
        learning_rate: 2e-4
        lora_r: 8
        lora_alpha: 4
        lora_target: q_proj, v_proj
        cutoff_len: 100
        optimizer: adamw_torch
        excess_length_strategy: raise
        train_on_inputs: false
        eval_strategy: steps
        load_in_8bit: false
        tasks:
          a: {train: imdb, format: text, truncation_strategy: delete, max_samples: 5}
          b: {train: imdb, format: text}
        """,
        write,
    )
    recipe = loaded.recipe
    assert recipe.model.name_or_path == "tiny"
    assert recipe.training.per_device_train_batch_size == 8
    assert recipe.training.learning_rate == 2e-4
    assert recipe.training.max_length == 100
    assert (recipe.lora.r, recipe.lora.lora_alpha) == (8, 4)
    assert recipe.lora.target_modules == ["q_proj", "v_proj"]
    assert recipe.tasks["a"].overlong == "drop"
    assert recipe.tasks["a"].max_rows == 5
    assert recipe.tasks["b"].overlong == "error"
    assert (
        "recipe.yaml:3: `micro_batch_size` is Axolotl's name; "
        "reading it as `training.per_device_train_batch_size`"
    ) in loaded.notes
    assert len(loaded.notes) == 15


@pytest.mark.parametrize("alias", sorted(RENAMED))
def test_every_alias_is_read_at_the_top_and_in_its_section(alias: str, write: Write) -> None:
    section, name, _ = RENAMED[alias]
    value = {
        "name_or_path": "tiny",
        "revision": "main",
        "dtype": "float32",
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch",
        "target_modules": "all-linear",
    }.get(name, 3)
    value = True if alias == "lora_target_linear" else value
    model = {} if name == "name_or_path" else {"name_or_path": "tiny"}
    tasks = {"a": {"train": "imdb", "format": "text"}}
    flat = recipe_from_mapping({"model": model, "tasks": tasks, alias: value})
    inside = {"model": model, "tasks": tasks}
    inside[section] = {**inside.get(section, {}), alias: value}
    nested = recipe_from_mapping(inside)
    assert flat.recipe == nested.recipe
    wanted = "all-linear" if alias == "lora_target_linear" else value
    assert getattr(getattr(flat.recipe, section), name) == wanted
    assert any(f"`{alias}`" in note and f"`{section}.{name}`" in note for note in flat.notes)
    assert len(nested.notes) == 1


def test_alias_and_canonical_name_together_are_an_error(write: Write) -> None:
    problem = only_problem(GOOD + "    lr: 1e-3\n    training: {learning_rate: 1e-4}\n", write)
    assert problem.where == "recipe.yaml:6, lr"
    assert "`training.learning_rate` (recipe.yaml:7) are the same setting" in problem.message
    problem = only_problem(GOOD + "    lr: 1e-3\n    learning_rate: 1e-4\n", write)
    assert "are the same setting" in problem.message


def test_an_alias_overrides_the_canonical_name_of_a_base_file(write: Write) -> None:
    write(GOOD + "    training: {learning_rate: 1e-4}\n", "base.yaml")
    loaded = read("extends: base.yaml\nlr: 1e-3\n", write, "micro_batch_size=4")
    assert loaded.recipe.training.learning_rate == 1e-3
    assert loaded.recipe.training.per_device_train_batch_size == 4
    assert loaded.notes[-1].startswith("command line: `micro_batch_size`")


def test_wrong_values_under_an_alias_are_reported_at_the_alias(write: Write) -> None:
    problem = only_problem(GOOD + "    micro_batch_size: many\n", write)
    assert problem.where == "recipe.yaml:6, micro_batch_size"
    assert problem.message == "should be a whole number, found 'many'"


@pytest.mark.parametrize("key", sorted(NOT_YET))
def test_what_does_not_exist_yet_is_refused_in_one_line(key: str, write: Write) -> None:
    problem = only_problem(f"{GOOD}\n    {key}: true\n", write)
    assert problem.message == f"`{key}` is not supported yet"
    assert problem.fix
    section = "lora" if "lora" in key else "training"
    assert only_problem(f"{GOOD}\n    {section}: {{{key}: 1}}\n", write).message == problem.message
    assert "so anyway" in read(f"{GOOD}\n    {key}: false\n", write).notes[0]


@pytest.mark.parametrize("key", sorted(ALREADY_SO))
def test_what_is_so_anyway_is_noted_and_the_contrary_refused(key: str, write: Write) -> None:
    accepted, reason = ALREADY_SO[key]
    word = str(accepted[0]).lower()
    assert reason in read(f"{GOOD}\n    {key}: {word}\n", write).notes[0]
    other = "false" if accepted[0] is True else "true" if accepted[0] is False else "epoch"
    assert "not supported yet" in only_problem(f"{GOOD}\n    {key}: {other}\n", write).message


def test_other_optimizers_are_not_supported_yet(write: Write) -> None:
    problem = only_problem(GOOD + "    training: {optim: adamw_8bit}\n", write)
    assert problem.message == "the optimizer 'adamw_8bit' is not supported yet"


def test_model_may_be_a_plain_name(write: Write) -> None:
    loaded = read(GOOD.replace("{name_or_path: tiny}", "tiny"), write)
    assert loaded.recipe.model.name_or_path == "tiny"
    assert len(loaded.notes) == 1


# -- paths -------------------------------------------------------------------------------------


def test_paths_are_found_beside_the_file_that_wrote_them(write: Write, tmp_path: Path) -> None:
    write("{}", "sub/data/x.jsonl")
    write("{}", "y.csv")
    base = GOOD.replace("train: imdb", "train: data/x.jsonl", 1)
    write(base, "sub/base.yaml")
    loaded = read("extends: sub/base.yaml\ntasks: {a: {eval: {path: y.csv}}}\n", write)
    task = loaded.recipe.tasks["a"]
    assert task.train.path == str(tmp_path / "sub/data/x.jsonl")
    assert task.eval is not None
    assert task.eval.path == str(tmp_path / "y.csv")
    assert loaded.recipe.tasks["b"].train.path == "imdb"
    given = read("extends: sub/base.yaml\n", write, "tasks.a.test=y.csv").recipe.tasks["a"].test
    assert given is not None
    assert given.path == str(tmp_path / "y.csv")


@pytest.mark.parametrize("path", ["data/y.jsonl", "./data/y", "/nowhere/y", "Y.CSV"])
def test_local_paths_that_do_not_exist_are_problems(path: str, write: Write) -> None:
    write("{}", "data/x.jsonl")
    text = GOOD.replace("train: imdb", f"train: {path}", 1)
    problem = only_problem(text, write)
    assert problem.where == "recipe.yaml:4, tasks.a.train"
    assert problem.message == f"no such file: {path}"
    assert problem.fix
    assert read_recipe("recipe.yaml", check_files=False).recipe.tasks["a"].train.path == path


def test_hub_names_and_addresses_are_kept(write: Write) -> None:
    for name in ("user/name", "https://host/x.jsonl"):
        loaded = read(GOOD.replace("train: imdb", f"train: {name}"), write)
        assert loaded.recipe.tasks["a"].train.path == name


def test_local_models_and_plugins_are_made_absolute(write: Write, tmp_path: Path) -> None:
    write("", "sub/mine.py")
    write("{}", "sub/tiny/config.json")
    text = GOOD.replace("name_or_path: tiny", "name_or_path: ./tiny")
    write(text + "    plugins: [mine.py]\n", "sub/base.yaml")
    recipe = read("extends: sub/base.yaml\n", write).recipe
    assert recipe.model.name_or_path == str(tmp_path / "sub/tiny")
    assert recipe.plugins.load == [str(tmp_path / "sub/mine.py")]
    found = problems(GOOD + "    plugins: {load: [other.py]}\n", write)
    assert found[0].where == "recipe.yaml:6, plugins.load[0]"


# -- writing -----------------------------------------------------------------------------------


def test_a_written_recipe_reads_back_equal(write: Write, tmp_path: Path) -> None:
    write("{}", "x.jsonl")
    text = GOOD.replace("train: imdb", "train: {path: x.jsonl, split: train}", 1)
    recipe = read(
        text
        + """
    weighting: {name: x, small: 1e-12, nothing: null, words: ["yes", "null", "1e-4", "2024-01-01"]}
    sharing: {shared: 0, own: 2, groups: {g: {tasks: [a, b], r: 3}}}
    training: {save_total_limit: null, adam_epsilon: 1e-12, report_to: none}
    regularization: [{name: ewc, table: {"0": a, b: [1, {c: d}]}}, l2]
    """,
        write,
    ).recipe
    write_recipe(recipe, tmp_path / "runs.yaml")
    written = (tmp_path / "runs.yaml").read_text()
    again = read_recipe(tmp_path / "runs.yaml")
    assert again.recipe == recipe
    assert again.notes == []
    assert written.index("model:") < written.index("tasks:") < written.index("training:")
    assert "revision" not in written


def test_recipes_of_python_read_back_equal(tmp_path: Path) -> None:
    data = {"model": "tiny", "tasks": {"a": {"train": "imdb", "format": "text"}}}
    recipe = recipe_from_mapping(data, ["training.seed=4"]).recipe
    assert isinstance(recipe, Recipe)
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path / "recipe.yaml").recipe == recipe
    with pytest.raises(RecipeError, match=r"recipe, tasks\.a\.trai: unknown key `trai`"):
        recipe_from_mapping({"model": "tiny", "tasks": {"a": {"trai": "imdb", "format": "text"}}})


def test_a_model_folder_beside_the_recipe_wins_over_the_hub(write: Write, tmp_path: Path) -> None:
    (tmp_path / "gpt2").mkdir()
    found = read(GOOD.replace("tiny", "gpt2"), write).recipe.model.name_or_path
    assert Path(found) == tmp_path / "gpt2"
    assert read(GOOD.replace("tiny", "elsewhere"), write).recipe.model.name_or_path == "elsewhere"


def test_an_error_keeps_its_type_when_it_gets_file_and_line(write: Write) -> None:
    loaded = read(GOOD, write)
    with pytest.raises(BackendError) as caught, loaded.locating_errors():
        raise BackendError("there is no GPU", where="tasks.a.format")
    assert caught.value.problem.where.endswith(", tasks.a.format")
    assert str(caught.value) == f"{caught.value.problem.where}: there is no GPU"


def test_a_task_named_by_a_number_is_located_by_its_name(write: Write) -> None:
    loaded = read(GOOD.replace(" a: {", " '1': {"), write)
    found = loaded.located(Problem("tasks.1.format", "wrong"))
    assert found.where.endswith(", tasks.1.format")
    assert loaded.located(Problem("tasks.1.metrics[0]", "wrong")).where.endswith("metrics[0]")


def test_what_a_file_lacks_is_not_blamed_on_the_command_line(write: Write) -> None:
    path = write("model: {name_or_path: tiny}\n")
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, ["training.seed=3"])
    assert caught.value.problem.where.endswith("recipe.yaml:1, tasks")


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("lora: {r: 8 lora_alpha: 16}\n", "look for a missing comma, quote or bracket"),
        ("lora: {r: 8, lora_alpha: 16\n", "close the bracket"),
    ],
)
def test_a_broken_mapping_on_one_line_gets_the_right_hint(
    text: str, fix: str, write: Write
) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(write(text))
    assert caught.value.problem.fix == fix
