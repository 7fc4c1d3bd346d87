import pytest
import torch
from torch.nn.utils.parametrize import is_parametrized

from normscan.methods.adversarial.next_slices import madgan
from normscan.methods.base import Batch
from normscan.networks.predicting import AttentiveCritic, SkipTranslator
from normscan.rng import Rng

pytestmark = pytest.mark.usefixtures("seed")


def volume(n: int = 2, channels: int = 2, size: int = 16) -> Batch:
    """Slices whose values are their own numbers, in tenths, with neighbours."""
    own = torch.arange(3, 3 + n)
    around = own[:, None] + torch.arange(-3, 4)
    context = around[:, None, :, None, None].expand(-1, channels, -1, size, size) / 10
    image = context[:, :, 3]
    inside = torch.ones(n, 1, size, size, dtype=torch.bool)
    return Batch(image, inside, Rng(list(range(n))), torch.zeros(n), context=context)


def test_three_slices_tell_the_next_three():
    seen, after = madgan(size=16, width=4, channels=2).seen_and_next(volume())
    numbers = lambda x: ((x[0, ::2, 0, 0] + 1) * 5).tolist()  # noqa: E731
    assert numbers(seen) == pytest.approx([0, 1, 2], abs=1e-5)
    assert numbers(after) == pytest.approx([3, 4, 5], abs=1e-5)
    torch.testing.assert_close(seen[:, ::2], seen[:, 1::2])  # both channels of a slice together


def test_the_map_is_of_the_slice_itself_and_the_score_of_three():
    method, some = madgan(size=16, width=4, channels=2).eval(), volume()
    seen, after = method.seen_and_next(some)
    with torch.no_grad():
        told = method.network(seen)
    found = method.maps(some)
    error = ((told - after) / 2).square()
    torch.testing.assert_close(found.map, error[:, :2].mean(1, keepdim=True))
    torch.testing.assert_close(found.score, 4 * error.flatten(1).mean(1))


def test_a_scan_that_is_no_volume_repeats_itself():
    method, some = madgan(size=16, width=4, channels=2).eval(), volume()
    some.context = None
    seen, after = method.seen_and_next(some)
    torch.testing.assert_close(seen, after)


def test_attention_sits_in_the_deepest_levels():
    net = SkipTranslator(3, 3, 64, 4, 2)
    assert [type(a).__name__ for a in net.attention] == [
        "SelfAttention",
        "SelfAttention",
        "Identity",
    ]
    assert net(torch.rand(2, 3, 64, 64)).shape == (2, 3, 64, 64)


def test_the_critic_has_layers_of_norm_one():
    critic = AttentiveCritic(3, 16, 4, 1).train()
    for _ in range(100):
        critic(torch.rand(1, 3, 16, 16))
    normed = [m for m in critic.modules() if is_parametrized(m)]
    assert len(normed) == 3
    for layer in normed:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(
            1, abs=1e-3
        )
