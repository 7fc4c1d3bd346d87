"""What the usual commands don't import: libraries that take longer to load than a small fit runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from normscan.training.fabric import Alone, check_machine

HEAVY = ("monai", "lightning_fabric", "transformers", "timm", "torchvision", "torch._dynamo")

ALL = """
import json, sys, tempfile
from pathlib import Path
import normscan as ns
from normscan.evaluation import evaluate
folder = Path(tempfile.mkdtemp())
cohort = ns.Cohort.read(sys.argv[1])
detector = ns.create("mean_image", size=32, calibration="split").fit(cohort, folder / "run")
evaluate(detector, cohort, folder / "evaluation")
next(detector.predict_cohort(cohort.part("test")))[1].save(folder / "found")
print(json.dumps(sorted(sys.modules)))
"""
HELP = "import json, sys; from normscan.cli.main import main; main(['--help']); " + (
    "print(json.dumps(sorted(sys.modules)))"
)


def modules(code: str, *arguments: str) -> set[str]:
    told = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=os.environ, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    return set(json.loads(told.stdout.splitlines()[-1]))


def test_fit_evaluate_and_save_import_nothing_heavy(toy):
    loaded = modules(ALL, str(toy(2)))
    assert "torch" in loaded
    assert not loaded & {*HEAVY, "matplotlib.pyplot"}


def test_help_imports_no_torch():
    loaded = modules(HELP)
    assert not loaded & {*HEAVY, "torch", "scipy", "pandas", "matplotlib", "sklearn"}


def test_one_process_in_float32_does_without_fabric():
    assert isinstance(check_machine("cpu", 1, "32-true"), Alone)
    assert check_machine("auto", 1, "32-true").device.type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("norm", [0.1, 100.0])
def test_gradients_are_clipped_as_fabric_does(norm):
    from lightning_fabric import Fabric

    def trained(fabric):
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        optimizer = fabric.setup_optimizers(torch.optim.Adam(layers.parameters(), lr=0.1))
        for _ in range(3):
            optimizer.zero_grad()
            fabric.backward(layers(torch.ones(5, 3)).square().sum())
            fabric.clip_gradients(layers, optimizer, max_norm=norm)
            optimizer.step()
        return [p.detach() for p in layers.parameters()]

    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    for own, its in zip(trained(Alone(torch.device("cpu"))), trained(fabric), strict=True):
        assert torch.equal(own, its)
