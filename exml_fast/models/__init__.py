"""Networks by name: the architectures of the papers, and the classifiers of torchvision and timm."""

from exml_fast.models.alexnet_cifar import AlexNetCifar, AlexNetCifarHalf
from exml_fast.models.cifar_resnet import CifarResNet
from exml_fast.models.lenet import CaffeLeNet, LeNet5, LeNet5Half
from exml_fast.models.registry import OWN, create, final_linear, is_known, register, takes
from exml_fast.models.slimmed import is_depthwise, resize_layers, widths_of
from exml_fast.models.vgg_cifar import Vgg11BnCifar
from exml_fast.models.weights import redraw
from exml_fast.models.wide_cifar_resnet import ResNet18Cifar, ResNet34Cifar, SlimResNet18

__all__ = [
    "OWN",
    "AlexNetCifar",
    "AlexNetCifarHalf",
    "CaffeLeNet",
    "CifarResNet",
    "LeNet5",
    "LeNet5Half",
    "ResNet18Cifar",
    "ResNet34Cifar",
    "SlimResNet18",
    "Vgg11BnCifar",
    "create",
    "final_linear",
    "is_depthwise",
    "is_known",
    "redraw",
    "resize_layers",
    "register",
    "takes",
    "widths_of",
]
