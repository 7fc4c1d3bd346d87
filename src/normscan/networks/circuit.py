"""A variational quantum circuit as an exact state vector, with shots and noise of the reading."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError

MOST = 16


def turn(angles: Tensor) -> Tensor:
    """RZ RY RX of one qubit for angles (3,), those of x, y and z; (2, 2) complex."""
    x, y, z = (angles / 2).unbind()
    none = torch.zeros_like(x)
    around_x = torch.complex(
        torch.stack([x.cos(), none, none, x.cos()]), torch.stack([none, -x.sin(), -x.sin(), none])
    ).reshape(2, 2)
    around_y = torch.stack([y.cos(), -y.sin(), y.sin(), y.cos()]).reshape(2, 2).to(around_x)
    around_z = torch.polar(torch.ones_like(z).expand(2), torch.stack([-z, z])).diag()
    return around_z @ around_y @ around_x


class Circuit(nn.Module):
    """Numbers turn qubits about y, layers turn and entangle them, expectations are read.

    Qubit m begins at 0 and is turned by RY(x_m). Each layer applies RZ RY RX with three learnt
    angles to every qubit, then a controlled NOT from each qubit to the next one. What is read is the
    expectation of Pauli's Z on every qubit.

    Args:
        qubits: 1 to 16; 2 to their power numbers are held for each sample.
        layers: of turns and controlled NOTs.
        shots: measurements that expectations are estimated from; None for the exact ones.
        depolarising: probability p that a qubit is depolarised before it is read: with p / 3 each it
            is turned about x, y or z by half a turn.

    Raises:
        ArgumentError: a number out of range.
    """

    def __init__(
        self, qubits: int, layers: int, shots: int | None = None, depolarising: float = 0.0
    ) -> None:
        super().__init__()
        if not 1 <= qubits <= MOST or layers < 1 or not 0 <= depolarising <= 1:
            raise ArgumentError(
                f"a circuit of {qubits} qubits and {layers} layers, depolarising {depolarising}: give "
                f"1 to {MOST} qubits, a layer or more, and a probability."
            )
        if shots is not None and shots < 1:
            raise ArgumentError(f"shots={shots}: give 1 or more, or leave it out for exact values.")
        self.qubits, self.shots, self.depolarising = qubits, shots, depolarising
        # Large angles would leave hardly any gradient.
        self.angles = nn.Parameter(0.1 * torch.randn(layers, qubits, 3))
        state = torch.arange(2**qubits)
        bits = torch.stack([state >> (qubits - 1 - q) & 1 for q in range(qubits)])
        for q in range(qubits - 1):
            bits[q + 1] ^= bits[q]
        after = sum(bits[q] << (qubits - 1 - q) for q in range(qubits))
        # The state that each one comes from.
        self.register_buffer("chained", torch.as_tensor(after).argsort(), persistent=False)
        signs = torch.stack([1 - 2 * (state >> (qubits - 1 - q) & 1) for q in range(qubits)])
        self.register_buffer("signs", signs, persistent=False)

    def state(self, x: Tensor) -> Tensor:
        """Amplitudes (B, 2 ** qubits) for angles x (B, qubits); the first qubit is the highest bit."""
        assert isinstance(self.chained, Tensor)
        whole = torch.ones_like(x[:, :1])
        for q in range(self.qubits):
            one = torch.stack([(x[:, q] / 2).cos(), (x[:, q] / 2).sin()], 1)
            whole = (whole[:, :, None] * one[:, None]).flatten(1)
        amplitudes = torch.complex(whole, torch.zeros_like(whole))
        for layer in self.angles:
            for q, angles in enumerate(layer):
                parts = amplitudes.reshape(len(x), 2**q, 2, -1)
                amplitudes = torch.einsum("ij,bajc->baic", turn(angles), parts).flatten(1)
            amplitudes = amplitudes[:, self.chained]
        return amplitudes

    def forward(self, x: Tensor, draws: Tensor | None = None) -> Tensor:
        """Expectations (B, qubits) for angles x (B, qubits).

        Args:
            x: in rad.
            draws: uniform numbers (B, shots, 1 + qubits) to measure with; None for exact values
                without noise.
        """
        assert isinstance(self.signs, Tensor)
        state = self.state(x)
        chance = state.real.square() + state.imag.square()
        if draws is None:
            return chance @ self.signs.T.to(chance)
        found = torch.searchsorted(
            chance.cumsum(1), draws[..., 0].to(chance).contiguous(), right=True
        ).clamp_max(chance.shape[1] - 1)
        measured = self.signs.T.to(chance)[found]
        # Half a turn about x or y flips what is read.
        flipped = draws[..., 1:].to(chance) < 2 / 3 * self.depolarising
        return torch.where(flipped, -measured, measured).mean(1)

    def noisy(self, x: Tensor) -> Tensor:
        """Expectations (B, qubits) under the noise, over infinitely many shots."""
        return (1 - 4 / 3 * self.depolarising) * self(x)
