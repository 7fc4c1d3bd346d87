import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from normscan.errors import ArgumentError
from normscan.methods.adversarial.layers import octa_layers
from normscan.methods.adversarial.uncertainty import seebock_epistemic
from normscan.methods.base import Batch, Method
from normscan.networks.boundaries import ShapeModel, disagreement, first_rows, ordered_rows
from normscan.phantom import PhantomConfig
from normscan.phantom.retina import DEPTH, Retina, make_retina
from normscan.rng import Rng
from normscan.scores.rays import DIRECTIONS, beyond, majority_of_rays

pytestmark = pytest.mark.usefixtures("seed")


def cast(binary: np.ndarray) -> np.ndarray:
    """Majority ray casting of a binary image, pixel by pixel."""
    height, width = binary.shape
    found = np.zeros_like(binary)
    for y in range(height):
        for x in range(width):
            hits = 0
            for dy, dx in DIRECTIONS:
                j, i = y + dy, x + dx
                while 0 <= j < height and 0 <= i < width:
                    if binary[j, i]:
                        hits += 1
                        break
                    j, i = j + dy, i + dx
            found[y, x] = hits > len(DIRECTIONS) / 2
    return found


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9])
def test_the_majority_of_rays_is_that_of_every_binary_image(threshold, times):
    x = torch.rand(1, 1, 9, 11)
    inside = torch.ones_like(x, dtype=torch.bool)
    inside[..., :2, :] = inside[..., 4, 4] = False
    expected = (x > threshold)[0, 0].numpy()
    for _ in range(times):
        expected = cast(expected & inside[0, 0].numpy()) & inside[0, 0].numpy()
    found = majority_of_rays(x, inside, times) > threshold
    np.testing.assert_array_equal(found[0, 0].numpy(), expected)


def test_rays_see_beyond_the_pixel():
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    assert beyond(x, 0, 1)[0, 0].tolist() == [[3, 3, 3, 0], [7, 7, 7, 0], [11, 11, 11, 0]]
    assert beyond(x, -1, -1)[0, 0].tolist() == [[0, 0, 0, 0], [0, 0, 1, 2], [0, 4, 5, 6]]
    assert beyond(x, 1, -1)[0, 0, 0].tolist() == [0, 4, 8, 9]


def test_lines_vanish_and_rings_are_filled():
    x = torch.zeros(1, 1, 20, 20)
    x[..., 3, :] = 1
    ring = torch.zeros_like(x)
    ring[..., 8:17, 8:17] = 1
    ring[..., 10:15, 10:15] = 0
    everywhere = torch.ones_like(x, dtype=torch.bool)
    assert majority_of_rays(x, everywhere).sum() == 0
    assert (majority_of_rays(ring, everywhere)[..., 9:16, 9:16] == 1).all()


def test_boundaries_of_a_label_map_are_those_of_the_simulation():
    retina = make_retina(PhantomConfig(anatomy="retina"), 2)
    rows, there = first_rows(torch.from_numpy(retina.layers)[None].long(), 8)
    expected = np.ceil(retina.boundaries / DEPTH * 128 - 0.5)
    assert there.all()
    # A layer thinner than a pixel has none, so that boundaries may coincide.
    np.testing.assert_array_equal(rows[0].numpy(), expected)


def test_a_boundary_that_is_not_there_is_told():
    labels = torch.tensor([[0, 0], [1, 0], [1, 0]])[None]
    rows, there = first_rows(labels, 2)
    assert rows[0, 0].tolist() == [1, 0] and there[0].tolist() == [[True, False], [False, False]]


def test_expected_rows_are_ordered():
    chances = torch.rand(2, 4, 16, 5).softmax(2)
    chances[:, 2] = torch.eye(16)[1][:, None]
    rows = ordered_rows(chances)
    assert (rows.diff(dim=1) >= 0).all()
    expected = (chances[:, 0] * torch.arange(16.0)[:, None]).sum(1)
    torch.testing.assert_close(rows[:, 0], expected)


def test_the_disagreement_of_a_column_is_the_expected_distance():
    chances = torch.rand(2, 3, 12, 4).softmax(2)
    rows = torch.randint(0, 12, (2, 3, 4)).float()
    distance = (torch.arange(12.0)[:, None] - rows[:, :, None]).abs()
    expected = (chances * distance).sum((1, 2))
    torch.testing.assert_close(disagreement(chances, rows).sum((1, 2)), expected)


