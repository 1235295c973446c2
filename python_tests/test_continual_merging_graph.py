from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from merging_networks import NETWORKS, expert, images, largest_difference, permuted
from torch import Tensor, nn

from exml_fast.continual.baselines import CannotMerge
from exml_fast.continual.merging.graph import FeatureGraph

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_permuted_network_is_the_same_function(name: str) -> None:
    given = expert(name)
    moved = permuted(given)
    assert given.fingerprint() != moved.fingerprint()
    assert largest_difference(moved, given, images(given)) < 1e-5


def test_groups_of_lenet() -> None:
    given = expert("lenet")
    graph = FeatureGraph.of(given.model, images(given, 1))
    assert [group.size for group in graph.groups] == [6, 16, 120, 84]
    assert graph.head == ("classifier.4.weight", "classifier.4.bias")
    flattened = graph.groups[1].places["classifier.0.weight", 1]
    assert flattened.tolist() == torch.arange(16 * 25).view(16, 25).tolist(), "a filter has 25 columns"
    assert set(graph.groups[1].readers) == {"classifier.0"}


def test_residuals_share_a_group_and_padding_adds_one() -> None:
    given = expert("resnet20")
    graph = FeatureGraph.of(given.model, images(given, 1))
    by_axis = {axis: group for group in graph.groups for axis in group.places}
    stem = by_axis["conv1.weight", 0]
    assert stem is by_axis["layer1.2.conv2.weight", 0]
    # Option A puts the 16 channels of the first stage in the middle of the 32 of the second.
    assert stem.places["layer2.0.conv2.weight", 0].flatten().tolist() == list(range(8, 24))
    assert stem.size == 16 and stem.places["linear.weight", 1].shape == (16, 1)
    assert sorted(group.size for group in graph.groups) == [16] * 5 + [32] * 4 + [64] * 3


class Net(nn.Module):
    """A convolution, an operation that is given, and a head."""

    def __init__(self, operation: object, channels: int = 4) -> None:
        super().__init__()
        self.conv, self.other, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(channels, 2)
        self.gain = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.layer = operation if isinstance(operation, nn.Module) else nn.Identity()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.layer(self.conv(x)), self.other(x)
        if callable(self.operation) and not isinstance(self.operation, nn.Module):
            y = self.operation(self, y, z)
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize(
    ("operation", "channels", "sizes"),
    [
        (lambda net, y, z: y + z, 4, [4]),
        (lambda net, y, z: torch.cat([y, z], 1), 8, [4, 4]),
        (lambda net, y, z: y * z.mean((2, 3), keepdim=True).sigmoid(), 4, [4]),
        (lambda net, y, z: F.pad(y[:, 1:], (0, 0, 0, 0, 1, 0)) + z, 4, [1, 1, 3]),
        (nn.Conv2d(4, 4, 3, groups=4), 4, [4, 4]),
    ],
)
def test_operations(operation: object, channels: int, sizes: list[int]) -> None:
    groups = FeatureGraph.of(Net(operation, channels).eval(), EXAMPLE).groups
    assert sorted(group.size for group in groups) == sizes


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (nn.GroupNorm(2, 4), "layer is a GroupNorm, whose features cannot be permuted"),
        (nn.Conv2d(4, 4, 3, groups=2), "layer is a Conv2d of a kind that cannot be merged"),
        (nn.PReLU(4), "layer is a PReLU of a kind"),
        (lambda net, y, z: y.flip(1) + z, "a permuted copy gives other outputs"),
        (lambda net, y, z: y * net.gain, "uses the tensor gain outside of a layer"),
        (lambda net, y, z: y.permute(0, 2, 3, 1), "the operation permute .* cannot be merged"),
        (lambda net, y, z: y if y.sum() > 0 else z, "torch.fx cannot trace the network Net"),
    ],
)
def test_what_cannot_be_merged_is_named(operation: object, message: str) -> None:
    with pytest.raises(CannotMerge, match=message):
        FeatureGraph.of(Net(operation).eval(), EXAMPLE)


def test_a_network_of_two_outputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(CannotMerge, match="must return one tensor, got tuple"):
        FeatureGraph.of(Two(), EXAMPLE)
