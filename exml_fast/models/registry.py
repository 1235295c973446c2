"""Creates networks by name.

An expert's card holds the name and the arguments of its network and may come from a stranger. Therefore :func:`create`
runs only the constructors in ``OWN`` and those of torchvision and timm. :func:`register` adds a user's to ``OWN``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.models.alexnet_cifar import AlexNetCifar, AlexNetCifarHalf
from exml_fast.models.cifar_resnet import CifarResNet
from exml_fast.models.lenet import CaffeLeNet, LeNet5, LeNet5Half
from exml_fast.models.slimmed import resize_layers
from exml_fast.models.vgg_cifar import Vgg11BnCifar
from exml_fast.models.wide_cifar_resnet import ResNet18Cifar, ResNet34Cifar, SlimResNet18
from exml_fast.validation import nearest

__all__ = ["construct", "create", "final_linear", "is_known", "register", "require_plain", "takes"]

OWN: dict[str, Callable[..., nn.Module]] = {
    "alexnet_cifar": AlexNetCifar,
    "alexnet_cifar_half": AlexNetCifarHalf,
    "caffe_lenet": CaffeLeNet,
    "cifar_resnet": CifarResNet,
    "lenet5": LeNet5,
    "lenet5_half": LeNet5Half,
    "resnet18_cifar": ResNet18Cifar,
    "resnet34_cifar": ResNet34Cifar,
    "slim_resnet18": SlimResNet18,
    "vgg11_bn_cifar": Vgg11BnCifar,
}


def slimmed(architecture: str, arguments: Mapping[str, Any], widths: Mapping[str, Any]) -> nn.Module:
    """A network of another architecture whose layers have these channels, as pruning leaves it."""
    return resize_layers(create(architecture, **arguments), widths)


OWN["slimmed"] = slimmed
BUILT_IN = frozenset(OWN)
# Arguments that make torchvision or timm read files, download files, or return something other than a classifier.
FORBIDDEN = re.compile(r"^(weights|pretrained|checkpoint|cache|feature|progress|quantize|scriptable|exportable|_)")


def register(name: str, factory: Callable[..., nn.Module], *, replace: bool = False) -> None:
    """Add a network of your own, so that :func:`create` and experts' cards can name it.

    Register the network in every process that loads its experts, before it does: a card names an architecture, and
    nothing is ever imported because a card names it.

    Args:
        name: letters, digits, "_", ".", ":" and "-". It must not be taken.
        factory: the class of the network or a function, called as ``factory(**arguments)`` with JSON values. It returns
            the network with random weights. Arguments named ``num_classes`` and ``in_channels`` are filled in where a
            network is made for a stream or a data set. The arguments may come from a stranger's card.
        replace: replace a factory that was registered before (in a notebook), but none of this package.

    Raises:
        ValueError: for a name that is taken or has other characters, or a factory that cannot be called.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.:-]+", name):
        raise ValueError(f'name must consist of letters, digits, "_", ".", ":" and "-", got {name!r}')
    if not callable(factory):
        raise ValueError(f"factory must be a class or a function that returns a network, got {factory!r}")
    if name in BUILT_IN or (name in OWN and not replace):
        raise ValueError(f"name {name!r} is taken by {getattr(OWN[name], '__name__', OWN[name])}; give another name")
    OWN[name] = factory


def is_known(architecture: str) -> bool:
    """True for a name in ``OWN``, and for names that :func:`create` looks up in torchvision or timm."""
    return architecture in OWN or architecture.startswith(("torchvision/", "timm/"))


