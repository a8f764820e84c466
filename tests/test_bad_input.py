from __future__ import annotations
import codecs, json, os, shutil
from collections.abc import Callable
from pathlib import Path
import pytest
from tests.command_line import CommandLine, contents
from tests.recipes import write_tiny_recipe

@pytest.fixture
def cli(capfd): return CommandLine(capfd)

@pytest.fixture
def place(tiny_model, tmp_path):
    write_tiny_recipe(tmp_path, tiny_model)
    return tmp_path

def edit(place, old, new, file="recipe.yaml"):
    p = place / file
    t = p.read_text()
    assert old in t
    p.write_text(t.replace(old, new, 1))
def line(place, n, text, file="sentiment.train.jsonl"):
    p = place/file; l = p.read_text().splitlines(); l[n-1]=text; p.write_text("\n".join(l)+"\n")

CASES = {
 "missing": lambda p: (p/"sentiment.train.jsonl").unlink(),
 "wrong_column": lambda p: edit(p, "completion: corrected", "completion: corected"),
 "wrong_column2": lambda p: edit(p, "    columns: {completion: corrected}\n", ""),
 "wrong_type": lambda p: line(p, 3, '{"text": "x", "corrected": 3}', "spelling.train.jsonl"),
 "label": lambda p: line(p, 4, '{"text": "x", "label": "neutral"}'),
 "json": lambda p: line(p, 5, '{"text": '),
 "key": lambda p: edit(p, "  max_steps", "  max_stepps"),
 "weighting": lambda p: edit(p, "weighting: pcgrad", "weighting: pcgradd"),
 "option": lambda p: edit(p, "weighting: pcgrad", "weighting: {name: pcgrad, scop: model}"),
 "range": lambda p: edit(p, "temperature: 2.0", "temperature: -2"),
 "range2": lambda p: edit(p, "lora_dropout: 0.1", "lora_dropout: 1.5"),
 "targets": lambda p: edit(p, "{r: 4,", "{r: 4, target_modules: [q_prj],"),
 "targets2": lambda p: edit(p, "{r: 4,", "{r: 4, target_modules: 'attn.*',"),
 "nomodel": lambda p: edit(p, "name_or_path: /", "name_or_path: /nowhere/"),
 "nomodel2": lambda p: (p/"empty").mkdir() or edit(p, (p/"recipe.yaml").read_text().splitlines()[0], "model: ./empty"),
 "nomodel3": lambda p: edit(p, (p/"recipe.yaml").read_text().splitlines()[0], "model: nowhere/nothing"),
 "4bit": lambda p: edit(p, "training:", "load_in_4bit: true\ntraining:"),
 "4bit2": lambda p: edit(p, "model: {", "model: {load_in_4bit: true, "),
 "zero": lambda p: (p/"definitions.train.jsonl").write_text("\n".join(['{"word": 1}']*3)),
 "zero2": lambda p: edit(p, "max_length: 96", "max_length: 5"),
 "zero3": lambda p: (edit(p, "    loss_weight: 2.0", "    on_bad_row: skip"), (p/"spelling.train.jsonl").write_text('{"text": "a", "corrected": 1}\n'*3)),
 "yaml": lambda p: edit(p, "weighting: pcgrad", "weighting: {pcgrad"),
 "yaml2": lambda p: (p/"recipe.yaml").write_text(""),
 "empty": lambda p: (p/"spelling.train.jsonl").write_text(""),
 "outfile": lambda p: (p/"run").write_text("mine"),
 "outfile2": lambda p: ((p/"f").write_text("mine"), edit(p, "output_dir: "+str(p/"run"), "output_dir: "+str(p/"f"/"run"))),
 "evalempty": lambda p: (p/"spelling.dev.jsonl").write_text(""),
 "metric": lambda p: edit(p, "exact_match", "exact_mach"),
 "format": lambda p: edit(p, "name: classification", "name: clasification"),
 "template": lambda p: edit(p, "{{ word }}", "{{ wrod }}"),
 "template2": lambda p: edit(p, "{{ word }}", "{{ word }"),
 "perm": lambda p: (p/"run").mkdir() or (p/"run").chmod(0o500),
 "utf16": lambda p: (p/"spelling.train.jsonl").write_text((p/"spelling.train.jsonl").read_text(), encoding="utf-16"),
 "fixedw": lambda p: edit(p, "weighting: pcgrad", "weighting: {name: fixed, weights: {sentiment: 1}}"),
 "ptype": lambda p: edit(p, "l2_anchor", "l2_ancor"),
}
@pytest.mark.parametrize("name", CASES)
def test_train(name, place, cli):
    CASES[name](place)
    before = contents(place)
    try: code, out, err = cli("train", place/"recipe.yaml")
    except Exception as e: code,out,err=type(e),"",repr(e)
    with open("/tmp/bi/log.txt", "a") as f:
        f.write(f"=== {name}: {code} same={contents(place)==before} {sorted(set(contents(place))-set(before))}\n--out\n{out}--err\n{err}\n")

