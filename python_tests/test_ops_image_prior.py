from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import (
    TOLERANCE,
    assert_compiles,
    assert_matches_reference,
    assert_second_derivative_raises,
    laid_out,
)
from torchvision.transforms.functional import gaussian_blur

from exml_fast import ops
from exml_fast.ops import reference


def check(x: torch.Tensor, kernel_size: int, sigma: float, per_image: bool) -> None:
    assert_matches_reference(
        lambda x: torch.stack(ops.image_prior(x, kernel_size, sigma, per_image)),
        lambda x: torch.stack(reference.image_prior(x, kernel_size, sigma, per_image)),
        x,
    )


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (3, 1, 28, 28), (2, 3, 32, 32), (2, 3, 17, 40), (1, 5, 65, 33)])
def test_matches_reference(device: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    x = laid_out(torch.randn(shape, dtype=torch.float64, device=device).to(dtype), layout)
    for kernel_size, per_image in [(1, False), (3, False), (3, True), (7, True), (15, False)]:
        if min(shape[2:]) > kernel_size // 2:
            check(x, kernel_size, 1.0, per_image)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(2, 24), st.integers(2, 24)),
    layout=st.sampled_from(["contiguous", "channels_last", "strided", "expanded"]),
    dtype=st.sampled_from(list(TOLERANCE)),
    radius=st.integers(0, 7),
    sigma=st.floats(0.2, 5),
    per_image=st.booleans(),
)
def test_any_shape_and_layout(shape, layout, dtype, radius, sigma, per_image) -> None:
    radius = min(radius, min(shape[2:]) - 1)
    x = laid_out(torch.randn(shape, dtype=torch.float64).to(dtype), layout)
    check(x, 2 * radius + 1, sigma, per_image)


def test_formulas_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0], [4.0, 8.0]])[None, None]
    tv_l1, tv_l2, _, l2 = ops.image_prior(x)
    assert tv_l1.item() == pytest.approx((1 + 4) / 2 + (3 + 6) / 2 + 2 + 7)
    assert tv_l2.item() == pytest.approx((1 + 16) ** 0.5 + (9 + 36) ** 0.5 + 2 + 7)
    assert l2.item() == pytest.approx((1 + 4 + 16 + 64) ** 0.5)


def test_blur_is_torchvisions() -> None:
    x = torch.randn(2, 3, 20, 24, dtype=torch.float64)
    for kernel_size, sigma in [(3, 1.0), (7, 1.0), (5, 2.5)]:
        residual = (x - gaussian_blur(x, [kernel_size] * 2, [sigma] * 2)).norm()
        torch.testing.assert_close(ops.image_prior(x, kernel_size, sigma)[2], residual)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("per_image", [False, True])
def test_gradcheck(device: str, layout: str, per_image: bool) -> None:
    x = laid_out(torch.randn(2, 3, 6, 5, dtype=torch.float64, device=device), layout).requires_grad_()
    for kernel_size in (3, 9):
        assert torch.autograd.gradcheck(lambda x, k=kernel_size: ops.image_prior(x, k, 1.5, per_image), x)


@pytest.mark.compiled
@pytest.mark.parametrize("per_image", [False, True])
def test_opcheck(device: str, per_image: bool) -> None:
    x = torch.randn(3, 2, 6, 5, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.exml.image_prior, (x, 3, 1.0, per_image))
    losses, sums = torch.ops.exml._image_prior_forward(x.detach(), 3, 1.0, per_image)
    torch.library.opcheck(torch.ops.exml._image_prior_forward, (x.detach(), 3, 1.0, per_image))
    grads = torch.rand_like(losses)
    torch.library.opcheck(torch.ops.exml._image_prior_backward, (grads, x.detach(), sums, 3, 1.0, per_image))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiles(device: str, layout: str) -> None:
    x = laid_out(torch.randn(2, 3, 8, 8, device=device), layout)
    assert_compiles(lambda x: sum(ops.image_prior(x * 2)), x)


