"""Finding, blocking, checking and describing plugins."""

import json
import logging
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from mtlcore import plugin_cache, plugin_sources
from mtlcore.cli.plugins import app
from mtlcore.components import Component, Count, Scope, Share, Weighting
from mtlcore.errors import UserError
from mtlcore.plugin_sources import Plugin
from mtlcore.plugins import PluginManager
from mtlcore.recipe import ComponentSpec
from mtlcore.testing import plugin_manager


def spec(name, **options):
    return SimpleNamespace(name=name, options=options)


class Damped(Weighting):
    """Damp the tasks that conflict.

    More text.
    """

    name = "damped"
    paper = "A Paper (Venue 2020), https://example.org"

    def __init__(self, *, c: Share = 0.5, steps: Count = 10, scope: Scope = "model"):
        self.c, self.steps, self.scope = c, steps, scope
        if steps == 13:
            raise ValueError("steps must not be 13")


class Required(Weighting):
    name = "required"

    def __init__(self, *, weights: dict[str, float]):
        self.weights = weights


# -- creating components ----------------------------------------------------------------------


def test_options_reach_the_constructor_and_defaults_stay():
    made = plugin_manager(Damped).create("weighting", spec("damped", c=0.25), "weighting")
    assert isinstance(made, Damped)
    assert (made.c, made.steps, made.scope) == (0.25, 10, "model")


def test_numbers_that_yaml_reads_as_text_are_converted():
    made = plugin_manager(Damped).create("weighting", spec("damped", c="1e-1"), "weighting")
    assert made.c == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c": 1.5}, r"weighting\.c must be less than or equal to 1, found 1\.5"),
        ({"c": float("nan")}, r"weighting\.c must be a finite number"),
        ({"c": "0.5"}, r"weighting\.c must be a number, found '0\.5'\n.*write 0\.5 without quotes"),
        ({"steps": 2.5}, r"weighting\.steps must be a whole number.*found 2\.5"),
        (
            {"scope": "layers"},
            r"weighting\.scope must be 'model', 'layer' or 'factor', found 'layers'",
        ),
        ({"step": 2}, r"weighting\.step is not an option of 'damped'\n.*did you mean 'steps'\?"),
        ({"steps": 13}, r"weighting 'damped': steps must not be 13"),
        ({"c": 2, "steps": 0}, r"(?s)weighting\.c must.*weighting\.steps must"),
    ],
)
def test_wrong_options_are_named_with_rule_and_value(options, message):
    with pytest.raises(UserError, match=message) as caught:
        plugin_manager(Damped).create("weighting", spec("damped", **options), "r.yaml:7, weighting")
    assert "r.yaml:7" in str(caught.value)
    assert caught.value.exit_code == 2


def test_missing_and_nested_options_are_named():
    manager = plugin_manager(Required)
    with pytest.raises(UserError, match=r"weighting\.weights is required by 'required'"):
        manager.create("weighting", spec("required"), "w")
    with pytest.raises(UserError, match=r"weighting\.weights\.a must be a number, found 'x'"):
        manager.create("weighting", spec("required", weights={"a": "x"}), "w")
    with pytest.raises(UserError, match=r"weighting\.weights\.a must be a number, found '1'"):
        manager.create("weighting", spec("required", weights={"a": "1"}), "w")


def test_a_missing_part_of_an_option_is_named():
    class Nested(Weighting):
        name = "nested"

        def __init__(self, *, main: ComponentSpec | None = None, size: tuple[int, int] = (1, 1)):
            self.main, self.size = main, size

    manager = plugin_manager(Nested)
    with pytest.raises(UserError, match=r"weighting\.main\.name is required(.|\n)*name: VALUE"):
        manager.create("weighting", spec("nested", main={"options": {}}), "weighting")
    with pytest.raises(UserError, match=r"weighting\.size\.1 is required"):
        manager.create("weighting", spec("nested", size=[1]), "weighting")
    with pytest.raises(UserError, match=r"weighting\.size must be a list, found 3"):
        manager.create("weighting", spec("nested", size=3), "weighting")


