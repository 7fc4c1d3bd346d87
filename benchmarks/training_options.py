r"""What options of training would gain: python benchmarks/training_options.py --weights FILE.pth.

CPU milliseconds of a step (``time.process_time``) of dae and rd4ad in their laptop presets, rounds of
all ways interleaved in one process, so that other work on the machine hardly shows: a bare loop in
float32, then with ``channels_last`` memory, with bfloat16 autocast, and compiled. The loss of the
first steps stands beside, since a way that changes it is another training.
Writes ``benchmarks/results/training_options.md``.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from normscan import registry  # noqa: E402
from normscan.methods.base import Batch, Method  # noqa: E402
from normscan.rng import Rng, seeded  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "training_options.md"
WAYS = ("float32", "channels_last", "bfloat16", "channels_last, bfloat16", "compiled")
ROUNDS, STEPS = 3, 2


class Bare:
    """A loop of a method's loss and its own optimiser over batches in memory."""

    def __init__(self, name: str, way: str, weights: str | None) -> None:
        card = registry.card(name)
        chosen: dict[str, Any] = {"weights": weights} if name == "rd4ad" else {}
        arguments = card.arguments("laptop", **chosen)
        torch.manual_seed(0)
        self.method: Method = card.create(**arguments)
        self.phase = self.method.phases()[0]
        (self.player,) = self.phase.players
        for module in self.player.modules:
            module.train()
        self.layout = torch.channels_last if "channels_last" in way else torch.contiguous_format
        self.half = "bfloat16" in way
        self.method.to(memory_format=self.layout)
        if way == "compiled":
            for module in self.method.children():
                module.compile()
        self.optimizer = self.player.optimizer(self.player.parameters())
        generator, side = torch.Generator().manual_seed(0), arguments["size"]
        images = torch.rand((self.phase.batch_size, 1, side, side), generator=generator)
        self.images = images.contiguous(memory_format=self.layout)
        self.losses: list[float] = []

    def steps(self, count: int) -> float:
        """Take some steps; return CPU milliseconds of each."""
        begun = time.process_time()
        for number in range(count):
            batch = Batch(
                self.images, torch.ones_like(self.images, dtype=torch.bool),
                Rng(number), torch.full((len(self.images),), 0.5),
            )  # fmt: skip
            self.optimizer.zero_grad()
            narrow = torch.autocast("cpu", torch.bfloat16) if self.half else nullcontext()
            with seeded(number), narrow:
                losses = self.method.loss(batch, self.phase.name, self.player.name)
                total = torch.stack([value.float() for value in losses.values()]).sum()
            total.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.losses.append(total.item())
        return 1000 * (time.process_time() - begun) / count


def options(name: str, ways: Sequence[str], weights: str | None) -> list[str]:
    """Lines of the table of a method."""
    loops: dict[str, Bare | str] = {}
    for way in ways:
        try:
            loops[way] = Bare(name, way, weights)
            first = time.process_time()
            loops[way].steps(1)  # type: ignore[union-attr]
            print(name, way, "first step", round(time.process_time() - first, 2), flush=True)
        except Exception as error:
            loops[way] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, loop in loops.items():
            if isinstance(loop, Bare):
                times[way].append(loop.steps(STEPS))
    base = float(np.median(times["float32"]))
    lines = []
    for way, loop in loops.items():
        if isinstance(loop, str):
            lines.append(f"| {name} | {way} | - | - | {loop} |")
            continue
        took = float(np.median(times[way]))
        losses = ", ".join(f"{loop.losses[i]:.5g}" for i in (0, STEPS, ROUNDS * STEPS))
        lines.append(f"| {name} | {way} | {took:.0f} | {took / base:.2f} | {losses} |")
    return lines


def write(lines: list[str], ways: Sequence[str]) -> None:
    """Write the page."""
    text = [
        "# What options of training would gain", "",
        "`python benchmarks/training_options.py --weights FILE.pth --ways "
        f"{' '.join(map(repr, ways))}`: CPU milliseconds of a training "
        "step in the laptop preset, medians of interleaved rounds in one process, over those of "
        "float32; and the loss of the first, a middle and the last step, to see whether it is the "
        f"same training. torch {torch.__version__}, {platform.machine()}, one thread.", "",
        "| method | way | ms a step | over float32 | losses |", "|---|---|---|---|---|", *lines, "",
    ]  # fmt: skip
    RESULTS.write_text("\n".join(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="backbone of rd4ad; it is left out without")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--methods", nargs="+", default=["dae", "rd4ad"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for name in asked.methods:
        if asked.weights or name != "rd4ad":
            lines += options(name, asked.ways, asked.weights)
            print("\n".join(lines), flush=True)
    write(lines, asked.ways)


if __name__ == "__main__":
    main()