def test_the_shape_model_is_a_pca():
    rows = (torch.randn(20, 3, 6) + torch.arange(3.0)[:, None]).cumsum(1)
    model = ShapeModel(18, 4)
    model.fit(rows)
    flat = (rows - rows[:, -1:].mean(2, keepdim=True)).flatten(1).double().numpy()
    pca = PCA(4).fit(flat)
    expected = pca.inverse_transform(pca.transform(flat[:5])).reshape(5, 3, 6)
    found = model(rows[:5]) - rows[:5, -1:].mean(2, keepdim=True)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    # A shift of the whole retina changes nothing but the place.
    torch.testing.assert_close(model(rows[:5] + 7), model(rows[:5]) + 7)


def test_more_labels_than_classes_are_refused():
    image = torch.rand(2, 1, 32, 32)
    batch = Batch(image, torch.ones_like(image).bool(), Rng(0), torch.zeros(2))
    batch.structures = torch.full((2, 1, 32, 32), 5)
    for method in (
        seebock_epistemic(size=32, width=4, depth=2, classes=3),
        octa_layers(size=32, width=4, depth=2, boundaries=2),
    ):
        with pytest.raises(ArgumentError, match="label 5"):
            method.loss(batch, "", "network")


def test_uncertainty_is_the_variance_of_probabilities():
    """A network of dropout alone keeps one of two logits or not: a variance in closed form."""
    method = seebock_epistemic(size=32, width=4, depth=2, classes=2, passes=400, casts=0)
    method.segment.network = torch.nn.Dropout(0.25)
    image = torch.ones(1, 2, 8, 8)
    image[:, 1] = 0
    method.eval()
    batch = Batch(image, torch.ones(1, 1, 8, 8).bool(), Rng([0]), torch.zeros(1))
    found = method.maps(batch).map.mean()
    kept, dropped = torch.tensor([1 / 0.75, 0.0]).softmax(0)[0], 0.5
    torch.testing.assert_close(found, 0.75 * 0.25 * (kept - dropped) ** 2, rtol=0.1, atol=0)


def retinas(numbers: range, kind: str | None = None) -> tuple[Batch, list[Retina]]:
    """Simulated retinas of 64 pixels, with the labels of their layers and what was simulated."""
    config = PhantomConfig(anatomy="retina", size=(64, 64))
    made = [make_retina(config, number, kind) for number in numbers]
    image = torch.stack([torch.from_numpy(r.image)[None].float() for r in made])
    batch = Batch(image, torch.ones_like(image).bool(), Rng(0), torch.zeros(len(made)))
    batch.structures = torch.stack([torch.from_numpy(r.layers)[None].float() for r in made])
    return batch, made


def trained(method: Method) -> Method:
    """A hundred updates on 12 healthy simulated retinas, 4 in each."""
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    parts = [retinas(range(first, first + 4))[0] for first in (0, 4, 8)]
    for step in range(100):
        optimizer.zero_grad()
        sum(method.loss(parts[step % 3], "", "network").values()).backward()
        optimizer.step()
    return method.eval()


def told_apart(method: Method, kind: str) -> float:
    """AUROC of the map for the pixels of simulated lesions."""
    batch, made = retinas(range(40, 44), kind)
    masks = np.stack([r.mask for r in made])
    return roc_auc_score(masks.ravel(), method.maps(batch).map.numpy().ravel())


def test_layers_of_unseen_retinas_lie_where_they_were_simulated():
    method = trained(octa_layers(size=64, width=6, depth=3, boundaries=8, components=4))
    batch, made = retinas(range(30, 34))
    true = np.stack([r.boundaries for r in made]) / DEPTH * 64 - 0.5
    found = ordered_rows(method.chances(batch.image)).detach().numpy()
    flat = np.abs(true.mean((0, 2), keepdims=True) - true).mean()
    assert np.abs(found - true).mean() < min(1.0, 0.6 * flat)
    method.fit([retinas(range(12))[0]])
    assert told_apart(method, "fluid") > 0.75


def test_labels_of_unseen_retinas_are_those_that_were_simulated():
    method = trained(seebock_epistemic(size=64, width=6, depth=3, classes=9, passes=8))
    batch, made = retinas(range(30, 34))
    found = method.segment(batch.image).argmax(1).numpy()
    true = np.stack([r.layers for r in made])
    most = np.bincount(true.ravel()).max() / true.size
    assert (found == true).mean() > max(0.85, most)
    assert told_apart(method, "fluid") > 0.75
