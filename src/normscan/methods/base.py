"""What a method is: its phases of training, its loss, its closed-form part, its maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from normscan.methods.uses import Use as Use
from normscan.rng import Rng

if TYPE_CHECKING:
    from normscan.registry import Card


@dataclass
class Batch:
    """What a method sees of some slices, patches or volumes.

    Attributes:
        image: (B, C, *spatial) float32, scaled by the preprocessing (about 0 to 1).
        foreground: (B, 1, *spatial) bool.
        rng: source of all randomness.
        position: (B,) place of the slice or patch in its subject, 0 to 1.
        context: (B, C, 2 n + 1, *spatial) the slice in the middle of its neighbours, of which the
            method asks for n on each side (``Method.context``), else None. Neighbours are slices
            that show anatomy; beyond the first and the last one these are repeated, and a scan that
            is no volume repeats itself.
        label: (B,) 0 healthy, 1 anomalous, -1 not told; in training.
        lesion: (B, 1, *spatial) bool, where the phase draws from ``anomalous``; empty where the
            label is not 1 or nobody drew one.
        index: (B,) number of each sample in the part that the phase draws from; in training.
        subject: (B,) number of each sample's subject in that part; in training.
        part: (B,) which of the parts of its phase a sample is from, counted from 0; in training.
        columns: the cohort's columns, one dictionary per sample; empty ones for a scan that comes
            without a cohort.
        target: (B, T, *spatial) further scans of the subject, scaled as the image; where the method
            uses them (``Method.uses``), else None.
        structures: (B, 1, *spatial) label map of the anatomy, 0 outside the scan; likewise.
        further: further images of the case by name, (B, C, *their own size), scaled as the image;
            where the method uses them, and the cases of the batch have them.
    """

    image: Tensor
    foreground: Tensor
    rng: Rng
    position: Tensor
    context: Tensor | None = None
    label: Tensor | None = None
    lesion: Tensor | None = None
    index: Tensor | None = None
    subject: Tensor | None = None
    part: Tensor | None = None
    columns: list[dict[str, Any]] = field(default_factory=list)
    target: Tensor | None = None
    structures: Tensor | None = None
    further: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image)

    def taken(self, places: Sequence[int]) -> Batch:
        """Return some samples, by their places in the batch."""
        at = torch.as_tensor(places, dtype=torch.long, device=self.image.device)
        tensors = {k: v[at.to(v.device)] for k, v in vars(self).items() if isinstance(v, Tensor)}
        columns = [self.columns[i] for i in places] if self.columns else []
        further = {name: image[at.to(image.device)] for name, image in self.further.items()}
        moved: dict[str, Any] = {**tensors, "columns": columns, "further": further}
        return replace(self, **moved)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on a device."""
        moved: dict[str, Any] = {
            k: v.to(device, non_blocking=True)
            for k, v in vars(self).items()
            if isinstance(v, Tensor)
        }
        moved["further"] = {
            name: image.to(device, non_blocking=True) for name, image in self.further.items()
        }
        return replace(self, **moved)


