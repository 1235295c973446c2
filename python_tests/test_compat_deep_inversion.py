"""The replacements against the published formulas, in a script of the usual form."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from exml_fast.compat.deep_inversion import DeepInversionFeatureHook, get_image_prior_losses


class PlainHook:
    """The distance in plain PyTorch, with two passes over the input, in its own precision."""

    def __init__(self, module: nn.Module) -> None:
        self.hook = module.register_forward_hook(self._match)

    def _match(self, module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].transpose(0, 1).flatten(1)
        mean = x.mean(1)
        var = ((x - mean[:, None]) ** 2).mean(1)
        norm = torch.linalg.vector_norm
        self.r_feature = norm(module.running_var - var) + norm(module.running_mean - mean)

    def close(self) -> None:
        self.hook.remove()


def plain_prior(x: Tensor) -> tuple[Tensor, Tensor]:
    differences = [
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, :-1] - x[..., :-1, 1:],
        x[..., 1:, 1:] - x[..., :-1, :-1],
    ]
    l1 = torch.stack([d.abs().mean() for d in differences]).sum()
    l2 = torch.stack([torch.linalg.vector_norm(d) for d in differences]).sum()
    return l1, l2


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    with torch.no_grad():
        for _ in range(4):
            model(torch.randn(8, 3, 32, 32))
    return model.eval()


def script(model: nn.Module, hook: Any, prior: Any, steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """A typical script: hooks on all BatchNorm2d, jitter, Adam on the pixels. Returns losses and gradients by step."""
    random.seed(0)
    hooks = [hook(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    dtype = next(model.parameters()).dtype
    inputs = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    targets = torch.tensor([1, 2, 3, 4])
    optimizer = torch.optim.Adam([inputs], lr=0.1)
    losses, gradients = [], []
    for _ in range(steps):
        shifts = random.randint(-2, 2), random.randint(-2, 2)
        inputs_jit = torch.roll(inputs, shifts, dims=(2, 3))
        optimizer.zero_grad()
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs_jit), targets)
        loss_var_l1, loss_var_l2 = prior(inputs_jit)
        scales = [10.0] + [1.0] * (len(hooks) - 1)
        loss_features = sum(h.r_feature * scale for h, scale in zip(hooks, scales, strict=True))
        loss = loss + 0.1 * loss_var_l1 + 1e-3 * loss_var_l2 + 0.05 * loss_features
        loss.backward()
        losses.append(loss.detach())
        gradients.append(inputs.grad.clone())  # type: ignore[union-attr]  # backward has run
        optimizer.step()
    for h in hooks:
        h.close()
    return losses, gradients


def test_a_script_gives_the_same_losses_and_gradients(network: nn.Module) -> None:
    """Uses float64, because three steps of Adam would amplify the rounding of float32."""
    model = network.double()
    losses, gradients = script(model, DeepInversionFeatureHook, get_image_prior_losses, 3)
    expected_losses, expected_gradients = script(model, PlainHook, plain_prior, 3)
    network.float()
    assert torch.allclose(torch.stack(losses), torch.stack(expected_losses), rtol=1e-9)
    scale = expected_gradients[0].abs().max()
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert (gradient - expected).abs().max() < 1e-6 * scale
    assert not any(m._forward_hooks for m in model.modules())


def test_a_script_gives_similar_gradients_in_float32(network: nn.Module) -> None:
    losses, gradients = script(network, DeepInversionFeatureHook, get_image_prior_losses, 1)
    expected_losses, expected_gradients = script(network, PlainHook, plain_prior, 1)
    assert torch.allclose(losses[0], expected_losses[0], rtol=1e-5)
    error = torch.linalg.vector_norm(gradients[0] - expected_gradients[0])
    assert error < 2e-2 * torch.linalg.vector_norm(expected_gradients[0])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_hook_of_batch_norm_2d(memory_format: torch.memory_format, training: bool) -> None:
    layer = nn.BatchNorm2d(3).double().train(training)
    hook, plain = DeepInversionFeatureHook(layer), PlainHook(layer)
    for _ in range(2):
        x = (torch.randn(4, 3, 5, 6).double() * 2 + 1).to(memory_format=memory_format).requires_grad_()
        layer(x)
        assert torch.allclose(hook.r_feature, plain.r_feature)
        (ours,) = torch.autograd.grad(hook.r_feature, x)
        (expected,) = torch.autograd.grad(plain.r_feature, x)
        assert torch.allclose(ours, expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(3), (8, 3)),
        (nn.BatchNorm1d(3), (8, 3, 5)),
        (nn.BatchNorm3d(3), (4, 3, 2, 3, 4)),
        (nn.SyncBatchNorm(3), (4, 3, 5, 6)),
        (nn.BatchNorm2d(3, affine=False), (4, 3, 5, 6)),
    ],
)
def test_hook_of_other_layers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    hook, plain = DeepInversionFeatureHook(layer.eval()), PlainHook(layer)
    layer(torch.randn(shape) + 1)
    assert torch.allclose(hook.r_feature, plain.r_feature)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    x = torch.randn(4, 3, 8, 8).to(dtype)
    layer = nn.BatchNorm2d(3).to(dtype).eval()
    hook = DeepInversionFeatureHook(layer)
    layer(input=x.requires_grad_())
    mean, var = x.float().mean((0, 2, 3)), x.float().var((0, 2, 3), correction=0)
    expected = torch.linalg.vector_norm(1 - var) + torch.linalg.vector_norm(mean)
    assert torch.allclose(hook.r_feature, expected, rtol=1e-4)
    hook.r_feature.backward()
    assert x.grad is not None and x.grad.dtype == dtype
    for ours, plain in zip(get_image_prior_losses(x), plain_prior(x.float()), strict=True):
        assert torch.allclose(ours, plain, rtol=1e-4)


def test_close_leaves_the_last_value() -> None:
    layer = nn.BatchNorm2d(3).eval()
    hook = DeepInversionFeatureHook(layer)
    layer(torch.randn(4, 3, 5, 6))
    value = hook.r_feature
    hook.close()
    layer(torch.randn(4, 3, 5, 6))
    assert hook.r_feature is value and not layer._forward_hooks


@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (4, 1, 7, 5)])
def test_prior(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for ours, plain in zip(get_image_prior_losses(x), plain_prior(x), strict=True):
        assert torch.allclose(ours, plain)
        assert torch.allclose(*(torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in (ours, plain)))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"BatchNorm2d has no running_mean.*track_running_stats"):
        DeepInversionFeatureHook(nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="Conv2d has no running_mean"):
        DeepInversionFeatureHook(nn.Conv2d(3, 3, 1))
    with pytest.raises(RuntimeError, match="forward pass"):
        _ = DeepInversionFeatureHook(nn.BatchNorm2d(3)).r_feature
    with pytest.raises(ValueError, match="x must"):
        get_image_prior_losses(torch.randn(3, 8, 8))
