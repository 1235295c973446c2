"""A network as a graph of torch.export, and its fastest form."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch._inductor
from torch import Tensor, nn

__all__ = ["compiled", "exported", "quiet"]


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """A function of images that runs ``model`` compiled ahead of time by AOTInductor, without gradients.

    The first call with each number of images compiles, with the weights of that moment; it takes seconds and needs a
    C++ compiler. ``model`` is put into evaluation mode.

    Raises:
        ValueError: at that call, for a network that torch.export refuses.
    """
    model.eval()  # of an exported graph this returns None
    programs = dict[torch.Size, Callable[[Tensor], Tensor]]()

    def run(images: Tensor) -> Tensor:
        if images.shape not in programs:
            programs[images.shape] = _program(model, images)
        return programs[images.shape](images)

    return run


def _program(model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """The compiled network for images of one shape."""
    with quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        # Unlike torch.compile, a program checks no guards at each call, which a single small image would notice.
        file = torch._inductor.aoti_compile_and_package(
            exported(model, images), package_path=f"{folder}/network.pt2", inductor_configs={"freezing": True}
        )
        program: Callable[[Tensor], Tensor] = torch._inductor.aoti_load_package(file)
    return program


def exported(model: nn.Module, images: Tensor, *, any_number: bool = False) -> torch.export.ExportedProgram:
    """The graph of a network in evaluation mode, for as many images as there are, or for any number.

    ValueError naming the network if torch.export refuses it.
    """
    sizes = ({0: torch.export.Dim("images", max=2**20)},) if any_number else None
    try:
        with quiet():
            return torch.export.export(model, (images,), dynamic_shapes=sizes, strict=True)
    except Exception as error:  # torch.export has no common class of errors
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"{type(model).__name__} cannot be exported by torch.export: {reason[:200]}. Its forward must take images "
            "of any number alone, and its path must not depend on the values of tensors: use torch.where or torch.cond "
            "in place of if, and x.shape[0] in place of a fixed number of images"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of torch and torchao about each other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