def test_options_called_like_members_of_pydantic_models_work():
    class Odd(Weighting):
        name = "odd"

        def __init__(self, *, json: int = 1, copy: int = 2, model_fields: int = 3):
            self.all = (json, copy, model_fields)

    given = spec("odd", json=4, copy=5, model_fields=6)
    assert plugin_manager(Odd).create("weighting", given, "w").all == (4, 5, 6)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("*, c=1", r"must be a typed keyword-only argument\n  fix: write `def .*\*, c: "),
        ("c: int = 1", "must be a typed keyword-only argument"),
        ("**options: int", r"stands for any number of arguments\n  fix: give each option a name"),
        ("*, c: 'Nowhere' = 1", r"not known: name 'Nowhere' .*\n  fix: import it outside"),
        ("*, c: type(print) = 1", "a type that no recipe can give: .*builtin_function_or_method"),
    ],
)
def test_constructors_that_a_recipe_cannot_fill_are_refused(source, told):
    scope = {"Weighting": Weighting}
    exec(f"class Bad(Weighting):\n  name = 'bad'\n  def __init__(self, {source}): pass", scope)
    with pytest.raises(UserError, match=told):
        plugin_manager(scope["Bad"])


def test_a_local_plugin_that_a_recipe_cannot_fill_is_told_with_the_place(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from mtlcore.components import Weighting\n"
        "class Mine(Weighting):\n  name = 'mine'\n  def __init__(self, *, c=1): pass\n"
    )
    with pytest.raises(
        UserError, match=r"^plugins\.load\[0\]: .*option 'c' of weighting 'mine' must be"
    ):
        PluginManager.load(local=[str(tmp_path / "mine.py")])


def test_an_unknown_name_is_answered_with_the_nearest_and_other_kinds():
    manager = PluginManager.load(environ={"MTLCORE_NO_PLUGINS": "1"})
    with pytest.raises(UserError, match=r"weighting 'pcgrd' is not known\n.*did you mean 'pcgrad'"):
        manager.create("weighting", spec("pcgrd"), "weighting")
    with pytest.raises(UserError, match="did you mean 'imtl_g' or 'imtl_l'\\?"):
        manager.create("weighting", spec("IMTL"), "weighting")
    with pytest.raises(UserError, match="there is a component 'pcgrad' of kind weighting"):
        manager.create("sampling", spec("pcgrad"), "sampling")


# -- finding ----------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch):
    """Replace the installed third-party plugins by given ones: name -> what loading them does."""

    def install(**plugins):
        found = [
            Plugin(name, f"mtlcore-{name}", "1.2", "installed", load)
            for name, load in plugins.items()
        ]
        monkeypatch.setattr(plugin_sources, "installed", lambda: iter(found))

    return install


def broken():
    raise ImportError("no module named 'lion'")


def test_first_party_plugins_are_found_with_summary_and_paper():
    rows = PluginManager.load(environ={"MTLCORE_NO_PLUGINS": "1"}).describe()
    names = {(row["kind"], row["name"]) for row in rows}
    assert {("weighting", "pcgrad"), ("sampling", "temperature"), ("rows", "shuffled")} <= names
    for row in rows:
        assert row["distribution"] == "mtlcore"
        assert row["summary"].endswith(".")


def test_a_broken_plugin_that_nobody_uses_is_one_warning(installed, caplog):
    installed(lion=broken)
    with caplog.at_level(logging.WARNING):
        manager = PluginManager.load(environ={})
    [record] = caplog.records
    for part in ("mtlcore-lion 1.2", "ImportError: no module", "mtlcore plugins doctor"):
        assert part in record.getMessage()
    assert manager.create("weighting", spec("equal"), "w").name == "equal"


def test_a_broken_plugin_that_the_recipe_names_is_an_error(installed, caplog):
    installed(lion=broken)
    with pytest.raises(
        UserError, match=r"weighting 'lion' is not known: plugin 'lion' of mtlcore-lion 1.2"
    ):
        PluginManager.load(environ={}).create("weighting", spec("lion"), "weighting")
    with pytest.raises(UserError, match="no module named 'lion'"):
        PluginManager.load(environ={}).create("weighting", spec("tiger"), "weighting")


def test_a_plugin_that_exits_or_misspells_a_hook_does_not_stop_the_others(installed, caplog):
    def leave():
        raise SystemExit(3)

    class Misspelt(Component):
        kind, name = "weighting", "misspelt"

        def mtlcore_step_ends(self):
            pass

    installed(leaver=leave, misspelt=lambda: Misspelt, damped=lambda: Damped)
    manager = PluginManager.load(environ={})
    assert len(manager.broken) == len(caplog.records) == 2
    assert ("weighting", "damped") in manager.components()
    assert ("weighting", "misspelt") not in manager.components()


def test_strict_makes_a_broken_plugin_an_error(installed):
    installed(lion=broken)
    with pytest.raises(UserError, match="mtlcore-lion"):
        PluginManager.load(environ={"MTLCORE_STRICT_PLUGINS": "1"})


