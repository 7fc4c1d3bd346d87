"""The quantum circuit beside matrices of the whole space."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from normscan.errors import ArgumentError
from normscan.networks.circuit import Circuit

X = np.array([[0, 1], [1, 0]], complex)
Y = np.array([[0, -1j], [1j, 0]])
Z = np.diag([1, -1]).astype(complex)


def around(pauli: np.ndarray, angle: float) -> np.ndarray:
    return expm(-0.5j * angle * pauli)


def on(gates: dict[int, np.ndarray], qubits: int) -> np.ndarray:
    return functools.reduce(np.kron, [gates.get(q, np.eye(2)) for q in range(qubits)])


def density(circuit: Circuit, x: np.ndarray) -> np.ndarray:
    """The state behind the gates, all of them matrices of the whole space."""
    n, angles = circuit.qubits, circuit.angles.detach().numpy()
    state = np.zeros(2**n, complex)
    state[0] = 1
    state = on({q: around(Y, x[q]) for q in range(n)}, n) @ state
    for layer in angles:
        turns = {q: around(Z, c) @ around(Y, b) @ around(X, a) for q, (a, b, c) in enumerate(layer)}
        state = on(turns, n) @ state
        for q in range(n - 1):
            state = (on({q: np.diag([1, 0])}, n) + on({q: np.diag([0, 1]), q + 1: X}, n)) @ state
    return np.outer(state, state.conj())


def read(rho: np.ndarray, n: int) -> list[float]:
    return [float(np.trace(on({q: Z}, n) @ rho).real) for q in range(n)]


@pytest.fixture
def circuit():
    made = Circuit(4, 3, depolarising=0.2).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.angles.copy_(4 * torch.rand(3, 4, 3, generator=generator) - 2)
    return made


ANGLES = np.random.default_rng(1).uniform(-3, 3, (5, 4))


def test_expectations_are_those_of_matrices(circuit):
    ours = circuit(torch.from_numpy(ANGLES)).detach().numpy()
    theirs = [read(density(circuit, x), 4) for x in ANGLES]
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_noise_is_the_depolarising_channel(circuit):
    p, n = circuit.depolarising, 4
    theirs = []
    for x in ANGLES:
        rho = density(circuit, x)
        for q in range(n):
            parts = [on({q: pauli}, n) for pauli in (X, Y, Z)]
            rho = (1 - p) * rho + p / 3 * sum(k @ rho @ k.conj().T for k in parts)
        theirs.append(read(rho, n))
    ours = circuit.noisy(torch.from_numpy(ANGLES)).detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_many_shots_come_near_the_expectation(circuit):
    x = torch.from_numpy(ANGLES)
    draws = torch.rand(5, 20_000, 5, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        few = circuit(x, draws)
        # Five deviations of a mean of so many values of -1 and 1.
        assert (few - circuit.noisy(x)).abs().max() < 5 / 20_000**0.5
    assert set((circuit(x, draws[:, :1])).unique().tolist()) <= {-1.0, 1.0}


def test_gradient_is_the_shift_rule(circuit):
    """Half the difference between expectations at angles half a right angle apart, twice over."""
    x = torch.from_numpy(ANGLES[:1])
    circuit(x)[0, 3].backward()
    ours = circuit.angles.grad[1, 2].clone()
    for k in range(3):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                circuit.angles[1, 2, k] += sign * np.pi / 2
                ends.append(float(circuit(x)[0, 3]))
                circuit.angles[1, 2, k] -= sign * np.pi / 2
        assert ours[k] == pytest.approx((ends[0] - ends[1]) / 2, abs=1e-12)


@pytest.mark.parametrize(
    "arguments", [{"qubits": 0}, {"qubits": 30}, {"layers": 0}, {"shots": 0}, {"depolarising": 2}]
)
def test_what_is_no_circuit_is_refused(arguments):
    with pytest.raises(ArgumentError):
        Circuit(**{"qubits": 2, "layers": 1, **arguments})
