"""Adding a task to a finished run: what is taken over, what is trained, what is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import mtlcore
from mtlcore.adaptation import forgetting
from mtlcore.errors import UserError
from mtlcore.model.fingerprint import fingerprint
from tests.evaluation.test_auxiliary_tasks import auxiliary_in
from tests.models import backbone
from tests.recipes import TASKS, final_adapters, metrics, training_part, write_tiny_recipe

NEW = TASKS.partition("  definitions:")
OLD_TASKS = NEW[0]
NEW_TASK = f"tasks:\n  definitions:{NEW[2]}"


@pytest.fixture(scope="module")
def old_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks, and beside it new.yaml with the third."""
    folder = tmp_path_factory.mktemp("old")
    training = training_part(folder, learning_rate=0.02)
    recipe = write_tiny_recipe(folder, tiny_model, tasks=OLD_TASKS, training=training)
    (folder / "new.yaml").write_text(NEW_TASK, encoding="utf-8")
    return mtlcore.train(recipe).folder


def copied(run: Path, target: Path) -> Path:
    """A copy of a run that a test may change."""
    shutil.copytree(run, target)
    return target


def test_the_new_task_is_learned_and_old_own_weights_stay(old_run: Path, tmp_path: Path) -> None:
    new = old_run.parent / "new.yaml"
    run = mtlcore.adapt(old_run, new, max_steps=4, output_dir=tmp_path / "adapted")
    before, after = final_adapters(old_run), final_adapters(run.folder)
    moved = {n.rpartition(".")[2] for n, v in before.items() if not torch.equal(v, after[n])}
    assert moved == {"shared"}
    assert set(after) - set(before) == {n for n in after if n.endswith("own:definitions")}
    assert {tuple(k for k, v in line["rows"].items() if v) for line in metrics(run.folder)} == {
        ("definitions",)
    }
    assert run.recipe.stages[0].name == "adapt"


def test_a_run_starts_exactly_as_the_old_one_ended(old_run: Path, tmp_path: Path) -> None:
    """The old tasks are answered as before, and the table of changes compares with that."""
    run = mtlcore.adapt(
        old_run, old_run.parent / "new.yaml", max_steps=1, output_dir=tmp_path / "adapted"
    )
    told = json.loads((run.folder / "forgetting.json").read_text())
    assert list(told["tasks"]) == ["sentiment", "spelling"]
    scores = mtlcore.load(old_run).evaluate("test")
    now = run.evaluate("test")
    for name, row in told["tasks"].items():
        assert row["before"] == scores.by_task[name].metrics[row["metric"]]
        assert row["after"] == now.by_task[name].metrics[row["metric"]]
        assert row["change"] == row["after"] - row["before"]
    new = now.by_task["definitions"].metrics["rouge_l"]
    assert told["new_tasks"] == {"definitions": {"metric": "rouge_l", "after": new}}
    before = json.loads((run.folder / "predictions/before/scores.json").read_text())
    for name in told["tasks"]:
        assert before["tasks"][name]["loss"] == pytest.approx(scores.by_task[name].loss, rel=1e-6)


def test_a_new_own_adapter_starts_from_the_nearest_task(old_run: Path, tmp_path: Path) -> None:
    """A task with rows of an old one finds it, whatever its name."""
    data = old_run.parent / "spelling.train.jsonl"
    new = {
        "tasks": {
            "corrections": {
                "train": str(data),
                "format": {
                    "name": "prompt_completion",
                    "template": "Correct: {{ text }}\nCorrected:",
                },
                "columns": {"completion": "corrected"},
            }
        }
    }
    change = ["training.learning_rate=1e-12"]
    run = mtlcore.adapt(old_run, new, change, max_steps=1, output_dir=tmp_path / "adapted")
    assert any("the own adapter of 'spelling'" in note for note in run.notes)
    state = run.model.adapter_state()
    for name, value in state.items():
        if name.endswith("own:corrections"):
            old = state[name.replace("own:corrections", "own:spelling")]
            assert torch.allclose(value, old, atol=1e-9)
    fresh = mtlcore.adapt(
        old_run, new, [*change, "start.nearest=false"], max_steps=1, output_dir=tmp_path / "fresh"
    )
    own = [v for n, v in fresh.model.adapter_state().items() if "lora_B.own:corrections" in n]
    assert all(float(value.abs().max()) < 1e-6 for value in own)


