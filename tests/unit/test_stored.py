"""A detector's folder is data: what lies beyond its bounds is refused before anything is built."""

from __future__ import annotations

import copy
import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import normscan as ns
from normscan import registry
from normscan.detector.state import ask
from normscan.detector.storage import read_state
from normscan.detector.stored import check_arguments
from normscan.errors import ArgumentError, OutputError
from normscan.io import content_hash
from normscan.io.values import plain
from normscan.scores.postprocess import parse

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def stored(toy, tmp_path_factory):
    """A small network of two folds, so that its members are stored, too."""
    cohort = ns.Cohort.read(toy(2, 1))
    healthy = [row.scan for part in ("train", "val") for row in cohort.part(part)]
    cohort = cohort.select([row.scan in healthy[-12:] for row in cohort])
    out = tmp_path_factory.mktemp("stored") / "run"
    options = {"preset": "tiny", "size": 32, "steps": 2, "calibration": "cross", "folds": 2}
    ns.create("dae", **options, fpr=0.2).fit(cohort, out)
    return out


@pytest.fixture
def tampered(stored, tmp_path):
    """Return a function that stores the detector with one value changed."""

    def change(place, value):
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stored, folder)
        about = json.loads((folder / "detector.json").read_text())
        *path, last = place.split("/")
        inner = about
        for name in path:
            inner = inner[name]
        inner[last] = value
        (folder / "detector.json").write_text(json.dumps(about))
        return folder

    return change


