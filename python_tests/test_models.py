"""Networks: published sizes, creation by name, rejected names and arguments, the final linear layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from exml_fast.models import (
    AlexNetCifar,
    AlexNetCifarHalf,
    LeNet5,
    LeNet5Half,
    create,
    final_linear,
    is_known,
    register,
    takes,
)


@pytest.mark.parametrize(
    ("name", "arguments", "channels", "size"),
    [
        ("lenet5", {}, 1, 61_706),
        ("lenet5_half", {}, 1, 35_820),
        ("caffe_lenet", {}, 1, 656_080),
        ("alexnet_cifar", {}, 3, 1_657_642),
        ("alexnet_cifar_half", {}, 3, 722_906),
        ("slim_resnet18", {}, 3, 1_094_750),
        ("resnet18_cifar", {}, 3, 11_173_962),
        ("resnet34_cifar", {}, 3, 21_282_122),
        ("vgg11_bn_cifar", {}, 3, 9_231_114),
        ("cifar_resnet", {"depth": 20}, 3, 269_722),
        ("cifar_resnet", {"depth": 56}, 3, 853_018),
        ("alexnet_cifar_half", {"hidden": [256, 128]}, 3, 416_666),
    ],
)
def test_networks_have_the_published_sizes(name: str, arguments: dict[str, object], channels: int, size: int) -> None:
    model = create(name, **arguments)
    assert sum(p.numel() for p in model.parameters()) == size
    assert model.eval()(torch.zeros(2, channels, 32, 32)).shape == (2, 10)


def test_lenets_are_tanh_and_alexnets_have_five_convolutions_with_batch_norm() -> None:
    assert any(isinstance(m, nn.Tanh) for m in LeNet5Half().modules())
    for model in (AlexNetCifar(), AlexNetCifarHalf(num_classes=3, in_channels=1)):
        for kind in (nn.Conv2d, nn.BatchNorm2d):
            assert sum(isinstance(m, kind) for m in model.modules()) == 5
        assert sum(isinstance(m, nn.MaxPool2d) for m in model.modules()) == 3
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


def test_takes_an_argument() -> None:
    assert takes("alexnet_cifar", "in_channels") and not takes("cifar_resnet", "in_channels")
    assert not takes("torchvision/resnet18", "num_classes")


def test_lenet5_options() -> None:
    model = LeNet5(num_classes=3, in_channels=3, batch_norm=True, activation="relu")
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 2
    with pytest.raises(ValueError, match=r"activation must be one of tanh, relu, got 'gelu'"):
        LeNet5(activation="gelu")


def test_create_torchvision_and_timm() -> None:
    model = create("torchvision/squeezenet1_1", num_classes=3)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    pytest.importorskip("timm")
    model = create("timm/resnet10t", num_classes=4, in_chans=1)
    assert final_linear(model).out_features == 4
    assert create("timm/resnet10t.c3_in1k", num_classes=2), "timm appends the tag of the weights to the name"


@pytest.mark.parametrize(
    "name",
    ["lenet", "", "os.system", "torchvision/fasterrcnn_resnet50_fpn", "torchvision/os", "timm/hf-hub:a/b",
     "timm/local-dir:/tmp", "torch.hub/x", "LeNet5", "timm/", "torchvision/"],
)  # fmt: skip
def test_unknown_architectures_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown architecture"):
        create(name)


@pytest.mark.parametrize(
    ("name", "suggested"),
    [("resnet18_cifa", "resnet18_cifar"), ("LeNet5", "lenet5"), ("torchvision/resnet18x", "resnet18"),
     ("timm/resnet10tt", "resnet10t")],
)  # fmt: skip
def test_an_unknown_architecture_suggests_the_nearest(name: str, suggested: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(ValueError, match=f"did you mean '{suggested}'"):
        create(name)


def test_an_unknown_argument_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'num_class' is unknown to 'lenet5' \(did you mean 'num_classes'"):
        create("lenet5", num_class=3)


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("lenet5", {"activation": nn.Tanh}),
        ("lenet5", {"num_classes": {1, 2}}),
        ("lenet5", {"__class__": 1}),
        ("lenet5", {"a b": 1}),
        ("lenet5", {"self": 1}),
        ("lenet5", {"architecture": "timm/resnet18"}),
        ("lenet5", {"num_classes": "ten"}),
        ("torchvision/resnet18", {"weights": "DEFAULT"}),
        ("torchvision/resnet18", {"pretrained": True}),
        ("torchvision/resnet18", {"block": "x"}),
        ("torchvision/resnet18", {"norm_layer": "os.system"}),
        ("timm/resnet18", {"checkpoint_path": "/etc/passwd"}),
        ("timm/resnet18", {"pretrained_cfg": {"url": "http://example.org"}}),
        ("timm/resnet18", {"cache_dir": "/tmp"}),
        ("timm/resnet18", {"features_only": True}),
    ],
)
def test_hostile_arguments_are_refused(architecture: str, arguments: dict[str, object]) -> None:
    if architecture.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(ValueError, match=next(iter(arguments)) + "|does not accept"):
        create(architecture, **arguments)


class Twisted(nn.Module):
    """Registers its head before its body, but runs the head last."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(3, 2), nn.Linear(4, 3)
        self.drop = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.body(x)))


def test_final_linear_with_and_without_example() -> None:
    model = Twisted().train()
    model.drop.eval()
    assert final_linear(model, torch.zeros(1, 4)) is model.head
    assert model.training and model.body.training and not model.drop.training
    assert not model.head._forward_hooks
    lenet = LeNet5()
    assert final_linear(lenet).out_features == 10
    assert final_linear(lenet, torch.zeros(1, 1, 32, 32)) is final_linear(lenet)
    with pytest.raises(ValueError, match=r"no nn\.Linear"):
        final_linear(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match=r"no nn\.Linear"):
        final_linear(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 4, 4))


def test_a_registered_network_is_created_by_its_name(tiny: type[nn.Module]) -> None:
    model = create("tiny", num_classes=3, width=5)
    assert isinstance(model, tiny) and model.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    assert takes("tiny", "width") and not takes("tiny", "depth") and is_known("tiny") and not is_known("tin")
    with pytest.raises(ValueError, match=r"'widht' is unknown to 'tiny' \(did you mean 'width'"):
        create("tiny", widht=5)
    with pytest.raises(ValueError, match=r"unknown architecture 'tinny' \(did you mean 'tiny'.*models\.register"):
        create("tinny")
    with pytest.raises(ValueError, match="weights"):
        create("tiny", weights="file")
    with pytest.raises(ValueError, match="must be a plain JSON value"):
        create("tiny", width=nn.ReLU)
    register("tiny", lambda **arguments: tiny(**{"width": 2, **arguments}), replace=True)
    assert final_linear(create("tiny", num_classes=3)).in_features == 8
    register("tiny", lambda: 3, replace=True)
    with pytest.raises(ValueError, match=r"the factory of 'tiny' must return a torch\.nn\.Module, got int"):
        create("tiny")


@pytest.mark.parametrize(
    ("name", "factory", "message"),
    [
        ("tiny", LeNet5, "name 'tiny' is taken by Tiny"),
        ("lenet5", LeNet5, "name 'lenet5' is taken by LeNet5"),
        ("mine/net", LeNet5, 'name must consist of letters, digits, "_", ".", ":" and "-", got \'mine/net\''),
        ("", LeNet5, "name must consist of"),
        ("mine", "package.module:factory", "factory must be a class or a function"),
    ],
)
def test_names_that_cannot_be_registered(tiny: type[nn.Module], name: str, factory: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register(name, factory, replace=name != "tiny")
