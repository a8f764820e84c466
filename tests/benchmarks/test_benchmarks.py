"""Each benchmark in its smallest form: a green check, and a last line in the common form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    baselines,
    checkpoint,
    cross_entropy,
    faults,
    fisher,
    gramian,
    harness,
    lora,
    overhead,
    startup,
    step,
    throughput,
    weighting,
)

# TorchJD's autojac runs attention under vmap, for which torch has no batching rule.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


def last_line(capsys: pytest.CaptureFixture[str], name: str) -> dict[str, Any]:
    """The record that a benchmark printed, alone on its standard output."""
    (line,) = capsys.readouterr().out.splitlines()
    record: dict[str, Any] = json.loads(line)
    assert record["benchmark"] == name
    assert {"device", "commit", "versions", "load", "results"} < record.keys()
    keys = ["case", "metric", "value", "unit", "p20", "p80", "target", "met"]
    for one in record["results"]:
        assert list(one) == keys
        assert one["p20"] <= one["value"] <= one["p80"]
        assert (one["met"] is None) == (one["target"] is None)
    return record


def metrics(record: dict[str, Any], case: str) -> dict[str, Any]:
    return {one["metric"]: one for one in record["results"] if one["case"] == case}


def test_step(capsys: pytest.CaptureFixture[str]) -> None:
    step.run(["--json", "--tiny", "--rounds", "1", "--tasks", "3"])
    record = last_line(capsys, "step")
    assert {one["case"] for one in record["results"]} == {"T=3 8x16", "T=3 1x16"}
    for case in ("T=3 8x16", "T=3 1x16"):
        found = metrics(record, case)
        names = {
            "plain_peft",
            "plain_ours",
            "one_pass_pcgrad",
            "separate_passes",
            "multi_pass",
            "torchjd_autojac",
        }
        [which] = [metric for metric in found if metric.startswith("plain is")]
        assert found.keys() == names | {f"{name} / plain" for name in names} | {"plain", which}
        assert found["plain"]["value"] == found[which.removeprefix("plain is ")]["value"]
        plain = min(found["plain_peft"]["value"], found["plain_ours"]["value"])
        one_pass = found["one_pass_pcgrad"]["value"]
        assert found["one_pass_pcgrad / plain"]["value"] == pytest.approx(one_pass / plain)
        assert [name for name, one in found.items() if one["target"]] == ["one_pass_pcgrad / plain"]


def test_slow_variants_take_fewer_rounds_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "SLOW_ROUNDS", 1)
    case = step.Case(8, 8, step.TINY)
    found = {one.metric: one.value for one in step.time_case(case, rounds=2)}
    assert {name: value for name, value in found.items() if name.endswith("rounds")} == {
        "multi_pass rounds": 1,
        "torchjd_autojac rounds": 1,
    }


def test_a_wrong_gradient_is_seen(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def wrong(self: step.Case, gradients: Any) -> None:
        right(self, gradients)
        self.our_factors[-1].grad[0] *= 1.01  # type: ignore[index]

    right = step.Case.step_gradients
    monkeypatch.setattr(step.Case, "step_gradients", wrong)
    with pytest.raises(SystemExit):
        step.run(["--tiny", "--tasks", "2"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "separate_passes" in captured.err


def test_throughput(capsys: pytest.CaptureFixture[str]) -> None:
    throughput.run(["--json", "--tiny", "--rounds", "2", "--steps", "1"])
    found = metrics(last_line(capsys, "throughput"), "demo, 16 rows a step")
    for name in ("single", "everything", "hf_default", "hf_grouped"):
        assert found[f"{name} rows"]["value"] > 0
        assert found[f"{name} tokens"]["value"] > found[f"{name} rows"]["value"]
    targets = {name: one["target"] for name, one in found.items() if one["target"]}
    assert targets == {
        "single / hf_default": 3.0,
        "single / hf_grouped": 1.6,
        "everything / hf_default": 2.5,
    }
    padding = [found[f"hf_{name} tokens with padding / without"] for name in ("default", "grouped")]
    assert padding[0]["value"] > padding[1]["value"] >= 1


def test_another_adapter_is_seen(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def randomize_later(run: Any) -> None:
        randomize_b(run)
        export = run.export

        def export_changed(*args: Any, **kwargs: Any) -> Any:
            folder = export(*args, **kwargs)
            next(iter(run.model.layers.values())).lora_A["shared"].data *= 1.01
            return folder

        run.export = export_changed

    randomize_b = throughput.randomize_b
    monkeypatch.setattr(throughput, "randomize_b", randomize_later)
    with pytest.raises(SystemExit):
        throughput.run(["--tiny", "--rounds", "1", "--steps", "1"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "gradient" in captured.err


def test_startup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "ROUNDS", 1)
    harness.main("startup", startup.check, startup.measure, argv=["--json"])
    found = last_line(capsys, "startup")["results"]
    assert [one["case"] for one in found] == ["python -c pass", "mtlcore --help", "mtlcore schema"]


def test_fisher(capsys: pytest.CaptureFixture[str]) -> None:
    fisher.run(["--json", "--tiny", "--rounds", "1"])
    record = last_line(capsys, "fisher")
    assert {one["case"] for one in record["results"]} == set(fisher.CASES)
    for case in fisher.CASES:
        found = metrics(record, case)
        plain = min(found["plain_autograd"]["value"], found["plain_folded"]["value"])
        ratio = found["fisher"]["value"] / plain
        assert found["fisher / plain"]["value"] == pytest.approx(ratio)
        assert [name for name, one in found.items() if one["target"]] == ["fisher / plain"]


def test_a_wrong_fisher_is_seen(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def wrong(self: fisher.Case, mode: fisher.Mode) -> Any:
        factor = 1.01 if mode == "one_pass" else 1.0
        return {name: factor * value for name, value in right(self, mode).items()}

    right = fisher.Case.fisher
    monkeypatch.setattr(fisher.Case, "fisher", wrong)
    with pytest.raises(SystemExit):
        fisher.run(["--tiny"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "fisher: factor 0" in captured.err


def test_baselines(capsys: pytest.CaptureFixture[str]) -> None:
    baselines.run(["--json", "--tiny", "--rounds", "1"])
    record = last_line(capsys, "baselines")
    for case, target in (("T=5 1x16", 0.7), ("T=5 8x16", 1.05)):
        found = metrics(record, case)
        assert found.keys() == {"together", "separate", "together / separate"}
        ratio = found["together"]["value"] / found["separate"]["value"]
        assert found["together / separate"]["value"] == pytest.approx(ratio)
        assert found["together / separate"]["target"] == target


def test_baselines_that_touch_each_other_are_seen(
    capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(baselines.Gradients, "clip", clip_all_tasks_as_one)
    with pytest.raises(SystemExit):
        baselines.run(["--tiny", "--rounds", "1"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "own:task0" in captured.err


def clip_all_tasks_as_one(self: Any, max_norm: float) -> None:
    norm = float(self.arena.own.norm())
    self.arena.own.mul_(min(1.0, max_norm / norm))


def test_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.run(["--json", "--sizes", "1M", "--rounds", "1"])
    found = metrics(last_line(capsys, "checkpoint"), "1M")
    assert [name for name, one in found.items() if one["target"]] == ["wait / plain"]
    weights_and_moments = 3 * 4 * 7 * 146_400 / 1e6
    for whose in ("ours", "hf"):
        assert 1 < found[f"size of {whose}"]["value"] / weights_and_moments < 1.05


@pytest.mark.slow
def test_faults(capsys: pytest.CaptureFixture[str]) -> None:
    faults.run(["--json", "--moments", "1", "--files", "optimizer.safetensors"])
    record = last_line(capsys, "faults")
    for kind, tried in (("SIGKILL", 1), ("SIGTERM", 1), ("damage", 5)):
        found = metrics(record, kind)
        assert [found[name]["value"] for name in ("tried", "survived", "lost")] == [tried, tried, 0]


def test_gramian(capsys: pytest.CaptureFixture[str]) -> None:
    gramian.run(["--json", "--rounds", "2", "--columns", "5000"])
    record = last_line(capsys, "gramian")
    for case in ("T=8 P=5e+03", "T=32 P=5e+03"):
        found = metrics(record, case)
        assert found["gramian, error"]["value"] < 1e-6
        assert found["torch J @ Jt / gramian"]["target"] is not None
        share = found["combine, share of copy bandwidth"]
        assert share["target"] == gramian.SHARE
        assert share["met"] == (share["value"] >= gramian.SHARE)
        assert {"by slice", "torch J @ v / cross", "torch project / project"} <= found.keys()


def test_another_update_is_seen(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def wrong(J: Any, weights_of: Any, *, out: Any) -> Any:
        return project(J, lambda G: 1.01 * weights_of(G), out=out)

    project = gramian.ops.project_task_gradients
    monkeypatch.setattr(gramian.ops, "project_task_gradients", wrong)
    with pytest.raises(SystemExit):
        gramian.run(["--json", "--rounds", "1", "--columns", "5000"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "project" in captured.err


def test_lora(capsys: pytest.CaptureFixture[str]) -> None:
    lora.run(["--json", "--rounds", "3", "--tokens", "64", "--widths", "48"])
    record = last_line(capsys, "lora")
    for case in ("N=64 48 T=1", "N=64 48 T=8"):
        found = metrics(record, case)
        floor, overhead_of_ours = found["floor of the overhead"], found["ours, overhead"]
        assert floor["value"] > 0
        share = found["ours, share of the floor reached"]["value"]
        assert share == pytest.approx(floor["value"] / overhead_of_ours["value"])
    assert metrics(record, "N=64 48")["T=8 / T=1, total"]["target"] == lora.TARGET_TASKS


def test_overhead(capsys: pytest.CaptureFixture[str]) -> None:
    overhead.run(["--json", "--rounds", "5"])
    record = last_line(capsys, "overhead")
    for way in ("forward", "backward"):
        found = metrics(record, way)
        assert found["ours"]["value"] > found["function"]["value"] > 0
        assert found["ours - function"]["target"] == overhead.TARGET


def test_cross_entropy(capsys: pytest.CaptureFixture[str]) -> None:
    cross_entropy.run(["--json", "--rounds", "2"])
    found = metrics(last_line(capsys, "cross_entropy"), "L=1024 V=49152")
    assert found["ours, peak"]["value"] > 48, "a piece of the logits at least"
    assert found["ours / whole, peak"]["met"]


@pytest.mark.slow
def test_the_steps_for_a_gpu_machine_run_dry(tmp_path: Path) -> None:
    """Build included, without a network, from a folder of wheels that is empty."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh"], cwd=root, capture_output=True, text=True, timeout=900,
        env={**os.environ, "MTLCORE_GPU_DRY": "1", "MTLCORE_GPU_OUT": str(tmp_path),
             "MTLCORE_WHEELS": str(tmp_path), "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    verdicts = [line.split() for line in (tmp_path / "summary.txt").read_text().splitlines()[:7]]
    steps = ["environment", "where", "build", "tests", "sanitize", "lora", "gramian"]
    assert [line[:2] for line in verdicts] == [[step, "ok"] for step in steps]
    assert "not run: compute-sanitizer" in (tmp_path / "sanitize.log").read_text()
    lines = [json.loads(line) for line in (tmp_path / "benchmarks.jsonl").read_text().splitlines()]
    assert [line["benchmark"] for line in lines] == ["lora", "gramian"]


def test_weighting(capsys: pytest.CaptureFixture[str]) -> None:
    weighting.run(["--json", "--rounds", "1", "--tasks", "2", "8"])
    record = last_line(capsys, "weighting")
    for size in (2, 8):
        for name in ("aligned_mtl", "config", "mgda", "pcgrad", "upgrad"):
            found = metrics(record, f"{name} T={size}")
            assert found["mtlcore"]["value"] > 0
            assert found["mtlcore / torchjd"]["target"] == 1
        assert metrics(record, f"nash_mtl T={size}")["mtlcore"]["value"] > 0


def test_another_weighting_is_seen(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    right = weighting.rivals

    def wrong(*, exact: bool = False) -> dict[str, weighting.Solve]:
        return {**right(exact=exact), "upgrad": lambda J, G: torch.ones(len(G)).double()}

    monkeypatch.setattr(weighting, "rivals", wrong)
    with pytest.raises(SystemExit):
        weighting.run(["--json"])
    assert "the check failed, nothing was timed: upgrad" in capsys.readouterr().err
