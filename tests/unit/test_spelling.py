"""Options as people write them, brought to what the parser takes."""

from __future__ import annotations

from typing import Any

import pytest

from normscan.cli.spelling import SYNONYMS, spelled
from normscan.errors import ArgumentError


def command(
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    resume: bool = False,
    preprocess: dict[str, Any] | None = None,
    wrappers: list[str] | None = None,
    steps: list[str | dict[str, Any]] | None = None,
    modalities: tuple[str, ...] = (),
    target: list[str] | None = None,
    batch_size: int = 1,
    seed: int = 0,
) -> None: ...


KNOWN = [f"--{name}" for name in command.__annotations__ if name != "return"] + ["--lr", "--config"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("--fractions 0.4,0.3,0.3", "--fractions=[0.4, 0.3, 0.3]"),
        ("--fractions [0.4,0.3,0.3]", "--fractions=[0.4,0.3,0.3]"),
        ("--batch-size 4", "--batch_size=4"),
        ("--seed=3 --resume", "--seed=3|--resume=true"),
        ("--resume false x", "--resume=false|x"),
        ("--resume no --seed 3", "--resume=false|--seed=3"),
        ("--resume=Off on", "--resume=false|on"),
        ("--resume nothing.nii", "--resume=true|nothing.nii"),
        (
            "--preprocess preset=brain-mri,size=64",
            '--preprocess={"preset": "brain-mri", "size": 64}',
        ),
        ("--preprocess.size 64", "--preprocess.size|64"),
        ("--wrappers ensemble=3,flips", '--wrappers=["ensemble=3", "flips"]'),
        ("--steps n4,clahe", '--steps=["n4", "clahe"]'),
        ("--modalities T1w,FLAIR", '--modalities=["T1w", "FLAIR"]'),
        ("--target a.nii,b.nii", '--target=["a.nii,b.nii"]'),
        ("--lr -1 --config c.yaml file", "--lr|-1|--config|c.yaml|file"),
    ],
)
def test_options_are_brought_to_one_form(given, wanted):
    assert spelled(given.split(), KNOWN, command) == wanted.split("|")


@pytest.mark.parametrize("wrong", ["--batch", "--see", "--seeds=1", "--nothing-like-it"])
def test_beginnings_and_slips_are_refused(wrong):
    with pytest.raises(ArgumentError, match=f"unknown option {wrong.partition('=')[0]}"):
        spelled([wrong], KNOWN, command)


def test_synonyms_are_no_commands_and_lead_to_some():
    from normscan.cli.main import COMMANDS

    assert not set(SYNONYMS) & set(COMMANDS)
    assert set(SYNONYMS.values()) <= set(COMMANDS)
