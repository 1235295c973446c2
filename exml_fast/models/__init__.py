"""The papers' architectures under their usual names, and any torchvision or timm classifier."""

from exml_fast.models.cifar_resnet import CifarResNet
from exml_fast.models.lenet import LeNet5
from exml_fast.models.registry import OWN, create, final_linear

__all__ = ["OWN", "CifarResNet", "LeNet5", "create", "final_linear"]