class Batches:
    """Batches that can be gone through as often as needed; each time they are made anew."""

    def __init__(self, make: Callable[[], Iterator[Batch]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Batch]:
        return self._make()


@dataclass
class Maps:
    """What a method returns for a batch.

    Attributes:
        map: (B, 1, *spatial) raw anomaly map at the method's own grid, higher = more anomalous;
            None for a method that only scores.
        score: (B,) image score; None leaves it to the reduction of the map.
        reconstruction: (B, C, *spatial) in the scale of the input.
        uncertainty: (B, 1, *spatial), a variance.
        further: (B, 1, *its own grid) map of each further image that was seen, by name.
    """

    map: Tensor | None = None
    score: Tensor | None = None
    reconstruction: Tensor | None = None
    uncertainty: Tensor | None = None
    further: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Player:
    """A group of parameters with its own optimiser and rhythm.

    Attributes:
        name: passed to ``Method.loss``.
        modules: what it trains.
        optimizer: builds the optimiser from the parameters.
        turns: updates of this player in each step of the phase.
        schedule: learning-rate factor as a function of (step, steps).
        clip: largest norm of its gradient; None for no clipping.
    """

    name: str
    modules: Sequence[nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    turns: int = 1
    schedule: Callable[[int, int], float] | None = None
    clip: float | None = None

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of its modules."""
        return [p for m in self.modules for p in m.parameters()]


@dataclass
class Phase:
    """A stage of training.

    Attributes:
        name: passed to ``Method.loss``.
        players: who is trained; everything else is frozen and in evaluation mode.
        steps: number of steps; ``epochs`` counts passes over the training part instead.
        batches: batches of a step that count for ``epochs``, such as those of a critic's turns.
        batch_size: samples in a step, over all processes.
        part: part of the cohort that the batches are drawn from: ``healthy``, ``unlabelled`` (all
            of ``extra``, its labels hidden), ``anomalous`` (what is lesioned in ``extra``, with
            masks), ``labelled`` (the same without masks), ``auxiliary`` (another cohort), or
            several with a plus between, mixed in proportion to their sizes.
        balanced: draw as many samples of each part, whatever their sizes.
        validate_every: steps between looks at the healthy validation loss, or once an ``epoch``;
            0 for none (the loss of an adversarial phase says nothing).
        keep: ``last`` or ``best`` by validation loss.
        patience: stop after so many looks without gain; None for never.
        ema: decay of the moving average of the weights that replaces them at the end.
    """

    name: str
    players: list[Player]
    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 16
    batches: int = 1
    part: str = "healthy"
    balanced: bool = False
    validate_every: int | Literal["epoch"] = 0
    keep: Literal["last", "best"] = "last"
    patience: int | None = None
    ema: float | None = None

    def total_steps(self, samples: int) -> int:
        """Number of steps for so many training samples."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or 0) * max(1, -(-samples // self.batch_size)) // self.batches


class Method(nn.Module):
    """What is learnt and how a map comes out of it; see the class attributes and four calls.

    Attributes:
        card: set by the registry.
        needs_grad: whether ``maps`` needs gradients.
        context: neighbouring slices on each side that it sees, see ``Batch.context``.
        uses: what it uses of that which may stand beside a scan, by name: ``target``,
            ``structures``, ``further``.
        fits_on: parts that the closed form sees, one after the other; ``Batch.part`` tells them.
        fitted: how the names of the buffers begin that the closed form fits, where those of several
            fits can be merged; see ``merge``.
    """

    card: Card
    needs_grad = False
    context: int = 0
    uses: Mapping[str, Use] = MappingProxyType({})
    fits_on: tuple[str, ...] = ("healthy",)
    fitted: tuple[str, ...] = ()

    def phases(self) -> list[Phase]:
        """The stages of training; none for a method that trains nothing."""
        return []

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        """Named terms of the loss; the loop sums them and weighs nothing."""
        raise TypeError(f"{type(self).__name__} trains nothing, so it has no loss")

    def fit(self, batches: Iterable[Batch]) -> None:
        """The closed-form part, from the healthy training scans or ``fits_on``; nothing by default."""

    def need(self, samples: int) -> str:
        """The memory that the closed-form part takes for so many training samples, in words.

        It is shown before training begins; empty where it doesn't grow with them.
        """
        return ""

    def companions(self, part: str) -> tuple[str, ...]:
        """What the scans of a part of the cohort must have beside them."""
        return tuple(name for name, use in self.uses.items() if part in use.parts)

    @property
    def fits(self) -> bool:
        """Whether the method has a closed-form part."""
        return type(self).fit is not Method.fit

    def maps(self, batch: Batch) -> Maps:
        """Anomaly maps and scores of a batch."""
        raise TypeError(f"{type(self).__name__} doesn't say how a map comes out of it")

    @property
    def updates(self) -> bool:
        """Whether new healthy scans can join what the closed-form part learnt; see ``update``."""
        return type(self).update is not Method.update

    def update(self, batches: Iterable[Batch]) -> None:
        """Like ``fit``, with further healthy scans; what was learnt before stays.

        Raises:
            ArgumentError: there is no room for them, or what was learnt doesn't say from how many.
        """
        raise TypeError(f"{type(self).__name__} takes in no further scans")

    @property
    def merges(self) -> bool:
        """Whether what it learnt from some scans and from others can become one; see ``merge``."""
        return type(self).merge is not Method.merge

    def merge(self, others: Sequence[Mapping[str, Tensor]], rng: Rng) -> None:
        """Take in what its like learnt from other scans, as if it had been fitted to all.

        Args:
            others: of each its ``fitted_buffers``; all else is the same in them.
            rng: source of randomness.

        Raises:
            ArgumentError: they can't be merged; says why.
        """
        raise TypeError(f"{type(self).__name__} can't be merged")

    def fitted_buffers(self) -> dict[str, Tensor]:
        """What the closed form fitted, by the names of ``fitted``."""
        return {k: v for k, v in self.state_dict().items() if k.startswith(self.fitted)}

    @property
    def leaves_out(self) -> bool:
        """Whether one fit can leave out each fold of the healthy scans in turn; see ``fit_folds``."""
        return False

    def fit_folds(self, folds: Sequence[Iterable[Batch]]) -> None:
        """Like ``fit``, fold by fold, so that ``each`` can leave out one after the other."""
        raise TypeError(f"{type(self).__name__} is fitted anew without each fold")

    def each(self, batch: Batch) -> list[Maps]:
        """Maps and scores of a batch by each member of a detector that calibrates on all scans.

        A method by itself is its only member; after ``fit_folds`` there is one without each fold.
        """
        return [self.maps(batch)]

    def found(self, scans: Sequence[str], subjects: Sequence[int]) -> dict[str, Any]:
        """What training found out about healthy scans, by id and subject; for ``training``."""
        return {}

    def learnt(self) -> dict[str, Any]:
        """What it chose by itself and why, as JSON values, from its stored state alone."""
        return {}

    def shared(self) -> Sequence[nn.Module] | None:
        """What leaves a site in federated training; None for everything that is learnt.

        Raises:
            ArgumentError: the mean of what several sites learnt would be no fit; the message says why.
        """
        return None

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Load a state dict; a buffer that was fitted to another size takes the stored one.

        That is copied, since products depend in their last bit on how numbers lie in memory, unless
        its module has ``stays_mapped`` and wants to leave it in the file that it was mapped from.
        """
        for name, buffer in list(self.named_buffers()):
            if name in state and state[name].shape != buffer.shape:
                owner, _, leaf = name.rpartition(".")
                module, stored = self.get_submodule(owner), state[name].to(buffer.device)
                stays = getattr(module, "stays_mapped", None)
                setattr(module, leaf, stored if stays and stays(leaf, stored) else stored.clone())
        self.load_state_dict(state)


def adam(lr: float, **options: Any) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """Return a builder of Adam with these options."""
    return lambda parameters: torch.optim.Adam(parameters, lr=lr, **options)
