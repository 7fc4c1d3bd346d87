"""The scripts of ``benchmarks/`` start, and ask methods for nothing that they don't have."""

from __future__ import annotations

import ast
import inspect
import runpy
import sys
from pathlib import Path

import pytest

from normscan.detector import Detector
from normscan.registry import card

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("[!_]*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_starts_and_says_what_it_does(name: str, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.syspath_prepend(FOLDER)  # as `python benchmarks/NAME` does
    try:
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
    assert capsys.readouterr().out.strip()


def calls(name: str) -> list[ast.Call]:
    """Where a script builds a detector of a method that it names."""
    found = ast.walk(ast.parse((FOLDER / name).read_text()))
    return [
        call for call in found
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Detector"
        and call.args and isinstance(call.args[0], ast.Constant)
    ]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in SCRIPTS if calls(name)])
def test_methods_have_the_arguments_that_stand_in_a_call(name: str):
    own = set(inspect.signature(Detector).parameters)
    for call in calls(name):
        (method,) = [a.value for a in call.args if isinstance(a, ast.Constant)]
        given = {keyword.arg for keyword in call.keywords if keyword.arg}
        assert given <= own | set(card(method).defaults), f"{name}, line {call.lineno}"


def test_the_variants_of_the_ablation_are_patchcores():
    script = runpy.run_path(str(FOLDER / "patchcore_ablation.py"))
    for variant in script["VARIANTS"]:
        detector = script["detector_of"](variant, 0, 100, "random")
        assert 0 < detector.arguments["coreset"] <= 1, variant