@pytest.mark.parametrize(
    ("environ", "disable", "is_loaded"),
    [
        ({}, [], True),
        ({"MTLCORE_LOAD_PLUGINS": ""}, [], False),
        ({"MTLCORE_LOAD_PLUGINS": "other, damped"}, [], True),
        ({"MTLCORE_LOAD_PLUGINS": "mtlcore_Damped"}, [], True),
        ({"MTLCORE_LOAD_PLUGINS": "other"}, [], False),
        ({"MTLCORE_NO_PLUGINS": "1"}, [], False),
        ({"MTLCORE_NO_PLUGINS": "0"}, [], True),
        ({}, ["damped"], False),
        ({}, ["mtlcore-damped"], False),
    ],
)
def test_installed_plugins_can_be_blocked(installed, environ, disable, is_loaded):
    installed(damped=lambda: Damped, other=lambda: Required)
    manager = PluginManager.load(environ=environ, disable=disable)
    assert (("weighting", "damped") in manager.components()) is is_loaded
    assert ("weighting", "pcgrad") in manager.components()


def test_a_blocked_plugin_is_named_when_it_is_asked_for(installed):
    installed(damped=lambda: Damped)
    manager = PluginManager.load(environ={}, disable=["damped"])
    with pytest.raises(UserError, match="plugins not loaded: 'damped' of mtlcore-damped"):
        manager.create("weighting", spec("damped"), "weighting")


def test_a_first_party_plugin_can_be_blocked():
    manager = PluginManager.load(environ={}, disable=["weighting/pcgrad"])
    assert ("weighting", "pcgrad") not in manager.components()


def test_blocking_what_is_not_there_is_said(installed, caplog):
    installed(damped=lambda: Damped)
    PluginManager.load(environ={}, disable=["dampd"])
    assert "no plugin is called 'dampd'; did you mean 'damped'?" in caplog.text


def test_two_plugins_with_one_name_are_an_error_that_names_both(installed):
    class Pcgrad(Weighting):
        name = "pcgrad"

    installed(other=lambda: Pcgrad)
    with pytest.raises(
        UserError, match=r"'weighting/pcgrad' of mtlcore .*'other' of mtlcore-other 1.2"
    ):
        PluginManager.load(environ={})
    manager = PluginManager.load(environ={}, disable=["other"])
    assert ("weighting", "pcgrad") in manager.components()


def test_one_class_found_twice_is_no_conflict(installed):
    installed(first=lambda: Damped, second=lambda: Damped)
    assert PluginManager.load(environ={}).components()[("weighting", "damped")].cls is Damped


# -- local files ------------------------------------------------------------------------------

LOCAL = '''
from mtlcore.components import Weighting
from mtlcore.hookspecs import hookimpl

class Mine(Weighting):
    """Weigh as I like."""
    name = "mine"
    def __init__(self, *, c: float = 0.5):
        self.c = c

class Helper(Weighting):
    """No name, so no component."""

@hookimpl
def mtlcore_plan_step(run, step):
    return [step]
'''


