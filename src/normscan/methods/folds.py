"""Several fits of one method, each without a part of the healthy scans, kept together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method
from normscan.methods.wrapped import Wrapped, averaged
from normscan.networks.backbones import Backbone


class Folds(Method):
    """The members of a cross-calibrated detector; see ``detector.cross``, which fits them.

    What none of them trained, a frozen backbone, is held, run and stored once.

    Args:
        members: the method fitted without fold 1, 2, ... of the healthy scans.
    """

    def __init__(self, members: Iterable[Method]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        first, *others = self
        self.needs_grad = first.needs_grad
        self.context, self.uses = first.context, first.uses
        self.card = first.card
        self.shared_parts = [
            name
            for name, part in first.named_modules(remove_duplicate=False)
            if isinstance(part, Backbone) and not part.trainable
        ]
        for name in self.shared_parts:
            part = first.get_submodule(name)
            assert isinstance(part, Backbone)
            part.remembers = True
            for other in others:
                other.set_submodule(name, part)
        self.register_state_dict_post_hook(Folds._drop_shared)

    def __iter__(self) -> Iterator[Method]:
        for member in self.members:
            assert isinstance(member, Method)
            yield member

    @property
    def updates(self) -> bool:
        return all(member.updates for member in self)

    def update(self, batches: Iterable[Batch]) -> None:
        for member in self:  # none of them saw the new scans
            member.update(batches)

    def each(self, batch: Batch) -> list[Maps]:
        return [maps for member in self for maps in member.each(batch)]

    def maps(self, batch: Batch) -> Maps:
        return averaged(self.each(batch))[0]

    def found(self, scans: Sequence[str], subjects: Sequence[int]) -> dict[str, Any]:
        # Each member knows its own scans alone, and the numbers here are not theirs.
        return {}

    def learnt(self) -> dict[str, Any]:
        each = [member.learnt() for member in self]
        return {"folds": each} if any(each) else {}

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Load a state dict in which what is shared stands once."""
        state = dict(state)
        for name in self.shared_parts:
            first = f"members.0.{name}."
            for key in [k for k in state if k.startswith(first)]:
                for number in range(1, len(self.members)):
                    state[f"members.{number}.{key.removeprefix('members.0.')}"] = state[key]
        super().load_weights(state)

    @staticmethod
    def _drop_shared(
        module: nn.Module, state: dict[str, Any], prefix: str, metadata: object
    ) -> None:
        assert isinstance(module, Folds)
        for number in range(1, len(module.members)):
            for name in module.shared_parts:
                doubled = f"{prefix}members.{number}.{name}."
                for key in [k for k in state if k.startswith(doubled)]:
                    del state[key]


class Only(Wrapped):
    """One member of a method that leaves out each fold in turn.

    Args:
        inner: after ``fit_folds``.
        number: of the fold that is left out, from 0.
    """

    def __init__(self, inner: Method, number: int) -> None:
        super().__init__(inner)
        self.number = number

    def maps(self, batch: Batch) -> Maps:
        return self.inner.each(batch)[self.number]
