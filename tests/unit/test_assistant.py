"""Tools for assistants, called by the client of the protocol's own library over standard streams."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pandas as pd
import pytest
import yaml

from normscan import registry
from normscan.cli.assistant.allowed import Allowed
from normscan.cli.main import COMMANDS, main
from normscan.errors import ArgumentError

SKILL = Path(__file__).parents[2] / "src" / "normscan" / "cli" / "assistant" / "SKILL.md"


@pytest.fixture
def root(toy, tmp_path):
    """A folder that may be used, with a cohort whose scans are named after people, and one outside."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    rows = pd.read_csv(toy(2), dtype=str, keep_default_na=False)
    rows = rows[rows["split"] != "extra"].groupby(["split", "label"]).head(8).copy()
    for i, place in enumerate(rows.index):
        for column in ("path", "mask"):
            if old := rows.loc[place, column]:
                new = f"ZZ{column.upper()}{i}.npy"
                (inside / new).write_bytes((toy(2).parent / old).read_bytes())
                rows.loc[place, column] = new
    rows["scan"] = [f"ZZSCAN{i}" for i in range(len(rows))]
    rows["subject"] = [f"ZZSUBJECT{i}" for i in range(len(rows))]
    rows.to_csv(inside / "cohort.csv", index=False)
    (outside / "secret.npy").write_bytes((inside / rows["path"].iloc[0]).read_bytes())
    (outside / "cohort.csv").write_text("path,label\nsecret.npy,0\n")
    return inside


@asynccontextmanager
async def assistant(root, *more):
    pytest.importorskip("mcp", reason="mcp is an extra")
    from mcp import Client, StdioServerParameters

    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "normscan.cli.main", "mcp", "--root", str(root), *more],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    async with Client(server, read_timeout_seconds=120) as client:
        yield client


async def ask(client, tool, **arguments):
    """The answer as plain values, or the error as text."""
    answer = await client.call_tool(tool, arguments)
    texts = [part.text for part in answer.content]
    if answer.is_error:
        return texts[0]
    assert json.loads(texts[0]) == answer.structured_content
    return answer.structured_content


async def done(client, told):
    """Wait for work that runs, as an assistant does."""
    import anyio

    while isinstance(told, dict) and told["state"] == "running":
        await anyio.sleep(0.3)
        told = await ask(client, "state", folder=told["folder"])
    return told


def conversation(talk):
    pytest.importorskip("mcp", reason="mcp is an extra")
    import anyio

    anyio.run(talk)


def test_the_whole_job(root):
    """From the cohort to the limits; no name of a person is in any answer."""
    said = []

    async def talk():
        async with assistant(root) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert {"fit", "predict", "evaluate", "limits", "state"} <= set(tools)
            assert tools["fit"].input_schema["required"] == ["method", "cohort", "out"]
            found = await ask(client, "methods", pattern="mean_*")
            assert [entry["id"] for entry in found["methods"]] == ["mean_image"]
            told = await done(client, await ask(client, "describe_cohort", cohort="cohort.csv"))
            assert told["splits"]["train"]["healthy"] == 8
            said.append(told)
            told = await ask(client, "fit", method="mean_image", cohort="cohort.csv", out="run",
                             calibration="split", arguments={"size": 32})  # fmt: skip
            told = await done(client, told)
            assert told == {"folder": f"{root}/run", "state": "finished", "run": f"{root}/run"}
            told = await ask(client, "predict", run="run", out="found", scans=["ZZPATH0.npy"])
            said.append(told := await done(client, told))
            assert told["scans"][0]["scan"].startswith("scan-"), told
            told = await ask(client, "evaluate", run="run", cohort="cohort.csv", out="evaluation")
            said.append(told := await done(client, told))
            results = json.loads((root / "evaluation" / "results.json").read_text())["metrics"]
            assert told["metrics"]["image_auroc"]["value"] == results["image_auroc"]["value"]
            told = await ask(client, "check", run="run", cohort="cohort.csv")
            said.append(told := await done(client, told))
            assert len(told["scans"]) == len(pd.read_csv(root / "cohort.csv"))
            told = await ask(
                client, "limits", run="run", cohort="cohort.csv", out="limits", count=1
            )
            said.append(told := await done(client, told))
            assert (root / "limits" / "limits.html").exists(), told
            assert (await ask(client, "state", folder="run"))["state"] == "finished"

    conversation(talk)
    assert "ZZ" not in json.dumps(said)
    names = pd.read_csv(root / "found" / "names.csv")
    assert dict(zip(names["scan"], names["name"], strict=True))["ZZPATH0"].startswith("scan-")