def write(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


def test_a_local_file_adds_components_and_hooks(tmp_path):
    path = write(tmp_path, LOCAL)
    manager = PluginManager.load(local=[path], environ={"MTLCORE_LOAD_PLUGINS": ""})
    assert manager.create("weighting", spec("mine", c=1), "w").c == 1.0
    assert manager.hook.mtlcore_plan_step(run=None, step=4) == [4]
    active = {row["name"]: row for row in manager.active()}
    assert set(active) == {path, "weighting/mine"}
    assert len(active[path]["sha256"]) == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        ("class :", "SyntaxError"),
        ("def mtlcore_step_end(run): pass", "not marked"),
        (
            "from mtlcore.hookspecs import hookimpl\n@hookimpl\ndef mtlcore_step_ends(run): pass",
            "did you mean 'mtlcore_step_end'",
        ),
    ],
)
def test_a_broken_local_file_is_always_an_error(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        PluginManager.load(local=[write(tmp_path, text)], environ={})
    assert "mine.py" in str(caught.value)


def test_a_local_file_that_is_not_there_is_an_error(tmp_path):
    for path in ("nowhere.py", str(tmp_path)):
        with pytest.raises(UserError, match="is not a Python file"):
            PluginManager.load(local=[path], environ={})


def test_local_files_are_refused_where_third_party_code_is_forbidden(tmp_path):
    with pytest.raises(UserError, match="MTLCORE_NO_PLUGINS"):
        PluginManager.load(local=[write(tmp_path, LOCAL)], environ={"MTLCORE_NO_PLUGINS": "1"})


# -- tracing and records ----------------------------------------------------------------------


def test_hook_calls_can_be_traced(capsys):
    class Plan(Weighting):
        name = "plan"

        def mtlcore_plan_step(self):
            return [1]

    manager = plugin_manager(Plan(), environ={"MTLCORE_TRACE_PLUGINS": "1"})
    manager.hook.mtlcore_plan_step(run=None, step=0)
    assert "mtlcore_plan_step" in (trace := capsys.readouterr().err)
    assert " ms: weighting:plan" in trace


def test_active_lists_what_the_run_uses():
    manager = PluginManager.load(environ={"MTLCORE_NO_PLUGINS": "1"})
    assert manager.active() == []
    manager.create("weighting", spec("pcgrad"), "w")
    [row] = manager.active()
    assert row["name"] == "weighting/pcgrad"
    assert row["file"].endswith("pcgrad.py")
    json.dumps(row)


def test_one_component_can_be_registered_for_several_tasks():
    manager = plugin_manager(Damped(), Damped())
    assert manager.hook is not None


# -- the cached description -------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLCORE_CACHE", str(tmp_path))
    monkeypatch.setenv("MTLCORE_NO_PLUGINS", "1")
    return tmp_path / "plugins"


def test_the_description_holds_options_with_ranges_and_defaults(cache):
    rows = {row["name"]: row for row in plugin_cache.describe_components()}
    described = rows["temperature"]["options"]
    assert described["properties"]["temperature"] == {
        "default": 2.0,
        "exclusiveMinimum": 0,
        "type": "number",
    }
    assert described["required"] == []
    assert rows["fixed"]["options"]["required"] == ["weights"]
    assert "arxiv.org" in rows["pcgrad"]["paper"]


def test_the_description_is_read_again_without_torch(cache):
    plugin_cache.describe_components()
    code = (
        "import sys; from mtlcore.cli.plugins import describe_plugins; "
        "assert describe_plugins()['components']; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"components": 3}', "null"])
def test_a_damaged_cache_is_rebuilt(cache, damage):
    first = plugin_cache.describe_components()
    [path] = cache.iterdir()
    path.write_text(damage)
    assert plugin_cache.describe_components() == first
    assert json.loads(path.read_text())["components"] == first


def test_a_cache_folder_that_cannot_be_written_is_no_failure(cache):
    cache.write_text("a file where the folder should be")
    assert plugin_cache.describe_components()


def test_the_key_follows_versions_and_blocking(cache, monkeypatch):
    def point(version):
        dist = SimpleNamespace(name="mtlcore-x", version=version)
        return SimpleNamespace(name="x", value="nowhere_x:y", dist=dist)

    keys = {plugin_cache.cache_key()}
    monkeypatch.setattr(plugin_sources, "entry_points", lambda: [point("1")])
    keys.add(plugin_cache.cache_key())
    monkeypatch.setattr(plugin_sources, "entry_points", lambda: [point("2")])
    keys.add(plugin_cache.cache_key())
    monkeypatch.setenv("MTLCORE_LOAD_PLUGINS", "x")
    keys.add(plugin_cache.cache_key())
    assert len(keys) == 4


def test_a_broken_plugin_is_not_cached(cache, installed, monkeypatch):
    monkeypatch.setenv("MTLCORE_NO_PLUGINS", "")
    installed(lion=broken)
    assert "lion" in plugin_cache.describe_plugins()["broken"][0]
    assert not cache.exists()


# -- the command line -------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_list_shows_components(cache):
    shown = run("list")
    assert shown.exit_code == 0
    assert "pcgrad" in shown.stdout
    rows = json.loads(run("list", "--json", "--kind", "sampling").stdout)
    assert {row["name"] for row in rows} >= {"proportional", "temperature"}
    assert "did you mean 'sampling'" in str(run("list", "--kind", "samplin").exception)


def test_info_shows_paper_and_options(cache):
    shown = run("info", "weighting/pcgrad").stdout
    assert "https://arxiv.org/abs/2001.06782" in shown
    assert "model | layer | factor" in shown
    assert "integer >= 1 or null" in run("info", "temperature").stdout
    named_so = json.loads(run("info", "equal", "--json").stdout)
    assert {(row["kind"], row["name"]) for row in named_so} == {
        ("sampling", "equal"),
        ("weighting", "equal"),
    }
    assert "did you mean 'pcgrad'" in str(run("info", "pcgrd").exception)


def test_doctor_names_what_is_wrong(cache, installed, monkeypatch):
    assert run("doctor").exit_code == 0
    monkeypatch.setenv("MTLCORE_NO_PLUGINS", "")
    installed(lion=broken)
    shown = run("doctor")
    assert shown.exit_code == 1
    assert "no module named 'lion'" in shown.stdout
    assert json.loads(run("doctor", "--json").stdout)["broken"]
