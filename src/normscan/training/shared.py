"""What the processes of a training share after each update, so that each holds the same state.

Then the checkpoint that the first process writes is that of all of them, and any of them goes on from
it. Gradients are averaged. Of what a loss changed besides, statistics are averaged; numbers,
flags and parameters that it set are the first process's; ``Method`` says which buffers are no statistics.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normscan.errors import ArgumentError, NormscanError
from normscan.methods.base import Method
from normscan.rng import Rng, derive_seed
from normscan.training.fabric import alike

if TYPE_CHECKING:
    from lightning_fabric import Fabric

COUNTER = "num_batches_tracked"  # of a norm: every process counts the same


class Sharing:
    """Keeps a method alike in all processes; with one process it does nothing.

    Args:
        method: that is trained, in place.
        fabric: of the processes.
    """

    def __init__(self, method: nn.Module, fabric: Fabric) -> None:
        self.method, self.fabric = method, fabric
        self.several = fabric.world_size > 1
        self._seen: dict[str, tuple[int, int]] = {}

    def gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average over processes; by hand, since the players of a phase differ in parameters.

        A batch that lacks what a part learns from leaves it without a gradient, in one process and
        not in another: there it is 0.
        """
        if not self.several or not parameters:
            return
        have = torch.tensor([float(p.grad is not None) for p in parameters])
        have = self._over_all(have.to(self.fabric.device), "sum")
        for p, count in zip(parameters, have.tolist(), strict=True):
            if hasattr(p, "full_tensor"):
                continue  # it lies in parts, whose gradients came averaged
            if count:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                p.grad = self._over_all(p.grad, "mean")

    def _over_all(self, value: Tensor, how: str) -> Tensor:
        found = self.fabric.all_reduce(value, reduce_op=how)
        assert isinstance(found, Tensor)  # as what was given
        return found

    def begin(self) -> None:
        """Remember the buffers as they are before a loss is computed."""
        if self.several:
            self._seen = self._marks()

    def _marks(self) -> dict[str, tuple[int, int]]:
        every = [*self.method.named_buffers(), *self.method.named_parameters()]
        return {name: (id(v), v._version) for name, v in every if not hasattr(v, "full_tensor")}

    @torch.no_grad()
    def buffers(self, trained: Sequence[nn.Module]) -> None:
        """Share what the loss changed since ``begin``, in any process; before the optimiser's step.

        Args:
            trained: modules in training, whose statistics count as changed: a batch norm doesn't
                tell, and that of a judge sees what a generator makes in the generator's turn.
        """
        if not self.several:
            return
        now = self._marks()
        names = sorted(name for name in now if not name.endswith(COUNTER))
        if not names:
            return
        within = {id(b) for m in trained for b in m.buffers() if b.is_floating_point()}
        changed = torch.tensor(
            [float(now[n][0] in within or now[n] != self._seen.get(n)) for n in names]
        )
        everywhere = self._over_all(changed.to(self.fabric.device), "sum")
        for name, flag in zip(names, everywhere.tolist(), strict=True):
            if flag:
                self._share(name)

    def _share(self, name: str) -> None:
        owner, _, leaf = name.rpartition(".")
        module = self.method.get_submodule(owner)
        if leaf in getattr(module, "gathered", ()):
            return  # from the rows of all processes, so it is the same in each
        buffer: Tensor = getattr(module, leaf)
        statistic = buffer.is_floating_point() and not isinstance(buffer, nn.Parameter)
        if statistic and leaf not in getattr(module, "of_first", ()):
            buffer.copy_(self._over_all(buffer, "mean"))
            return
        first = self.fabric.broadcast(buffer).to(buffer.device)
        if first.shape == buffer.shape:
            buffer.copy_(first)
        else:
            setattr(module, leaf, first)

    def agree(self, state: dict[str, Tensor]) -> None:
        """Refuse to go on with a state that the processes don't share.

        Args:
            state: of the method in this process, on the CPU.

        Raises:
            NormscanError: an entry differs; names it. The other processes end.
        """
        if not self.several:
            return
        names = sorted(state)
        sums = torch.tensor([checksum(state[name]) for name in names], dtype=torch.int64)
        gathered = self.fabric.all_gather(sums.to(self.fabric.device))
        assert isinstance(gathered, Tensor)  # as what was given
        every = gathered.reshape(-1, len(names))
        apart = [n for n, same in zip(names, (every == every[:1]).all(0), strict=True) if not same]
        if apart:
            error = NormscanError(
                f"the processes came apart: each holds its own '{apart[0]}'"
                + (f" and {len(apart) - 1} more" if apart[1:] else "")
                + ", so no checkpoint would let all of them go on. Train this method in one process "
                "(--devices 1)."
            )
            raise alike(self.fabric, error)

    def batch(self, size: int) -> None:
        """Refuse a method that can't be shared, and a batch that leaves a process without a sample.

        Raises:
            ArgumentError: so it is; says why.
        """
        why = next((m.alone for m in self.method.modules() if hasattr(m, "alone")), None)
        if self.several and why is not None:
            error = ArgumentError(
                f"several processes can't train this method: {why}. Use --devices 1."
            )
            raise alike(self.fabric, error)
        if size < self.fabric.world_size:
            error = ArgumentError(
                f"batch_size is {size}, and {self.fabric.world_size} processes share a batch: each needs "
                "a sample. Raise it, or take fewer processes."
            )
            raise alike(self.fabric, error)

    def due(self, wanted: bool) -> bool:
        """Whether the first process wants something; clocks differ, and all must do it together."""
        return bool(self.fabric.broadcast(wanted)) if self.several else wanted


def checksum(value: Tensor) -> int:
    """Return a number of the bits of a tensor on the CPU."""
    flat = value.detach().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().tobytes()) if flat.numel() else 0


def merge_everywhere(method: Method, seed: int) -> None:
    """Merge what the processes fitted to their samples, in their order, so that all end alike."""
    every: list[dict[str, Tensor]] = [{} for _ in range(dist.get_world_size())]
    mine = {k: v.cpu() for k, v in method.fitted_buffers().items()}
    dist.all_gather_object(every, mine)
    device = next(method.buffers()).device
    first, *others = ({k: v.to(device) for k, v in one.items()} for one in every)
    method.load_weights({**method.state_dict(), **first})
    method.merge(others, Rng(derive_seed(seed, "merge")))