def test_what_is_refused_says_why(root):
    async def talk():
        async with assistant(root) as client:
            fit = {"method": "mean_image", "cohort": "cohort.csv", "out": "run"}
            for tool, asked, reason in (
                ("describe_cohort", {"cohort": "../outside/cohort.csv"}, "outside of the folders"),
                ("describe_cohort", {"cohort": "none.csv"}, "no such file"),
                ("fit", {**fit, "method": "mean_imag"}, "Did you mean 'mean_image'"),
                ("fit", {**fit, "out": "../run"}, "outside of the folders"),
                ("fit", {**fit, "arguments": {"cohort": "x"}}, "has no argument 'cohort'"),
                ("fit", {**fit, "arguments": {"size": "/etc/passwd"}}, "no path"),
                ("fit", {**fit, "preset": "x --out=/tmp/y"}, "no path"),
                ("predict", {"run": "run", "out": "f", "scans": ["/etc/passwd"]}, "no such file"),
                ("state", {"folder": "nothing"}, "nothing was begun"),
            ):
                said = await ask(client, tool, **asked)
                assert isinstance(said, str) and reason in said, (tool, asked, said)
            (root / "bad.csv").write_text("path,label\nZZPATH0.npy,2\n")
            said = await ask(client, "fit", **{**fit, "cohort": "bad.csv"})
            assert "label" in said and "Traceback" not in said
            assert not (root.parent / "run").exists() and not (root / "run").exists()

    conversation(talk)


def test_names_stay_where_the_person_who_starts_it_asks(root):
    async def talk():
        async with assistant(root, "--keep-names") as client:
            told = await ask(client, "fit", method="mean_image", cohort="cohort.csv", out="run",
                             calibration="split")  # fmt: skip
            assert (await done(client, told))["state"] == "finished"
            told = await ask(client, "predict", run="run", out="found", cohort="cohort.csv")
            told = await done(client, told)
            assert {row["scan"] for row in told["scans"]} >= {"ZZSCAN0"}

    conversation(talk)


def test_only_what_lies_inside(root):
    allowed = Allowed([str(root)])
    assert allowed.path("cohort.csv") == root.resolve() / "cohort.csv"
    assert allowed.path(str(root / "new" / "run"), there=False).name == "run"
    outside = root.parent / "outside"
    (root / "link").symlink_to(outside)
    (root / "linked.npy").symlink_to(outside / "secret.npy")
    for text in ("../outside/secret.npy", str(outside), "link/secret.npy", "linked.npy", "/", "~/x",
                 "", "a\0b"):  # fmt: skip
        with pytest.raises(ArgumentError):
            allowed.path(text)
    with pytest.raises(ArgumentError, match="no such folder"):
        Allowed([str(root / "none")])


@pytest.mark.parametrize("file", ["../outside/secret.npy", "linked.npy", "series", "pair.npy"])
def test_a_table_that_leads_outside_is_refused(root, file):
    """By a path, a link, a link in a folder of a series, a link beside the file."""
    outside = root.parent / "outside" / "secret.npy"
    (root / "linked.npy").symlink_to(outside)
    (root / "series").mkdir()
    (root / "series" / "1.dcm").symlink_to(outside)
    (root / "pair.npy").write_bytes(outside.read_bytes())
    (root / "pair.img").symlink_to(outside)
    (root / "table.csv").write_text(f"path,label\n{file},0\n")
    with pytest.raises(ArgumentError, match="lies outside") as error:
        Allowed([str(root)]).cohort("table.csv")
    assert "secret" not in str(error.value)
    (root / "mask.csv").write_text(f"path,label,mask\nZZPATH0.npy,1,{file}\n")
    with pytest.raises(ArgumentError, match="lies outside"):
        Allowed([str(root)]).cohort("mask.csv")


def test_the_skill_is_a_skill(tmp_path, capsys):
    """Its front is what skills have: a name like its folder, a description of at most 1024 characters."""
    assert main(["skill", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "normscan" / "SKILL.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["skill"]) == 0
    assert capsys.readouterr().out == text
    front = yaml.safe_load(text.split("---")[1])
    assert front["name"] == "normscan" and 0 < len(front["description"]) <= 1024
    assert len(text.splitlines()) < 200


def test_the_skill_names_what_exists():
    """Commands; their options are parsed with those of all pages in ``test_docs``."""
    text = SKILL.read_text(encoding="utf-8")
    named = set(re.findall(r"normscan ([a-z]+)", text)) - {"learns"}
    assert {"fit", "predict", "evaluate", "limits", "check", "push"} <= named <= set(COMMANDS)
    assert set(re.findall(r"normscan fit (\w+)", text)) <= set(registry.index()["methods"])


def test_without_the_package_the_command_says_so(root, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    monkeypatch.delitem(sys.modules, "normscan.cli.assistant.server", raising=False)
    assert main(["mcp", "--root", str(root)]) == 2
    assert "pip install 'normscan[mcp]'" in capsys.readouterr().err
