"""`mtlcore schema`, `env`, `ops` and `plugins`."""

from __future__ import annotations

import json

from mtlcore.testing.command_line import CommandLine


def test_schema_prints_json(cli: CommandLine) -> None:
    code, out, _ = cli("schema")
    assert code == 0
    assert "tasks" in json.loads(out)["properties"]
    assert json.loads(cli("schema", "--field", "lora.r")[1])["default"] == 16
    code, _, err = cli("schema", "--field", "lora.rr")
    assert code == 2
    assert "'r'" in err


def test_env_prints_versions_and_the_machine(cli: CommandLine) -> None:
    facts = json.loads(cli("env", "--json")[1])
    assert facts["versions"]["torch"]
    assert facts["cores"] > 0
    code, out, _ = cli("env")
    assert code == 0
    assert "torch threads" in out


def test_ops_prints_every_kernel(cli: CommandLine) -> None:
    cells = json.loads(cli("ops", "--json")[1])
    assert {"gramian", "combine"} <= {cell["op"] for cell in cells}
    assert all(cell["available"] for cell in cells if cell["backend"] == "reference")
    code, out, _ = cli("ops")
    assert code == 0
    assert "gramian" in out


def test_plugins_has_verbs_of_its_own(cli: CommandLine) -> None:
    assert cli("plugins", "list")[0] == 0
    assert cli("plugins", "lst")[0] == 2
