"""The training loop: phases, players, validation, checkpoints. It reads from top to bottom.

Every random number of a step is drawn from (seed, phase, step, player), never from a running state,
so a run that was killed goes on from its last checkpoint and ends as the straight run would have.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from normscan.errors import ArgumentError, NormscanError
from normscan.io.atomic import writing
from normscan.methods.base import Batch, Batches, Method, Phase, Player
from normscan.rng import Rng, derive_seed, seeded
from normscan.tracking import record
from normscan.training.checkpoint import cpu_state, load_state, save_state, whole
from normscan.training.data import Draws, PreparedSet
from normscan.training.folder import CHECKPOINT, LOG
from normscan.training.sharded import explained, parted_state, sharded, whole_state
from normscan.training.shared import Sharing, merge_everywhere

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOG_LINES = 200
AT_ONCE = 16  # samples in a batch of the closed form
LOOK_SHARE = 3  # one in ten of the forward passes' worth, where a step is worth three

Report = Callable[[str, int, int, str], None]


class Trainer:
    """Trains the phases of a method on the parts of a cohort that they ask for.

    Args:
        method: what is trained, in place.
        parts: training samples by the name of their part: ``healthy`` and what else is asked for.
        validation: healthy samples for the validation loss, or None.
        folder: run folder for the log and the checkpoint.
        fabric: device, precision and processes.
        seed: of everything random.
        report: called with phase, step, steps and a text of the current losses.
        say: called with a sentence where a run goes on from a checkpoint.
        checkpoint_seconds: time between checkpoints.
    """

    def __init__(
        self,
        method: Method,
        parts: Mapping[str, PreparedSet],
        validation: PreparedSet | None,
        folder: Path,
        fabric: Fabric,
        seed: int,
        report: Report,
        say: Callable[[str], None] | None = None,
        checkpoint_seconds: float = 60.0,
    ) -> None:
        self.method = method
        self.parts = parts
        self.validation = validation
        self.folder = folder
        self.fabric = fabric
        self.seed = seed
        self.report = report
        self.say = say or (lambda text: None)
        self.checkpoint_seconds = checkpoint_seconds
        # What a phase leaves for later and a checkpoint must carry besides weights and optimisers.
        self.memory: dict[str, Any] = {}
        # A player may hold parts that its method froze, such as a backbone: they stay frozen.
        self.trainable = {id(p) for p in method.parameters() if p.requires_grad}
        self.seconds: dict[str, float] = {}
        self.sharing = Sharing(method, fabric)

    def run(self) -> dict[str, float]:
        """Train all phases, from the checkpoint if there is one; return seconds per phase."""
        if not self.fabric.sharded:
            self.method.to(self.fabric.device)
        path = self.folder / CHECKPOINT
        state = load_state(path) if path.exists() else None
        first = 0
        if state:
            first = state["phase"]
            self.seconds = dict(state["seconds"])
            self.method.load_weights(state["method"])
        self._trim_log(first, state["step"] if state else 0)
        phases = self.method.phases()
        if state and not state["step"]:
            left = f"begins phase '{phases[first].name}'" if first < len(phases) else "is trained"
            self.say(f"resuming: the method {left}")
        for index, phase in enumerate(phases):
            if index >= first:
                begun = state if state and index == first and state["step"] else None
                self._phase(index, phase, begun)
        self.method.requires_grad_(False).eval()
        return self.seconds

    def train(self, index: int, phase: Phase) -> None:
        """Train one phase from its start, as a round of many; ``index`` decides its draws."""
        self._phase(index, phase, None)

    def _phase(self, index: int, phase: Phase, state: dict[str, Any] | None) -> None:
        given = self.method
        if self.fabric.sharded:
            self.method, phase = sharded(given, index, self.fabric)
            self.sharing = Sharing(self.method, self.fabric)
            self.trainable = {id(p) for p in self.method.parameters() if p.requires_grad}
        part = PreparedSet.join([self.parts[name] for name in phase.part.split("+")])
        steps = phase.total_steps(len(part))
        self.sharing.batch(phase.batch_size)
        try:
            optimizers = {p.name: p.optimizer(p.parameters()) for p in phase.players}
        except ValueError as error:
            raise ArgumentError(f"the optimiser refuses its settings: {error}.") from error
        self.memory = {"best": None, "best_loss": None, "waited": 0, "ema": None}
        begin = 0
        if state:
            begin, self.memory = state["step"], state["memory"]
            self.say(f"resuming at step {begin} of {steps} of phase '{phase.name}'")
            for name, optimizer in optimizers.items():
                stored = state["optimizers"][name]
                optimizer.load_state_dict(parted_state(stored, optimizer))
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        elif phase.ema:
            self.memory["ema"] = cpu_state(self.method)
        wrapped = {n: self.fabric.setup_optimizers(o) for n, o in optimizers.items()}
        seed = derive_seed(self.seed, index, "data")
        data = Draws(part, phase.batch_size, seed, phase.balanced)
        epoch = max(1, len(part) // phase.batch_size)
        every = epoch if phase.validate_every == "epoch" else phase.validate_every
        self._roles(phase)
        started = saved = time.monotonic()
        before = self.seconds.get(phase.name, 0.0)
        text = ""
        for step in range(begin, steps):
            terms = self._step(index, phase, step, steps, wrapped, data)
            if step == begin and self.sharing.several:
                self.sharing.agree(cpu_state(self.method))  # later only before a checkpoint
            if phase.ema:
                self._average(phase.ema, step)
            look = bool(every) and ((step + 1) % every == 0 or step + 1 == steps)
            loss = self._validate(phase, looked_at(every, phase.batch_size)) if look else None
            if loss is not None:
                self._remember(phase, loss)
            self.seconds[phase.name] = before + time.monotonic() - started
            if look or step % max(1, steps // LOG_LINES) == 0 or step + 1 == steps:
                text = self._log(index, phase.name, step, terms, loss)
            self.report(phase.name, step + 1, steps, text)
            if phase.patience and self.memory["waited"] >= phase.patience:
                break
            due = time.monotonic() - saved > self.checkpoint_seconds
            if step + 1 < steps and self.sharing.due(due):
                self._save(index, step + 1, optimizers)
                saved = time.monotonic()
        if self.fabric.sharded:
            given.load_weights(cpu_state(self.method))
            self.method = given
        self._close(phase)
        self._save(index + 1, 0, {})

    def _roles(self, phase: Phase) -> None:
        """Players train; everything else is frozen and in evaluation mode."""
        self.method.requires_grad_(False).eval()
        for player in phase.players:
            for module in player.modules:
                module.train()

    def _step(
        self,
        index: int,
        phase: Phase,
        step: int,
        steps: int,
        optimizers: dict[str, Any],
        data: Draws,
    ) -> dict[str, float]:
        """One update, or several, of each player in turn."""
        terms: dict[str, float] = {}
        fabric = self.fabric
        draw = step * sum(p.turns for p in phase.players)
        training = [module for p in phase.players for module in p.modules]
        for player in phase.players:
            trained = [p for p in player.parameters() if id(p) in self.trainable]
            for p in trained:
                p.requires_grad_(True)
            for turn in range(player.turns):
                seed = derive_seed(self.seed, index, step, player.name, turn, fabric.global_rank)
                mine = data.indices(draw)[fabric.global_rank :: fabric.world_size]
                draw += 1
                batch = data.data.batch(mine, Rng(seed)).to(fabric.device)
                optimizer = optimizers[player.name]
                optimizer.zero_grad()
                self.sharing.begin()
                with seeded(seed), fabric.autocast(), explained(fabric):
                    losses = self.method.loss(batch, phase.name, player.name)
                    total = torch.stack([v.float() for v in losses.values()]).sum()
                self._check(phase, step, player, losses)
                if total.requires_grad or not self.sharing.several:
                    fabric.backward(total)
                self.sharing.gradients(trained)
                if player.clip is not None:
                    fabric.clip_gradients(self.method, optimizer, max_norm=player.clip)
                if player.schedule:
                    for group in optimizer.param_groups:
                        base = group.setdefault("base_lr", group["lr"])
                        group["lr"] = base * player.schedule(step, steps)
                self.sharing.buffers(training)
                optimizer.step()
                terms |= {f"{player.name}/{k}": v.detach() for k, v in losses.items()}  # type: ignore[misc]
            for p in trained:
                p.requires_grad_(False)
        return terms

    def _check(self, phase: Phase, step: int, player: Player, losses: dict[str, Tensor]) -> None:
        bad = [name for name, value in losses.items() if not torch.isfinite(value)]
        if bad:
            raise NormscanError(
                f"the loss '{bad[0]}' of {player.name} is not finite at step {step + 1} of phase "
                f"'{phase.name}'. Lower the learning rate, or check the scaling of the images."
            )

    def _average(self, decay: float, step: int) -> None:
        """Moving average of the weights; short at first, so that the start is forgotten."""
        decay = min(decay, (1 + step) / (10 + step))
        average = self.memory["ema"]
        for name, value in self.method.state_dict().items():
            value = whole(value.detach()).cpu()
            if value.is_floating_point() and value.shape == average[name].shape:
                average[name].lerp_(value, 1 - decay)
            else:  # a counter, or something that grew
                average[name] = value.clone()

    @torch.no_grad()
    def _validate(self, phase: Phase, most: int) -> float | None:
        """Mean loss on the healthy validation samples, with the same random numbers each time.

        Of many samples so many are taken, the same each time; see ``looked_at``.
        """
        if self.validation is None:
            return None
        self.method.eval()
        total, n = 0.0, 0
        for batch in self.validation.passes(phase.batch_size, self.seed, most):
            batch = batch.to(self.fabric.device)
            with seeded(self.seed), self.fabric.autocast():
                for player in phase.players:
                    losses = self.method.loss(batch, phase.name, player.name)
                    total += len(batch) * float(sum(v.float() for v in losses.values()))
            n += len(batch)
        self._roles(phase)
        return total / n

    def _remember(self, phase: Phase, loss: float) -> None:
        memory = self.memory
        if memory["best_loss"] is None or loss < memory["best_loss"]:
            memory["best_loss"], memory["waited"] = loss, 0
            if phase.keep == "best":
                memory["best"] = cpu_state(self.method)
        else:
            memory["waited"] += 1

    @torch.no_grad()
    def _close(self, phase: Phase) -> None:
        """Put the weights in place that the phase is to end with."""
        self.method.zero_grad(set_to_none=True)
        chosen = self.memory["best"] if phase.keep == "best" else None
        chosen = chosen or self.memory["ema"]
        if chosen:
            self.method.load_weights(chosen)
        self.memory = {}

    def _save(self, phase: int, step: int, optimizers: dict[str, torch.optim.Optimizer]) -> None:
        weights = cpu_state(self.method)
        states = {n: whole_state(o) for n, o in optimizers.items()}
        self.sharing.agree(weights)
        if self.fabric.is_global_zero:
            state = {
                "phase": phase,
                "step": step,
                "method": weights,
                "optimizers": states,
                "memory": self.memory,
                "seconds": self.seconds,
                "precision": self.fabric.strategy.precision.state_dict(),
            }
            save_state(self.folder / CHECKPOINT, state)

    def _log(
        self, index: int, phase: str, step: int, terms: dict[str, float], validation: float | None
    ) -> str:
        values = {k: float(v) for k, v in terms.items()}
        line = {"phase_index": index, "phase": phase, "step": step + 1, "terms": values}
        line |= {"validation": validation, "seconds": round(self.seconds[phase], 3)}
        if self.fabric.is_global_zero:
            path = self.folder / LOG
            with writing(path), path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            record(self.folder, line)
        return "  ".join(f"{k.partition('/')[2]} {v:.4g}" for k, v in values.items())

    def _trim_log(self, phase: int, step: int) -> None:
        """Drop the lines of steps that will be run again."""
        path = self.folder / LOG
        if not (path.exists() and self.fabric.is_global_zero):
            return
        kept = []
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # cut where the process was killed
            if (line["phase_index"], line["step"]) <= (phase, step):
                kept.append(text + "\n")
        with writing(path):
            path.write_text("".join(kept))


def looked_at(every: int, batch_size: int) -> int:
    """Return how many validation samples a look takes at most, for about a tenth of the time.

    A sample of a look costs a forward pass, one of a step that and a backward one, about three
    times as much. So a look takes a third of the samples that were learnt from since the last one,
    at least a batch. Samples are counted, not seconds: the result is the same on any machine.

    Args:
        every: steps between looks.
        batch_size: samples of a step.
    """
    return max(batch_size, every * batch_size // LOOK_SHARE)


def closed_form(method: Method, healthy: PreparedSet, fabric: Fabric, seed: int) -> None:
    """Run the closed-form part of a method over the training samples, in order.

    Several processes part the samples among them where the method can merge what they learn.
    """
    several, share = fabric.world_size, (0, 1)
    if several > 1 and method.merges and len(healthy) > (several - 1) * AT_ONCE:
        share = (fabric.global_rank, several)
    with seeded(seed):
        method.fit(in_order(healthy, fabric.device, seed, share))
    if share != (0, 1):
        merge_everywhere(method, seed)


def in_order(
    healthy: PreparedSet, device: torch.device, seed: int, share: tuple[int, int] = (0, 1)
) -> Batches:
    """Batches of the training samples, in order, on a device; ``share`` as of ``passes``."""

    def batches() -> Iterator[Batch]:
        for batch in healthy.passes(AT_ONCE, seed, share=share):
            yield batch.to(device)

    return Batches(batches)