@pytest.mark.parametrize("named", [False, True])
def test_a_new_task_with_a_head_has_no_nearest_task(
    named: bool, old_run: Path, tmp_path: Path
) -> None:
    part = yaml.safe_load("tasks:" + OLD_TASKS)["tasks"]["sentiment"]
    files = {split: str(old_run.parent / part[split]) for split in ("train", "eval", "test")}
    new = {"tasks": {"rated": {**part, **files, "head": "classification"}}}
    overrides = ["start.own_from.rated=sentiment"] * named
    run = mtlcore.adapt(old_run, new, overrides, max_steps=1, output_dir=tmp_path / "run")
    assert any("'rated' starts from a fresh adapter" in note for note in run.notes) != named


def test_an_interrupted_adaptation_resumes_bit_identically(old_run: Path, tmp_path: Path) -> None:
    finals = []
    for name in ("whole", "resumed"):
        folder = tmp_path / name
        new = old_run.parent / "new.yaml"
        mtlcore.adapt(old_run, new, max_steps=4, output_dir=folder)
        if name == "resumed":
            shutil.rmtree(folder / "checkpoints" / "step-000004")
            mtlcore.adapt(old_run, new, max_steps=4, output_dir=folder, resume=True)
        finals.append(final_adapters(folder))
    assert all(torch.equal(value, finals[1][name]) for name, value in finals[0].items())


def test_a_resumed_adaptation_takes_no_other_number_of_steps(old_run: Path, tmp_path: Path) -> None:
    new = old_run.parent / "new.yaml"
    mtlcore.adapt(old_run, new, max_steps=2, output_dir=tmp_path / "run")
    with pytest.raises(UserError, match=r"was started for 2 steps, .* found 6"):
        mtlcore.adapt(old_run, new, max_steps=6, output_dir=tmp_path / "run", resume=True)
    shutil.rmtree(tmp_path / "run" / "predictions" / "before")
    with pytest.raises(UserError, match="the scores from before the new tasks are missing"):
        mtlcore.adapt(old_run, new, output_dir=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((("max_rows: 12", "max_rows: 10"),), "tasks.definitions.max_rows changed"),
        ((("    max_rows: 12\n", ""),), "tasks.definitions.max_rows changed"),
        ((("definitions:", "meanings:"),), "begun with definitions, .* found meanings"),
    ],
)
def test_a_resumed_adaptation_takes_no_other_task(
    changes: tuple[tuple[str, str], ...], message: str, old_run: Path, tmp_path: Path
) -> None:
    new, folder = old_run.parent / "limited.yaml", tmp_path / "run"
    text = NEW_TASK.replace("  definitions:\n", "  definitions:\n    max_rows: 12\n")
    new.write_text(text)
    mtlcore.adapt(old_run, new, max_steps=1, output_dir=folder)
    mtlcore.adapt(old_run, new, max_steps=1, output_dir=folder, resume=True)
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    new.write_text(text)
    with pytest.raises(UserError, match=message):
        mtlcore.adapt(old_run, new, max_steps=1, output_dir=folder, resume=True)


def test_a_resumed_adaptation_takes_no_other_start(old_run: Path, tmp_path: Path) -> None:
    new = old_run.parent / "new.yaml"
    folder = mtlcore.adapt(old_run, new, max_steps=1, output_dir=tmp_path / "run").folder
    for other in (copied(old_run, tmp_path / "other"), tmp_path / "none"):
        with pytest.raises(UserError, match=f"was begun from {old_run}, .* found {other}"):
            mtlcore.adapt(other, new, max_steps=1, output_dir=folder, resume=True)


