import pytest
import torch
from tests.support.batches import batch
from torch import nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.adversarial.sparse import activation_map, sparse_gan
from normscan.methods.adversarial.structured import p_net, steps_down
from normscan.networks.memory import PlaceMemory
from normscan.networks.structured import TextureNet

pytestmark = pytest.mark.usefixtures("seed")


def small(**options):
    return p_net(size=32, width=4, classes=3, **options)


def test_rates_fall_to_a_tenth_at_their_passes():
    factor = steps_down(100, (20, 40, 80), 0.1)
    assert [factor(step, 100) for step in (0, 19, 20, 40, 80, 99)] == pytest.approx(
        [1, 1, 0.1, 0.01, 0.001, 0.001]
    )
    later = steps_down(100, (20, 40, 80), 1.0)
    assert [later(step, 100) for step in (0, 20, 40, 80)] == pytest.approx([1, 1, 0.1, 0.01])


def test_both_players_have_the_same_rate_behind_the_first_fall():
    judge, texture = small(epochs=800).phases()[1].players
    rates = [
        p.optimizer(p.parameters()).param_groups[0]["lr"] * p.schedule(25, 800)
        for p in (judge, texture)
    ]
    assert rates[0] == pytest.approx(rates[1])


def test_segmentation_is_cross_entropy_of_the_other_cohort_alone():
    method = small().eval()
    labels = torch.randint(0, 3, (4, 1, 32, 32))
    some = batch(part=torch.tensor([0, 1, 0, 1]), structures=labels)
    found = method.loss(some, "structure", "structure")["segmentation"]
    logits = method.structure(some.image)[[1, 3]].movedim(1, -1).log_softmax(-1)
    picked = logits.gather(-1, labels[[1, 3], 0][..., None])
    torch.testing.assert_close(found, -picked.mean())


def test_structures_that_have_no_class_are_refused():
    labels = torch.full((4, 1, 32, 32), 3)
    some = batch(part=torch.tensor([0, 1, 0, 1]), structures=labels)
    with pytest.raises(ArgumentError, match="number 3, but classes=3"):
        small().loss(some, "structure", "structure")


def test_a_judge_of_structures_tells_the_cohorts_apart():
    method = small()
    some = batch(part=torch.tensor([0, 1, 1, 0]))
    found = method.loss(some, "structure", "structure_judge")["real"]
    with torch.no_grad():
        said = method.structure_judge(method.structure(some.image).softmax(1)).flatten(1)
    real, fake = said[[1, 2]], said[[0, 3]]
    expected = (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_structures_of_the_restoration_teach_the_texture_alone():
    method = small()
    method.structure.requires_grad_(False)
    terms = method.loss(batch(), "texture", "texture")
    terms["structure"].backward()
    assert sum(p.grad.abs().sum() for p in method.texture.parameters() if p.grad is not None) > 0


def test_only_structures_have_skips():
    """Where the deepest features of the image are cut off, nothing of it is left."""
    net = TextureNet(1, 4).eval()
    structures = torch.rand(1, 1, 32, 32)
    nn.init.zeros_(net.image.stages[-1][-2].weight)
    nn.init.zeros_(net.image.stages[-1][-2].bias)
    with torch.no_grad():
        one, other = (net(torch.rand(1, 1, 32, 32), structures) for _ in range(2))
        third = net(torch.rand(1, 1, 32, 32), 1 - structures)
    torch.testing.assert_close(one, other)
    assert (one - third).abs().max() > 1e-5


def test_a_memory_of_places_reads_each_by_its_cosines():
    memory, z = PlaceMemory(6, 3, 0.0, cosine=True), torch.randn(2, 3, 2, 4)
    mixtures, attention = memory(z)
    assert mixtures.shape == z.shape and attention.shape == (16, 6)
    code = z[1, :, 1, 2]
    alike = torch.stack([F.cosine_similarity(code, slot, dim=0) for slot in memory.slots])
    torch.testing.assert_close(mixtures[1, :, 1, 2], alike.softmax(0) @ memory.slots)
    torch.testing.assert_close(attention[8 + 4 + 2], alike.softmax(0))


def test_an_activation_map_weighs_channels_by_their_distance():
    code, again = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    found = activation_map(code, again)
    expected = torch.zeros(4, 5)
    for c in range(3):
        expected += (code[1, c] - again[1, c]).abs().mean() * code[1, c]
    torch.testing.assert_close(found[1, 0], expected)
    assert activation_map(code, code).abs().max() == 0


def test_restorations_are_encoded_by_the_one_encoder_whose_code_is_sparse():
    method = sparse_gan(size=32, width=2).eval()
    assert not any(name.startswith("second") for name in method.state_dict())
    with torch.no_grad():
        code, restored, again = method.passed(batch().image)
        torch.testing.assert_close(again, method.encoder(restored))
    assert code.shape == (4, 16, 2, 2) and code.min() == 0
    terms = method.loss(batch(), "game", "generator")
    assert terms["sparsity"] > 0