def test_a_flat_image_has_no_gradient_of_its_own(device: str) -> None:
    x = torch.zeros(2, 1, 5, 5, device=device, requires_grad=True)
    terms = ops.image_prior(x)
    (grad,) = torch.autograd.grad(sum(terms), x)
    assert all(t.item() == 0 for t in terms) and (grad == 0).all()


def test_terms_may_be_used_alone(device: str) -> None:
    x = torch.randn(2, 1, 5, 5, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.image_prior(x)[3], x)
    torch.testing.assert_close(grad, x.detach() / x.detach().norm())


@pytest.mark.parametrize("term", range(4))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_gradient_of_each_term_alone(device: str, layout: str, term: int) -> None:
    for shape in ((2, 3, 20, 24), (1, 1, 4, 5)):
        x = laid_out(torch.randn(shape, dtype=torch.float64, device=device), layout)
        assert_matches_reference(
            lambda x: ops.image_prior(x, 7 if x.shape[2] > 4 else 3)[term],
            lambda x: reference.image_prior(x, 7 if x.shape[2] > 4 else 3)[term],
            x,
        )


def test_per_image_terms_add_up_to_the_batch(device: str) -> None:
    x = torch.randn(4, 3, 9, 7, device=device)
    per_image, batch = ops.image_prior(x, per_image=True), ops.image_prior(x)
    torch.testing.assert_close(per_image[0].mean(), batch[0])
    for i in (2, 3):
        torch.testing.assert_close((per_image[i] ** 2).sum().sqrt(), batch[i])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_stays_nan(device: str, layout: str) -> None:
    values = torch.randn(2, 3, 8, 8, device=device)
    values[0, 1, 4, 4] = float("nan")
    x = laid_out(values, layout).requires_grad_()
    terms = ops.image_prior(x, per_image=True)
    assert all(t[0].isnan() and t[1].isfinite() for t in terms)
    for term in (sum(terms), *terms):
        (grad,) = torch.autograd.grad(term.sum(), x, retain_graph=True)
        assert grad[0].isnan().any() and grad[1].isfinite().all()


def test_does_not_depend_on_threads() -> None:
    x = torch.randn(7, 3, 30, 31)
    threads = torch.get_num_threads()
    results = set()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.add(tuple(t.item() for t in ops.image_prior(x)))
    torch.set_num_threads(threads)
    assert len(results) == 1


def test_second_derivative_raises() -> None:
    assert_second_derivative_raises(lambda x: torch.stack(ops.image_prior(x)), torch.randn(1, 1, 4, 4))


def bad_calls() -> list[tuple[str, tuple, str]]:
    x = torch.randn(2, 3, 8, 8)
    return [
        ("rank 3", (x[0],), "x must be a batch of images"),
        ("empty batch", (x[:0],), "x must not be empty"),
        ("integer pixels", (torch.ones(2, 3, 8, 8, dtype=torch.uint8),), "x must be float32, bfloat16 or float64"),
        ("even kernel", (x, 4), "kernel_size must be odd and between 1 and 15, got 4"),
        ("large kernel", (x, 17), "kernel_size must be odd"),
        ("kernel over image", (x, 15, 1.0), None),
        ("one pixel", (x[..., :1],), "x must be at least 2 x 2 pixels"),
        ("small image", (x[..., :3], 7), "x must be at least 4 x 4 pixels for kernel_size 7"),
        ("negative sigma", (x, 3, -1.0), "sigma must be positive and finite, got -1"),
    ]


@pytest.mark.compiled
@pytest.mark.parametrize("args,message", [case[1:] for case in bad_calls()], ids=[case[0] for case in bad_calls()])
def test_bad_input_is_named(args: tuple, message: str | None) -> None:
    if message is None:  # the largest kernel that an 8 x 8 image admits
        assert all(t.isfinite() for t in ops.image_prior(*args))
        return
    with pytest.raises(ValueError, match=message):
        ops.image_prior(*args)
