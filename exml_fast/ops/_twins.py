"""The ops as PyTorch functions, for an installation without the extension: checks around the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from exml_fast.ops import _checks as check
from exml_fast.ops import reference
from exml_fast.ops._fake import accumulator, is_channels_last

__all__ = [
    "adam_clip_",
    "average_pool2d",
    "bn_match",
    "dirichlet_targets",
    "frozen_bn_act",
    "frozen_conv2d",
    "image_prior",
    "jensen_shannon",
    "jitter_flip",
    "lane_conv2d",
    "match_statistics",
    "soft_cross_entropy",
    "winograd_weights",
]

Pair = tuple[int, int]
DISTANCES, MOMENTS, REDUCTIONS = ("l2", "squared", "gaussian_kl"), ("var", "std"), ("none", "mean", "sum")
MOST_TAPS = 15


def bn_match(x: Tensor, mean: Tensor, var: Tensor, distance: str = "l2", moment: str = "var") -> Tensor:
    check.pixels("bn_match", "x", x, 2, 5)
    check.not_empty("bn_match", "x", x)
    for name, given in (("mean", mean), ("var", var)):
        check.shaped("bn_match", name, given, x.shape[1:2])
    check.floating("bn_match", mean=mean, var=var)
    check.same_device("bn_match", "x", x, mean=mean, var=var)
    check.constant("bn_match", mean=mean, var=var)
    check.one_of("bn_match", "distance", distance, DISTANCES)
    check.one_of("bn_match", "moment", moment, MOMENTS)
    dtype = accumulator(x)
    return reference.bn_match(x.to(dtype), mean.to(dtype), var.to(dtype), distance, moment)


def frozen_bn_act(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    op = "frozen_bn_act"
    check.pixels(op, "x", x, 2, 5)
    check.not_empty(op, "x", x)
    for name, given in (("scale", scale), ("shift", shift)):
        check.shaped(op, name, given, x.shape[1:2])
    check.floating(op, scale=scale, shift=shift)
    check.same_device(op, "x", x, scale=scale, shift=shift, residual=residual)
    check.constant(op, scale=scale, shift=shift)
    check.one_of(op, "activation", activation, (*reference.ACTIVATIONS, "leaky_relu"))
    if residual is not None:
        check.shaped(op, "residual", residual, x.shape)
        check.expect(residual.dtype == x.dtype, f"{op}: residual must have x's dtype {x.dtype}, got {residual.dtype}")
    dtype = accumulator(x)
    a, b = scale.to(dtype), shift.to(dtype)
    added = None if residual is None else residual.to(dtype)
    y, mean, var = reference.frozen_bn_act(x.to(dtype), a, b, added, activation, negative_slope)
    return y.to(x.dtype), mean, var


def match_statistics(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    target_means: Sequence[Tensor],
    target_variances: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    distance: str = "l2",
    moment: str = "var",
) -> Tensor:
    op = "match_statistics"
    lists = {"means": means, "variances": variances, "target_means": target_means, "target_variances": target_variances}
    check.lengths(op, len(means), **lists, weights=weights)
    first = means[0]
    check.expect(first.dtype in check.STATISTICS, f"{op}: means must be float32 or float64, got {first.dtype}")
    for name, tensors in lists.items():
        for i, t in enumerate(tensors):
            check.expect(
                means[i].dim() == 1 and means[i].numel() > 0,
                f"{op}: means[{i}] must have shape (C,) and not be empty, got {tuple(means[i].shape)}",
            )
            check.shaped(op, f"{name}[{i}]", t, means[i].shape)
            check.floating(op, **{f"{name}[{i}]": t})
            check.same_device(op, "means[0]", first, **{f"{name}[{i}]": t})
            if name in ("means", "variances"):
                check.expect(
                    t.dtype == first.dtype,
                    f"{op}: {name}[{i}] must have the dtype of means[0], {first.dtype}, got {t.dtype}",
                )
            else:
                check.constant(op, **{name: t})
    check.one_of(op, "distance", distance, DISTANCES)
    check.one_of(op, "moment", moment, MOMENTS)
    aims, spreads = ([t.to(first.dtype) for t in given] for given in (target_means, target_variances))
    return reference.match_statistics(means, variances, aims, spreads, weights, distance, moment)


def jitter_flip(
    x: Tensor,
    shift: Tensor,
    flip: Tensor,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
    border: str = "wrap",
) -> Tensor:
    op = "jitter_flip"
    check.pixels(op, "x", x, 4, 4)
    images, channels, height, width = x.shape
    check.expect(shift.dtype == torch.int64, f"{op}: shift must be int64, got {shift.dtype}")
    check.shaped(op, "shift", shift, (2,), (images, 2))
    check.expect(flip.dtype == torch.bool, f"{op}: flip must be bool, got {flip.dtype}")
    check.shaped(op, "flip", flip, (), (images,))
    check.same_device(op, "x", x, shift=shift, flip=flip)
    dtype, memory_format = dtype or x.dtype, memory_format or torch.contiguous_format
    check.expect(dtype in check.PIXELS, f"{op}: dtype must be float32, bfloat16 or float64, got {dtype}")
    check.expect(
        memory_format in (torch.contiguous_format, torch.channels_last),
        f"{op}: memory_format must be contiguous_format or channels_last, got {memory_format}",
    )
    check.one_of(op, "border", border, ("wrap", "zero"))
    if x.numel() == 0:
        return x.to(dtype, copy=True, memory_format=memory_format)

    # The place in x from which each row and each column comes: (N, H) and (N, W).
    def count(n: int) -> Tensor:
        return torch.arange(n, device=x.device)

    rows = count(height) - shift[..., :1].expand(images, 1)
    columns = torch.where(flip.expand(images)[:, None], width - 1 - count(width), count(width))
    columns = columns - shift[..., 1:].expand(images, 1)
    place = (count(images)[:, None, None, None], count(channels)[:, None, None])
    y = x[(*place, (rows % height)[:, None, :, None], (columns % width)[:, None, None, :])]
    if border == "zero":
        down, across = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
        y = torch.where(down[:, None, :, None] & across[:, None, None, :], y, 0)
    y = y.to(dtype)
    return torch.empty_like(y, memory_format=memory_format).copy_(y)


def image_prior(x: Tensor, kernel_size: int = 3, sigma: float = 1.0, per_image: bool = False) -> Tensor:
    op = "image_prior"
    check.pixels(op, "x", x, 4, 4)
    check.not_empty(op, "x", x)
    check.expect(
        kernel_size % 2 == 1 and 1 <= kernel_size <= MOST_TAPS,
        f"{op}: kernel_size must be odd and between 1 and {MOST_TAPS}, got {kernel_size}",
    )
    check.positive(op, "sigma", sigma)
    least = reference.least_image_size(kernel_size)
    check.expect(
        min(x.shape[2:]) >= least,
        f"{op}: x must be at least {least} x {least} pixels for kernel_size {kernel_size}, got shape {tuple(x.shape)}",
    )
    return torch.stack(reference.image_prior(x.to(accumulator(x)), kernel_size, sigma, per_image))


def soft_cross_entropy(logits: Tensor, target: Tensor, temperature: float = 1.0, reduction: str = "mean") -> Tensor:
    op, classes = "soft_cross_entropy", logits.shape[-1] if logits.dim() else 0
    check.pixels(op, "logits", logits, 2, 2)
    check.not_empty(op, "logits", logits)
    check.same_device(op, "logits", logits, target=target)
    check.constant(op, target=target)
    check.positive(op, "temperature", temperature)
    check.one_of(op, "reduction", reduction, REDUCTIONS)
    dtype = accumulator(logits)
    z = logits.to(dtype)
    z = z - z.amax(1, keepdim=True).detach()  # exact differences of large logits
    if target.is_floating_point():
        check.shaped(op, "target", target, logits.shape)
        return reference.soft_cross_entropy(z, target.to(dtype), temperature, reduction)
    check.expect(
        target.dtype == torch.int64, f"{op}: target must be int64 class indices or floating point, got {target.dtype}"
    )
    check.shaped(op, "target", target, logits.shape[:1])
    if check.is_real(target) and not bool(((target >= 0) & (target < classes)).all()):
        raise IndexError(f"{op}: target must be in [0, {classes}), got {target.min()} to {target.max()}")
    losses = reference.soft_cross_entropy(z, target.clamp(0, classes - 1), temperature, "none")
    known = (target >= 0) & (target < classes)
    return reference.reduced(torch.where(known, losses, math.nan), reduction)


def jensen_shannon(
    teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0, reduction: str = "mean"
) -> Tensor:
    op = "jensen_shannon"
    check.pixels(op, "teacher_logits", teacher_logits, 2, 2)
    check.pixels(op, "student_logits", student_logits)
    check.not_empty(op, "teacher_logits", teacher_logits)
    check.shaped(op, "student_logits", student_logits, teacher_logits.shape)
    check.expect(
        student_logits.dtype == teacher_logits.dtype,
        f"{op}: student_logits must have teacher_logits' dtype {teacher_logits.dtype}, got {student_logits.dtype}",
    )
    check.same_device(op, "teacher_logits", teacher_logits, student_logits=student_logits)
    check.positive(op, "temperature", temperature)
    check.one_of(op, "reduction", reduction, REDUCTIONS)
    p, q = (z.to(accumulator(z)) for z in (teacher_logits, student_logits))
    finite = ((p / temperature).isfinite() & (q / temperature).isfinite()).all(1, keepdim=True)
    p, q = ((z - z.amax(1, keepdim=True).detach()) * torch.where(finite, 1.0, math.nan) for z in (p, q))
    return reference.jensen_shannon(p, q, temperature, reduction)


def average_pool2d(x: Tensor, kernel: Pair) -> Tensor:
    op = "average_pool2d"
    check.pixels(op, "x", x, 4, 4)
    check.expect(
        x.shape[1] > 0, f"{op}: x must have shape (N, C, H, W) with at least one channel, got {tuple(x.shape)}"
    )
    check.expect(
        0 < kernel[0] <= x.shape[2] and 0 < kernel[1] <= x.shape[3],
        f"{op}: kernel must be from 1 to x's height and width, got {kernel} for {tuple(x.shape)}",
    )
    return reference.average_pool2d(x, kernel)


def lane_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Pair) -> Tensor:
    op = "lane_conv2d"
    check.pixels(op, "x", x, 4, 4)
    _check_convolution(op, x, weight, bias, 1)
    for p, k, n in zip(padding, weight.shape[2:], x.shape[2:], strict=True):
        check.expect(0 <= p < k, f"{op}: padding must be from 0 to the kernel's size less one, got {padding}")
        check.expect(
            n + 2 * p >= k,
            f"{op}: kernels of {tuple(weight.shape[2:])} are larger than the padded images of x, {tuple(x.shape)}",
        )
    last = is_channels_last(x) or is_channels_last(weight)
    y = reference.lane_conv2d(x, weight, bias, padding)
    return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def frozen_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    forward_weight: Tensor | None = None,
    forward_layout: str = "plain",
    lanes: bool = False,
    adjoint_weight: Tensor | None = None,
    adjoint_layout: str = "plain",
    adjoint: str = "library",
) -> Tensor:
    op = "frozen_conv2d"
    check.pixels(op, "x", x, 4, 4)
    _check_convolution(op, x, weight, bias, groups)
    check.constant(op, weight=weight, bias=bias)
    check.one_of(op, "forward_layout", forward_layout, ("plain", "packed", "winograd"))
    check.one_of(op, "adjoint_layout", adjoint_layout, ("plain", "packed", "windows", "winograd"))
    check.one_of(op, "adjoint", adjoint, ("library", "convolution", "zero_stuffed", "subpixel", "lanes"))
    check.expect(
        weight.numel() == 1 or any(weight.stride()),
        f"{op}: weight must hold values: prepared weights are read by the compiled extension only",
    )
    y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return y.contiguous(memory_format=torch.channels_last) if forward_layout == "winograd" else y


def _check_convolution(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    check.expect(
        weight.dim() == 4 and x.shape[1] == weight.shape[1] * groups,
        f"{op}: x must have shape (N, C, H, W) "
        f"to match weight of shape {tuple(weight.shape)} and groups = {groups}, got {tuple(x.shape)}",
    )
    check.not_empty(op, "weight", weight)
    check.same_device(op, "x", x, weight=weight, bias=bias)
    for name, t in (("weight", weight), ("bias", bias)):
        check.expect(
            t is None or t.dtype == x.dtype,
            f"{op}: {name} must have x's dtype {x.dtype}, got {None if t is None else t.dtype}",
        )
    if bias is not None:
        check.shaped(op, "bias", bias, weight.shape[:1])


def winograd_weights(weight: Tensor) -> Tensor:
    op = "winograd_weights"
    check.pixels(op, "weight", weight)
    check.expect(
        weight.dim() == 4 and tuple(weight.shape[2:]) == (3, 3),
        f"{op}: weight must have shape (K, C, 3, 3), got {list(weight.shape)}",
    )
    check.constant(op, weight=weight)
    return reference.winograd_weights(weight).contiguous()


def check_dirichlet_targets(similarity: Tensor, classes: Tensor, betas: Tensor) -> None:
    """Also checks the values, which waits for a GPU, except while a CUDA graph is recorded."""
    op = "dirichlet_targets"
    check.expect(
        similarity.dtype in check.STATISTICS, f"{op}: similarity must be float32 or float64, got {similarity.dtype}"
    )
    check.expect(
        similarity.dim() == 2 and similarity.shape[0] == similarity.shape[1] and similarity.numel() > 0,
        f"{op}: similarity must have shape (K, K) and not be empty, got {tuple(similarity.shape)}",
    )
    check.expect(classes.dtype == torch.int64, f"{op}: classes must be int64, got {classes.dtype}")
    check.expect(
        classes.dim() == 1 and classes.numel() > 0,
        f"{op}: classes must have shape (N,) and not be empty, got {tuple(classes.shape)}",
    )
    check.floating(op, betas=betas)
    check.expect(
        betas.shape == classes.shape,
        f"{op}: betas must have the shape of classes, {list(classes.shape)}, got {list(betas.shape)}",
    )
    check.same_device(op, "similarity", similarity, classes=classes, betas=betas)
    if not (similarity.is_cuda and torch.cuda.is_current_stream_capturing()):
        for name, t, where in (("similarity", similarity, " everywhere"), ("betas", betas, "")):
            check.expect(
                bool(((t > 0) & t.isfinite()).all()),
                f"{op}: {name} must be positive and finite{where}, got values from {t.min()} to {t.max()}",
            )
        if int(classes.min()) < 0 or int(classes.max()) >= len(similarity):
            raise IndexError(
                f"{op}: classes must be in [0, {len(similarity)}), got values from {classes.min()} to {classes.max()}"
            )


def dirichlet_targets(
    similarity: Tensor, classes: Tensor, betas: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    check_dirichlet_targets(similarity, classes, betas)
    return reference.dirichlet_targets(similarity, classes, betas, generator)


def adam_clip_(
    x: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    low: Tensor | None = None,
    high: Tensor | None = None,
    active: Tensor | None = None,
) -> None:
    op, read = "adam_clip_", {"grad": grad, "step": step, "lr": lr, "low": low, "high": high, "active": active}
    written = {"x": x, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    for name, t in written.items():
        check.own_memory(op, name, t)
    check.expect(x.dtype in check.STATISTICS, f"{op}: x must be float32 or float64, got {x.dtype}")
    check.pixels(op, "x", x, 2, 5)
    dense = x.is_contiguous() or x.movedim(1, -1).is_contiguous()
    check.expect(
        dense,
        f"{op}: x is written in place and must be contiguous or channels_last, got shape "
        f"{tuple(x.shape)} with strides {x.stride()}",
    )
    for name, t in written.items():
        check.expect(
            t.dtype == x.dtype and t.shape == x.shape,
            f"{op}: {name} must have x's dtype and shape, {x.dtype} {tuple(x.shape)}, got {t.dtype} {tuple(t.shape)}",
        )
        same = t.is_contiguous() if x.is_contiguous() else t.movedim(1, -1).is_contiguous()
        check.expect(same, f"{op}: {name} must have x's memory format, strides {x.stride()}, got {t.stride()}")
    check.pixels(op, "grad", grad)
    check.shaped(op, "grad", grad, x.shape)
    check.expect(
        step.dim() == 0 and lr.dim() == 0,
        f"{op}: step and lr must be scalars, got shapes {tuple(step.shape)} and {tuple(lr.shape)}",
    )
    check.expect(step.dtype in (torch.int64, torch.float32), f"{op}: step must be int64 or float32, got {step.dtype}")
    check.floating(op, lr=lr)
    check.expect(0 <= beta1 < 1 and 0 <= beta2 < 1, f"{op}: betas must be in [0, 1), got {beta1} and {beta2}")
    check.expect(0 <= eps < math.inf, f"{op}: eps must be finite and not negative, got {eps}")
    for name, bound in (("low", low), ("high", high)):
        if bound is not None:
            check.shaped(op, name, bound, x.shape[1:2])
            check.floating(op, **{name: bound})
    if active is not None:
        check.expect(active.dtype == torch.bool, f"{op}: active must be bool of shape (N,), got {active.dtype}")
        check.shaped(op, "active", active, x.shape[:1])
    check.same_device(op, "x", x, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, **read)
    check.apart(op, written, read)
    check.expect(not check.is_real(step) or float(step) >= 1, f"{op}: step counts from 1, got {step}")
    if torch.is_grad_enabled() and x.requires_grad:
        raise RuntimeError(f"{op}: x requires grad and is written in place: call it under torch.no_grad()")

    least, most = (None if t is None else t.where(~t.isnan(), no) for t, no in ((low, -math.inf), (high, math.inf)))
    with torch.no_grad():
        pixels, m, v = (t.clone() for t in written.values())
        # In float64 scalars, because float32 cannot count beyond 2**24.
        rate, count = lr.to(x.dtype), step.to(torch.float64)
        reference.adam_clip_(pixels, grad, m, v, count, rate, (beta1, beta2), eps, least, most)
        keep = None if active is None else active.view(-1, *[1] * (x.dim() - 1))
        for old, value in zip(written.values(), (pixels, m, v), strict=True):
            old.copy_(value if keep is None else torch.where(keep, value, old))