def create(architecture: str, /, **arguments: Any) -> nn.Module:
    """Create a network with random weights.

    Args:
        architecture: a name in ``OWN`` ("lenet5", "cifar_resnet", …, and those of :func:`register`),
            "torchvision/<name>" for a classification model of torchvision, or "timm/<name>".
        arguments: keyword arguments of the network's constructor, as JSON values. Arguments that load weights or read
            files are rejected.

    Raises:
        ValueError: naming the architecture or the argument that is not accepted.
        ImportError: for a timm model if timm is missing.
    """
    if not isinstance(architecture, str):
        raise ValueError(f"architecture must be a string, got {architecture!r}")
    require_plain(architecture, arguments)
    if architecture in OWN:
        return construct(architecture, OWN[architecture], arguments)
    library, _, name = architecture.partition("/")
    if library == "torchvision":
        import torchvision

        classifiers = torchvision.models.list_models(module=torchvision.models)
        if name not in classifiers:
            raise ValueError(
                f"unknown architecture {architecture!r}: torchvision has no classification model "
                f"{name!r}{nearest(name, classifiers)}"
            )
        return _build(architecture, lambda: torchvision.models.get_model(name, weights=None, **arguments))
    if library == "timm":
        try:
            import timm
        except ImportError as error:
            raise ImportError(f"{architecture!r} needs timm: pip install 'exml_fast[timm]'") from error
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or not timm.is_model(name):
            raise ValueError(
                f"unknown architecture {architecture!r}: timm has no model {name!r}{nearest(name, timm.list_models())}"
            )
        return _build(architecture, lambda: timm.create_model(name, pretrained=False, **arguments))
    raise ValueError(
        f"unknown architecture {architecture!r}{nearest(architecture, OWN)}; "
        f"expected one of {', '.join(OWN)}, torchvision/<name>, timm/<name>, or the name of a network of your own that "
        "you gave to exml_fast.models.register (on a command line: exml-fast --architecture MODULE:FACTORY COMMAND)"
    )


def require_plain(architecture: str, arguments: Mapping[str, Any]) -> None:
    """ValueError for an argument that does not shape the network, or is no JSON value."""
    for name, value in arguments.items():
        if FORBIDDEN.match(name) or not name.isidentifier():
            raise ValueError(f"argument {name!r} of {architecture!r} is not accepted: it does not shape the network")
        if not _is_plain(value):
            raise ValueError(f"argument {name!r} of {architecture!r} must be a plain JSON value, got {value!r}")


def construct(architecture: str, constructor: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """``constructor(**arguments)``; ValueError naming an argument that it does not take or rejects."""
    parameters = inspect.signature(constructor).parameters
    known, takes_any = list(parameters), any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in arguments:
        if name not in known and not takes_any:
            raise ValueError(
                f"argument {name!r} is unknown to {architecture!r}{nearest(name, known)}; "
                f"expected one of {', '.join(known)}"
            )
    return _build(architecture, lambda: constructor(**arguments))


def takes(architecture: str, argument: str) -> bool:
    """True if ``architecture`` is a name in ``OWN`` and its constructor names this argument."""
    return architecture in OWN and argument in inspect.signature(OWN[architecture]).parameters


def final_linear(model: nn.Module, example: Tensor | None = None) -> nn.Linear:
    """Find the final linear layer of a classifier, whose rows are the class templates of Nayak 2021.

    Args:
        model: a classifier. It is not changed.
        example: an input batch. The model runs on it once, in evaluation mode, and the last ``nn.Linear`` that runs is
            returned. Without an example it is what the model's ``get_classifier()`` returns (timm), or else the
            ``nn.Linear`` that was registered last.

    Raises:
        ValueError: if there is no linear layer.
    """
    found: list[nn.Linear] = []
    if example is None:
        declare: Any = getattr(model, "get_classifier", None)
        declared = declare() if callable(declare) else None
        if isinstance(declared, nn.Linear):
            return declared
        found = [m for m in model.modules() if isinstance(m, nn.Linear)]
    else:
        training = {m: m.training for m in model.modules()}
        hooks = [
            m.register_forward_hook(lambda module, _inputs, _output: found.append(module))
            for m in model.modules()
            if isinstance(m, nn.Linear)
        ]
        try:
            model.eval()
            with torch.no_grad():
                model(example)
        finally:
            for hook in hooks:
                hook.remove()
            for module, mode in training.items():
                module.training = mode
    if not found:
        raise ValueError(f"{type(model).__name__} executes no nn.Linear, so it has no final linear layer")
    return found[-1]


def _build(architecture: str, make: Any) -> nn.Module:
    try:
        model = make()
    except (TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError, LookupError, AssertionError) as error:
        raise ValueError(f"{architecture!r} does not accept these arguments: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"the factory of {architecture!r} must return a torch.nn.Module, got {type(model).__name__}")
    return model


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    return value is None or isinstance(value, bool | int | float | str)
