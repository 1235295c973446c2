"""AlexNet for 32×32 images and its smaller student (Nayak 2021, 4.1.2.3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["AlexNetCifar", "AlexNetCifarHalf"]


class AlexNetCifar(nn.Module):
    """Five convolutions with BatchNorm, pooling after the first, second and fifth, then three linear layers.

    Input (N, in_channels, 32, 32), output logits (N, num_classes); 1,657,642 parameters at the defaults. ``hidden``
    are the widths of the first two linear layers. Filters and kernels are those of the published code.
    """

    filters = (48, 128, 192, 192, 128)

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, hidden: Sequence[int] = (512, 256), dropout: float = 0.5
    ) -> None:
        super().__init__()
        first, second = hidden
        layers: list[nn.Module] = []
        channels = in_channels
        for width, kernel, pooled in zip(self.filters, (5, 5, 3, 3, 3), (1, 1, 0, 0, 1), strict=True):
            layers += [nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.MaxPool2d(3, 2)] if pooled else []
            channels = width
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.classifier = nn.Sequential(
            nn.Linear(9 * channels, first), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(first, second), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(second, num_classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, 32, 32)."""
        return self.classifier(self.features(x))


class AlexNetCifarHalf(AlexNetCifar):
    """AlexNetCifar with half of the filters; 722,906 parameters at the defaults.

    The paper gives its student 7.23e5 parameters and half of the linear layers' neurons too. These exclude each other:
    half of everything, ``hidden=(256, 128)`` as in the published code, has 416,666. The default keeps the size.
    """

    filters = (24, 64, 96, 96, 64)

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, hidden: Sequence[int] = (464, 464), dropout: float = 0.5
    ) -> None:
        super().__init__(num_classes, in_channels, hidden, dropout)
