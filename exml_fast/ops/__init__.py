"""Fused ops for data-free learning, on CPU and CUDA, differentiable once.

Importing this package defines the functions as PyTorch custom ops (``torch.ops.exml.*``), which work under
``torch.compile(fullgraph=True)``. :mod:`exml_fast.ops.reference` holds the same functions in plain PyTorch. Kernels of
the convolutions and of average pooling exist for the CPU; on other devices PyTorch computes them.
"""

from exml_fast.ops.augmentation import jitter_flip
from exml_fast.ops.convolution import frozen_conv2d, lane_conv2d, winograd_conv2d, winograd_weights
from exml_fast.ops.losses import jensen_shannon, soft_cross_entropy
from exml_fast.ops.normalization import frozen_bn_act
from exml_fast.ops.optim import adam_clip_
from exml_fast.ops.pooling import average_pool2d
from exml_fast.ops.prior import image_prior
from exml_fast.ops.statistics import bn_match, match_statistics
from exml_fast.ops.targets import dirichlet_targets

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
    "winograd_conv2d",
    "winograd_weights",
]