def test_old_tasks_without_rows_to_score_are_told(old_run: Path, tmp_path: Path) -> None:
    run = copied(old_run, tmp_path / "old")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    for task in recipe["tasks"].values():
        task.pop("eval", None)
        task.pop("test", None)
        task["split"] = {"eval": 0.0, "test": 0.0}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    told = mtlcore.adapt(run, old_run.parent / "new.yaml", max_steps=1, output_dir=tmp_path / "new")
    found = json.loads((told.folder / "forgetting.json").read_text(encoding="utf-8"))
    assert found["tasks"] == {}
    assert found["mean_change"] is None
    assert list(found["new_tasks"]) == ["definitions"]


def test_an_unfinished_run_can_be_adapted_but_not_without_a_word(
    old_run: Path, tmp_path: Path
) -> None:
    unfinished = copied(old_run, tmp_path / "unfinished")
    shutil.rmtree(unfinished / "checkpoints" / "step-000006")
    run = mtlcore.adapt(
        unfinished, old_run.parent / "new.yaml", max_steps=1, output_dir=tmp_path / "adapted"
    )
    told = "its newest checkpoint is that of step 4 of 6; the weights used are those of step 4"
    assert [told in note for note in run.notes] == [True] + [False] * (len(run.notes) - 1)


def test_an_adapted_run_can_be_adapted(old_run: Path, tmp_path: Path) -> None:
    first = mtlcore.adapt(
        old_run, old_run.parent / "new.yaml", max_steps=1, output_dir=tmp_path / "first"
    )
    more = {"tasks": {"more": {"train": str(old_run.parent / "sentiment.train.jsonl"),
            "format": "text", "columns": {"text": "text"}}}}  # fmt: skip
    second = mtlcore.adapt(first.folder, more, max_steps=1, output_dir=tmp_path / "second")
    assert [task.name for task in second.tasks] == ["sentiment", "spelling", "definitions", "more"]


def test_replay_keeps_the_names_of_the_old_tasks(old_run: Path, tmp_path: Path) -> None:
    run = mtlcore.adapt(
        old_run,
        old_run.parent / "new.yaml",
        ["replay={name: reservoir, rows: 10, share: 0.5}", "regularization=[ewc]"],
        max_steps=3,
        output_dir=tmp_path / "adapted",
    )
    for line in metrics(run.folder):
        assert line["rows"]["definitions"] == 6
        assert line["rows"]["sentiment"] + line["rows"]["spelling"] == 3
    before, after = final_adapters(old_run), final_adapters(run.folder)
    for name, value in before.items():
        if "own:" in name:
            assert torch.equal(value, after[name]), "replayed rows do not move frozen weights"


def test_scores_before_are_those_of_this_start(old_run: Path, tmp_path: Path) -> None:
    """Not those that an interrupted first try left behind."""
    folder = tmp_path / "adapted"
    left = folder / "predictions" / "before" / "scores.json"
    left.parent.mkdir(parents=True)
    left.write_text('{"tasks": {"sentiment": {"accuracy": 0.99, "loss": 1.0}}}')
    run = mtlcore.adapt(old_run, old_run.parent / "new.yaml", max_steps=1, output_dir=folder)
    told = json.loads((run.folder / "forgetting.json").read_text())
    assert told["tasks"]["sentiment"]["before"] != 0.99


def test_the_mean_change_is_that_of_scores_from_0_to_1(old_run: Path, tmp_path: Path) -> None:
    """chrF counts to 100, and must not drown accuracy."""
    run = mtlcore.adapt(
        old_run, old_run.parent / "new.yaml", max_steps=1, output_dir=tmp_path / "adapted"
    )
    scores = run.evaluate("test")
    before = tmp_path / "before.json"
    old = {"sentiment": {"accuracy": 1.0, "loss": 1.0}, "spelling": {"exact_match": 0.5, "loss": 1}}
    before.write_text(json.dumps({"tasks": old}))
    run.evaluators["spelling"][0].best = 100.0  # type: ignore[misc]
    told = forgetting(run, before, scores)
    changes = [row["change"] for row in told["tasks"].values()]
    assert told["mean_change"] == pytest.approx((changes[0] + changes[1] / 100) / 2)
    scores = auxiliary_in(scores, "spelling")
    assert forgetting(run, before, scores)["mean_change"] == pytest.approx(changes[0])


