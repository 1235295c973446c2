"""The papers' architectures under their usual names, and any torchvision or timm classifier."""

from exml_fast.models.alexnet_cifar import AlexNetCifar, AlexNetCifarHalf
from exml_fast.models.cifar_resnet import CifarResNet
from exml_fast.models.lenet import LeNet5, LeNet5Half
from exml_fast.models.registry import OWN, create, final_linear, takes
from exml_fast.models.slim_resnet import SlimResNet18

__all__ = [
    "OWN",
    "AlexNetCifar",
    "AlexNetCifarHalf",
    "CifarResNet",
    "LeNet5",
    "LeNet5Half",
    "SlimResNet18",
    "create",
    "final_linear",
    "takes",
]
