"""Few vectors that cover many: greedy k-center, whole or from a stream."""

from __future__ import annotations

import torch
from torch import Tensor

from normscan.rng import Rng
from normscan.scores.neighbours import Neighbours, squared_distances

FRONT = 1024  # farthest rows among which centres are chosen without looking at the others
ROWS = 8192


def farthest_first(
    points: Tensor, nearest: Tensor, n: int, radius: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Choose rows one by one, each the farthest from all chosen before (Gonzalez 1985).

    The result is that of the plain loop, but the distances are computed for many centres at once:
    among the ``FRONT`` farthest rows the choice goes on as long as the farthest of them is farther
    than every row outside was at the start, since that one can only have come nearer.

    Args:
        points: (N, d).
        nearest: (N,) squared distance of each row to what was chosen before, or a start value.
        n: rows to choose, N at most.
        radius: stop when no row is farther than this.

    Returns:
        Indices of the chosen rows in order, and the squared distance of each row to the nearest
        chosen one (-1 for the chosen), no larger than it was.
    """
    nearest = nearest.clone()
    norms = points.square().sum(1)
    limit = radius**2
    chosen: list[Tensor] = []
    left = min(n, len(points))
    while left > 0:
        front = nearest.topk(min(FRONT, len(points)))
        bound = float(front.values[-1]) if len(points) > FRONT else -1.0
        picks = _within(points[front.indices], front.values, left, bound, limit)
        if not len(picks):
            break
        rows = front.indices[picks]
        chosen.append(rows)
        left -= len(rows)
        centres, centre_norms = points[rows].T, norms[rows]
        for start in range(0, len(points), ROWS):
            part = slice(start, start + ROWS)
            closest = torch.addmm(centre_norms, points[part], centres, alpha=-2).amin(1)
            closest = closest.add_(norms[part]).clamp_min_(0)
            torch.minimum(nearest[part], closest, out=nearest[part])
        nearest[rows] = -1
    return torch.cat(chosen) if chosen else norms.new_zeros(0, dtype=torch.long), nearest


def _within(points: Tensor, nearest: Tensor, n: int, bound: float, limit: float) -> Tensor:
    """The plain loop on few rows, until the farthest of them may not be the farthest of all."""
    between = squared_distances(points, points).cpu().numpy()
    remaining = nearest.cpu().numpy().copy()
    picks: list[int] = []
    while len(picks) < n:
        row = int(remaining.argmax())
        farthest = remaining[row]
        if farthest < 0 or farthest < bound or (limit > 0 and farthest <= limit):
            break
        picks.append(row)
        remaining.clip(max=between[row], out=remaining)
        remaining[row] = -1
    return torch.tensor(picks, dtype=torch.long, device=points.device)


def k_center_greedy(
    vectors: Tensor, n: int, rng: Rng, projection: int = 128, starts: int = 10
) -> Tensor:
    """Choose n rows that cover the others (approximate greedy k-center of PatchCore's code).

    Distances are taken after a random linear projection; the first score of a row is its mean
    distance to a few random rows; then the row farthest from all chosen ones is taken, again and
    again.

    Args:
        vectors: (N, d).
        n: rows to choose.
        rng: source of randomness.
        projection: dimensions of the projection; not applied to shorter vectors.
        starts: number of random rows.

    Returns:
        (n,) indices.
    """
    if n >= len(vectors):
        return torch.arange(len(vectors))
    matrix = _projection(vectors.shape[1], projection, rng)
    points = vectors if matrix is None else vectors @ matrix.to(vectors)
    return _greedy(points, n, rng, starts)


def _greedy(points: Tensor, n: int, rng: Rng, starts: int = 10) -> Tensor:
    first = rng.uniform((len(points),)).argsort()[:starts].to(points.device)
    mean = squared_distances(points, points[first]).sqrt().mean(1)
    return farthest_first(points, mean.square(), n)[0]


def _projection(d: int, projection: int, rng: Rng) -> Tensor | None:
    if d <= projection:
        return None
    return (2 * rng.uniform((d, projection)) - 1) * d**-0.5


class Coreset:
    """A coreset of vectors that come in parts, in bounded memory.

    All vectors are held until there are ``capacity`` of them, and greedy k-center chooses among
    them at the end. When there are more, they are thinned to the ``largest`` by the same choice;
    from then on a vector is held only if it is farther from all held ones than the radius of that
    choice, and twice ``largest`` are thinned again, with a larger radius. So each vector ever seen
    is within the sum of the radii of one that is held (the doubling algorithm of Charikar et al.
    1997, with greedy choices in the place of its merges).

    Args:
        largest: vectors in the coreset at most.
        capacity: vectors that may be held, twice ``largest`` at least.
        rng: source of randomness.
        projection: as of ``k_center_greedy``.

    Attributes:
        seen: number of vectors that came.
        radius: in the space of the projection, that everything seen is within, as far as known
            before the last choice; 0 while all are held.
    """

    def __init__(self, largest: int, capacity: int, rng: Rng, projection: int = 128) -> None:
        self.largest, self.capacity = largest, max(capacity, 2 * largest)
        self.rng, self.projection = rng, projection
        self.seen, self.radius = 0, 0.0
        self._step = 0.0  # the radius of the last choice
        self._kept: list[Tensor] = []
        self._points: list[Tensor] = []
        self._matrix: Tensor | None = None

    def add(self, vectors: Tensor) -> None:
        """Take in (n, d) vectors."""
        if not self.seen:
            self._matrix = _projection(vectors.shape[1], self.projection, self.rng)
        self.seen += len(vectors)
        points = vectors if self._matrix is None else vectors @ self._matrix.to(vectors)
        if self._step:
            held = self._joined()
            # A nearest one that coarse products miss makes a vector look farther: it is held then.
            nearest = Neighbours(held)(points)[:, 0]
            far = nearest > self._step**2
            vectors, points, nearest = vectors[far], points[far], nearest[far]
            rows, _ = farthest_first(points, nearest, len(points), self._step)
            vectors, points = vectors[rows], points[rows]
        self._kept.append(vectors)
        # Without a projection the two are one, and nothing is held twice.
        self._points.append(points)
        if sum(map(len, self._kept)) > self.capacity:
            points = torch.cat(self._points)
            # No start values: what is left of the distances is the radius.
            start = points.new_full((len(points),), float("inf"))
            rows, nearest = farthest_first(points, start, self.largest)
            self._keep(rows, points)
            self._step = max(self._step, float(nearest.max().clamp_min(0).sqrt()))
            self.radius += self._step
            self.capacity = 2 * self.largest

    def finish(self, n: int) -> Tensor:
        """The coreset: n vectors, or all that are held if these are fewer."""
        n = min(n, self.largest)
        if sum(map(len, self._kept)) > n:
            points = torch.cat(self._points)
            self._keep(_greedy(points, n, self.rng), points)
        return torch.cat(self._kept)

    def _joined(self) -> Tensor:
        if len(self._points) > 1:
            self._points = [torch.cat(self._points)]
            if self._matrix is None:
                self._kept = list(self._points)
        return self._points[0]

    def _keep(self, rows: Tensor, points: Tensor) -> None:
        """Keep these rows of what is held, in the order in which they came."""
        rows = rows.sort().values
        # Part by part, so that the vectors, the larger of the two, are never held twice.
        ends = torch.tensor([len(part) for part in self._kept]).cumsum(0)
        bounds = [0, *torch.searchsorted(rows.cpu(), ends).tolist()]
        for i, end in enumerate(ends.tolist()):
            local = rows[bounds[i] : bounds[i + 1]] - (end - len(self._kept[i]))
            self._kept[i] = self._kept[i][local]
        self._points = self._kept if self._matrix is None else [points[rows]]