def test_resume_needs_the_start_run_no_more(old_run: Path, tmp_path: Path) -> None:
    old, folder = copied(old_run, tmp_path / "old"), tmp_path / "adapted"
    new = old_run.parent / "new.yaml"
    whole = final_adapters(mtlcore.adapt(old, new, max_steps=4, output_dir=folder).folder)
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    shutil.rmtree(old)
    run = mtlcore.adapt(old, new, max_steps=4, output_dir=folder, resume=True)
    resumed = final_adapters(run.folder)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert mtlcore.load(folder).step == 4


@pytest.mark.parametrize("name", ["own", "shared_words", "lora_A"])
def test_own_weights_are_copied_whatever_the_tasks_are_called(
    name: str, old_run: Path, tmp_path: Path
) -> None:
    new = {"tasks": {name: {"train": str(old_run.parent / "spelling.train.jsonl"),
           "format": {"name": "text"}, "columns": {"text": "text"}}}}  # fmt: skip
    changes = ["training.learning_rate=1e-12", f"start.own_from={{{name}: sentiment}}"]
    run = mtlcore.adapt(old_run, new, changes, max_steps=1, output_dir=tmp_path / "adapted")
    mine = run.model.adapter_state(owner=run.task(name).index)
    theirs = run.model.adapter_state(owner=run.task("sentiment").index)
    for one, other in zip(mine.values(), theirs.values(), strict=True):
        assert torch.allclose(one, other, atol=1e-9)


# -- bad input ---------------------------------------------------------------------------------


def test_another_base_model_is_refused(old_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    from mtlcore.demo.tiny import make_tiny_model

    other = make_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="base model is not the one"):
        mtlcore.adapt(
            old_run,
            old_run.parent / "new.yaml",
            [f"model.name_or_path={other}"],
            output_dir=tmp_path / "adapted",
        )
    assert not (tmp_path / "adapted").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["lora.lora_alpha=32"], "lora_alpha / r = 2"),
        (["sharing.own=3"], r"this model has|is \["),
        (["sharing.shared=0"], "do not fit this recipe"),
        (["tasks.sentiment.head=classification"], "tasks.sentiment.head differ"),
        (["start.own_from={spelling: sentiment}"], "maps new tasks to old ones"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(
    changes: list[str], message: str, old_run: Path, tmp_path: Path
) -> None:
    new = old_run.parent / "new.yaml"
    with pytest.raises(UserError, match=message):
        mtlcore.adapt(old_run, new, changes, output_dir=tmp_path / "adapted")
    assert not (tmp_path / "adapted").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora: {r: 3}\n", "tasks to add and nothing else"),
        (NEW_TASK + "\nlora: {r: 3}\n", "tasks to add and nothing else"),
        (NEW_TASK.replace("definitions:", "spelling:"), "has a task 'spelling' already"),
    ],
)
def test_a_bad_task_file_is_refused(text: str, message: str, old_run: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        mtlcore.adapt(old_run, tmp_path / "bad.yaml", output_dir=tmp_path / "adapted")


def test_a_folder_without_a_run_is_refused(old_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        mtlcore.adapt(tmp_path, old_run.parent / "new.yaml")


# -- fingerprints ------------------------------------------------------------------------------


def test_a_fingerprint_tells_models_apart_and_not_number_types() -> None:
    assert fingerprint(backbone("llama")) == fingerprint(backbone("llama", torch.float32))
    assert fingerprint(backbone("llama")) != fingerprint(backbone("qwen2"))
    changed = backbone("llama")
    with torch.no_grad():
        changed.get_output_embeddings().weight[0, 0] += 1
    assert fingerprint(changed) != fingerprint(backbone("llama"))
