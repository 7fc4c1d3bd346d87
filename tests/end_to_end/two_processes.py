"""What two processes do in ``test_two_processes``: run by torchrun, with a folder for the results."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from normscan.methods.base import Method, Phase, Player, adam
from normscan.networks.cyclegan import Pool
from normscan.networks.memory import MemoryQueue
from normscan.registry import card
from normscan.rng import Rng, seeded
from normscan.training.checkpoint import cpu_state, save_state
from normscan.training.data import PreparedSet
from normscan.training.fabric import Alone, launch_fabric
from normscan.training.loop import Trainer, closed_form, in_order

OUT = Path(sys.argv[1])
STEPS, STOP = 4, 2


class Plain(Method):
    """No noise and no statistics of a batch: as many processes as one likes must agree on it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.GroupNorm(2, 6),
            nn.GELU(),
            nn.Conv2d(6, 7, 3, padding=1),
        )
        self.attention = nn.MultiheadAttention(7, 1, batch_first=True)
        self.last = nn.Linear(7, 1)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)

    def phases(self) -> list[Phase]:
        players = [
            Player(
                "network",
                [self.network, self.attention, self.last, self.frozen],
                adam(1e-3),
                clip=0.5,
            )
        ]
        return [Phase("restore", players, steps=STEPS, batch_size=8, ema=0.9)]

    def loss(self, batch, phase, player):
        rows = self.network(batch.image).flatten(2).transpose(1, 2)
        found = self.frozen(self.last(self.attention(rows, rows, rows)[0]))
        return {"l2": (found - batch.image.flatten(2).transpose(1, 2)).square().mean()}


def images(size: int, n: int = 12) -> PreparedSet:
    x = np.random.default_rng(0).random((n, 1, size, size), np.float32)
    labels, lesion = np.arange(n) % 2, np.zeros((n, 1, size, size), bool)
    lesion[1::2, :, 3:9, 3:9] = True
    return PreparedSet(
        x, np.ones((n, size, size), bool), np.zeros(n, np.float32), np.arange(n), [{}] * n, [],
        labels=labels, beside={"lesion": lesion}, scans=[str(i) for i in range(n)],
        subjects=list(range(n)),
    )  # fmt: skip


def named(id: str) -> Method:
    values = card(id).arguments("tiny", dims=2) | {"channels": 1}
    with seeded(0):
        method = card(id).create(**values)
    given = type(method).phases
    short = lambda self: [replace(p, steps=STEPS, epochs=None, batch_size=4) for p in given(self)]  # noqa: E731
    method.__class__ = type(method.__class__.__name__, (method.__class__,), {"phases": short})
    return method


class Stopped(Exception):
    pass


def trained(fabric, method: Method, folder: Path, size: int, stop: int | None = None) -> Method:
    """Train from the checkpoint in the folder, if there is one; stop at a step if asked to."""
    if fabric.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
    every = {
        k: images(size) for k in ("healthy", "labelled", "anomalous", "auxiliary", "unlabelled")
    }

    def report(phase, step, steps, text):
        if stop is not None and step > stop:
            raise Stopped

    trainer = Trainer(method, every, None, folder, fabric, 1, report, checkpoint_seconds=0.0)
    with contextlib.suppress(Stopped):
        trainer.run()
    fabric.broadcast(0)  # the checkpoint is written
    return method


def both(fabric, make, name: str, size: int) -> bool:
    """Whether stopped and resumed ends with the bits of straight, in each process."""
    straight = trained(fabric, make(), OUT / f"{name}-straight", size)
    trained(fabric, make(), OUT / f"{name}-stopped", size, STOP)
    resumed = trained(fabric, make(), OUT / f"{name}-stopped", size)
    a, b = cpu_state(straight), cpu_state(resumed)
    return all(torch.equal(a[k], b[k]) for k in a)


def modules(fabric) -> dict[str, bool]:
    """Pools and queues hold what one process would that sees the rows of both."""
    rank, rng = fabric.global_rank, Rng(3)
    pool, queue = Pool((1, 2, 2), 5), MemoryQueue(6, 3, 2)
    one_pool, one_queue = copy.deepcopy(pool), copy.deepcopy(queue)
    queue.slots, one_queue.slots = torch.zeros(6, 3), torch.zeros(6, 3)
    fine = True
    for _ in range(6):
        rows, chance, codes = rng.uniform((5, 1, 2, 2)), rng.uniform((5, 2)), rng.uniform((5, 3))
        mine = slice(0, 2) if rank == 0 else slice(2, 5)  # not as many in both
        given = pool(rows[mine], chance[mine])
        queue.enqueue(codes[mine])
        real, torch.distributed.is_initialized = torch.distributed.is_initialized, lambda: False
        expected = one_pool(rows, chance)[mine]
        one_queue.enqueue(codes)
        torch.distributed.is_initialized = real
        fine &= torch.equal(given, expected)
    return {
        "pool": fine and torch.equal(pool.images, one_pool.images),
        "queue": torch.equal(queue.slots, one_queue.slots),
    }


def closed(fabric, id: str) -> dict[str, torch.Tensor]:
    """What both processes fit together, each alone to its share, and one to all."""
    size = int(card(id).arguments("tiny", dims=2)["size"])
    every, device = images(size, 40), torch.device("cpu")
    made = [named(id).requires_grad_(False).eval() for _ in range(4)]
    closed_form(made[0], every, fabric, 1)
    closed_form(made[1], every, Alone(device), 1)
    for rank in (0, 1):
        with seeded(1):
            made[2 + rank].fit(in_order(every, device, 1, (rank, 2)))
    found = {}
    for name, method in zip(("together", "one", "share 0", "share 1"), made, strict=True):
        found |= {f"{id}/{name}/{k}": v for k, v in method.fitted_buffers().items()}
    return found


def main() -> None:
    torch.set_num_threads(1)
    fabric = launch_fabric("cpu", 2, "32-true")
    found: dict[str, object] = modules(fabric)
    for id in ("cyclegan_ad", "squid", "salad", "fcdd", "dra"):
        size = int(card(id).arguments("tiny", dims=2)["size"])
        found[id] = both(fabric, lambda id=id: named(id), id, size)
    buffers: dict[str, object] = {}
    for id in ("padim", "patchcore", "image_statistics", "mean_image", "anomaly_dino"):
        buffers |= closed(fabric, id)
    with seeded(0):
        first = Plain()
    fabric.sharded = True
    found["fsdp resumes"] = both(fabric, lambda: copy.deepcopy(first), "fsdp", 8)
    parted = trained(fabric, copy.deepcopy(first), OUT / "parted", 8)
    fabric.sharded = False
    alone = trained(
        Alone(torch.device("cpu")), copy.deepcopy(first), OUT / f"one{fabric.global_rank}", 8
    )
    if fabric.is_global_zero:
        save_state(OUT / "states.safetensors", {
            **buffers, "first": cpu_state(first), "parted": cpu_state(parted), "alone": cpu_state(alone),
        })  # fmt: skip
        (OUT / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