ARGUMENTS = {
    "dims": (9, 0, -1, 2.5, True, "2", None), "size": (0, 10**9, 2.5), "channels": (3,),
    "width": (10**7, -1, [8], INF, "8"), "depth": (400, {}), "noise_std": (NAN, INF, "0"),
    "noise_resolution": (0, -4, 10**6), "batch_size": (0, 10**12), "steps": (-1, 10**12),
    "lr": (-1e-3, INF),
}  # fmt: skip
CONFIGURATION = {
    "postprocess": (["median=999999999"], ["median=nan"], ["erode=1e12"], ["smooth=-1"],
                    ["hyperintense=7"], ["inner=0"], ["foreground"] * 1000, "foreground", [3]),
    "wrappers": (["ensemble=999999"], ["ensemble=nan"], ["flips"] * 50, [["flips"]]),
    "patch": (0, 10**6, 8.5), "seed": ("0", 10**30, NAN, -1), "fpr": (NAN, 0, 1, "0.1", True),
    "reduction": ([1], "x" * 5000), "method": (3, "../../x"), "preset": ({}, "x"),
    "calibration": ({"kind": "cross", "folds": 10**9}, {"kind": "cross", "folds": NAN},
                    {"kind": "no"}, {"kind": "cross", "more": 1}),
}  # fmt: skip
PREPROCESS = {
    "size": (0, 10**9, 64), "spacing": (1e-12, NAN, -1), "limit": (NAN, 0), "steps": (["n4"] * 1000, 3),
}  # fmt: skip
OTHER = {
    "format": (True, 1.0, "1", 2), "pixel_threshold": (NAN, INF, True, "1"), "channels": ([3], [], 3),
    "filled": (["x"], 3), "training": ([], {"samples": 3}, {"seconds": {"total": -1}}),
    "versions": ([], {"normscan": 3}), "sha256": (None, 3, "0" * 64), "gate/limits/dims": (3, ["x"]),
    "gate/limits/aspect": ([[NAN], [INF]], [], [[1], [2], [3]]), "gate/limits/half": ("x", [1]),
    "scan_threshold/scores": ([NAN], [], ["x"]),
}  # fmt: skip
PLACES = {
    **{f"configuration/arguments/{k}": v for k, v in ARGUMENTS.items()},
    **{f"configuration/{k}": v for k, v in CONFIGURATION.items()},
    **{f"configuration/preprocess/{k}": v for k, v in PREPROCESS.items()},
    **OTHER,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_value_beyond_its_bounds_is_refused(tampered, place):
    """With one sentence that names the file, and before anything of that size is made."""
    for value in PLACES[place]:
        folder, began = tampered(place, value), time.process_time()
        with pytest.raises(OutputError) as caught:
            ns.load(folder, "cpu")
        message = str(caught.value)
        assert str(folder) in message and "\n" not in message and len(message) < 1000, value
        assert time.process_time() - began < 20, value


@pytest.mark.parametrize("text", ["[" * 50_000, '{"a":' * 50_000, "1" * 10_000, "nul", ""])
def test_json_that_is_none(tampered, text):
    folder = tampered("format", 1)
    (folder / "detector.json").write_text(text)
    with pytest.raises(OutputError, match="is damaged"):
        ns.load(folder, "cpu")


@pytest.mark.parametrize("kind", [torch.int32, torch.complex64, torch.bool])
def test_weights_of_another_kind_are_not_cast(tampered, kind):
    folder = tampered("format", 1)
    path = folder / "model.safetensors"
    save_file({k: v.to(kind) for k, v in load_file(path).items()}, path)
    about = json.loads((folder / "detector.json").read_text())
    (folder / "detector.json").write_text(json.dumps(about | {"sha256": content_hash(path)}))
    with pytest.raises(OutputError, match="is stored as"):
        ns.load(folder, "cpu")


def test_a_later_version_is_said(tampered):
    with pytest.warns(UserWarning, match=r"written by normscan 99\.0"):
        ns.load(tampered("versions/normscan", "99.0"), "cpu")


def test_what_is_stored_passes(stored):
    about = json.loads((stored / "detector.json").read_text())
    assert read_state(stored, "cpu").configuration() == about["configuration"]


@pytest.mark.parametrize("id", ["dae", "patchcore", "unsup_sup_fusion", "auto", "f_anogan"])
def test_arguments_of_every_preset_pass(id):
    """As they are stored: as JSON gives them back."""
    card = registry.card(id)
    for preset in card.presets:
        arguments = plain(card.arguments(preset))
        arguments["dims"], given = card.dims[0], copy.deepcopy(arguments)
        check_arguments(card, given, arguments.get("channels", 1))
        with pytest.raises(ArgumentError):
            check_arguments(card, {**given, "another": 1}, 1)


def test_what_cant_be_loaded_cant_be_asked_for():
    for arguments in (
        {"noise_resolution": 0},
        {"batch_size": 10**12},
        {"steps": 10**12},
        {"lr": -1},
    ):
        with pytest.raises(ArgumentError, match=rf"{next(iter(arguments))} is "):
            ns.create("dae", **arguments)
    with pytest.raises(
        ArgumentError, match="restoration_steps is 1000000; it must be 65536 or less"
    ):
        ns.create("vae_restoration", restoration_steps=10**6)
    with pytest.raises(ArgumentError, match="seed is -1"):
        ns.create("dae", seed=-1)
    with pytest.raises(ArgumentError, match="size is 32, preprocess.size 64"):
        ns.create("dae", size=32, preprocess={"size": 64})
    follows = ns.create("dae", preprocess={"size": 64})
    assert follows.arguments["size"] == follows.preprocess.size == 64


def test_every_preset_can_be_asked_for():
    """Whatever its numbers are, such as 0 references."""
    for card in registry.load_all().values():
        for preset in card.presets:
            state = ask(card.id, preset=preset)
            assert state.arguments["size"] == state.preprocess.size


def test_values_of_the_chain_have_ranges():
    assert parse(["median", "smooth=0", "hyperintense=1"]) == [
        ("median", 5), ("smooth", 0), ("hyperintense", 1),
    ]  # fmt: skip
    for text in ("median=65", "hyperintense=1.01", "opening=inf", "smooth=nan"):
        with pytest.raises(ArgumentError, match="must lie in"):
            parse([text])