def test_others(place, cli, tiny_run, tmp_path):
    (place/"junk").mkdir()
    (place/"junk"/"recipe.yaml").write_text("hello")
    broken = tmp_path/"broken"; shutil.copytree(tiny_run, broken); shutil.rmtree(broken/"checkpoints")
    b2 = tmp_path/"b2"; shutil.copytree(tiny_run, b2)
    last = sorted((b2/"checkpoints").glob("step*"))[-1]
    (last/"adapters.safetensors").write_bytes(b"xx")
    b3 = tmp_path/"b3"; shutil.copytree(tiny_run, b3); 
    last = sorted((b3/"checkpoints").glob("step*"))[-1]
    (last/"state.json").write_text("{}")
    gone = tmp_path/"gone"; shutil.copytree(tiny_run, gone); 
    t = (gone/"recipe.yaml").read_text().replace("sentiment.train","sentiment.gone"); (gone/"recipe.yaml").write_text(t)
    for args in [("train", place/"recipe.yaml", "--resume"), ("train", place/"recipe.yaml", "--resume", place),("train", place/"recipe.yaml", "--resume", "nope"),
        ("train", place/"recipe.yaml", f"training.output_dir={broken}"),
        ("train", place/"recipe.yaml", f"training.output_dir={b3}", "--resume"),
        ("train", place/"recipe.yaml", f"training.output_dir={b2}", "--resume"),
        ("train", place/"nope.yaml"),("train", place),("train", place/"spelling.train.jsonl"),
        ("train", place/"recipe.yaml", "training.sed=1"),("train", place/"recipe.yaml", "nonsense"),("train",),
        *[(v, f) for v in ("evaluate", "export") for f in ("nope", place, place/"recipe.yaml", place/"junk", broken, b2, b3)],
        *[("generate", f, "hello") for f in ("nope", place, place/"junk", broken, b2, b3)],
        ("evaluate", tiny_run, "--task", "speling"), ("export", tiny_run, "--task", "speling"), ("generate", tiny_run, "--task", "speling", "x"),
        ("evaluate", gone), ("export", tiny_run, "--task", "spelling", "--out", place/"recipe.yaml"),
        ("demo", "--tiny", "--out", place/"recipe.yaml"),
        ("train", place/"recipe.yaml", "--disable-plugin", "weighting/pcgrad"),
        ("train", place/"recipe.yaml", "--disable-plugin", "pcgrad", "weighting=foo"),
        ]:
        before = contents(tmp_path); b1=contents(tiny_run)
        try:
            code, out, err = cli(*args)
        except Exception as e:
            code, out, err = type(e), "", repr(e)+"\n"
        os.environ.pop("MTLCORE_DISABLE_PLUGINS", None)
        with open("/tmp/bi/log.txt", "a") as f:
            f.write(f"=== {' '.join(map(str,args))}: {code} same={contents(place)==before and b1==contents(tiny_run)} {sorted(set(contents(place))-set(before))}\n--out\n{out}--err\n{err}\n")
