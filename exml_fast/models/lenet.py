"""LeNets for MNIST: LeNet-5 (Carta 2022, Table 1), with half of its filters (Nayak 2021, 4.1.2.1), and Caffe's."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["CaffeLeNet", "LeNet5", "LeNet5Half"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class LeNet5(nn.Module):
    """LeNet-5 for 32×32 images: two 5×5 convolutions with average pooling, then 120, 84, ``num_classes``.

    Input (N, in_channels, 32, 32), output logits (N, num_classes); 61,706 parameters at the defaults.
    ``batch_norm`` puts a BatchNorm2d after each convolution; ``activation`` is "tanh" (as published) or "relu".
    """

    filters = (6, 16)

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        batch_norm: bool = False,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
        act = ACTIVATIONS[activation]

        def stage(inputs: int, outputs: int) -> list[nn.Module]:
            norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
            return [nn.Conv2d(inputs, outputs, 5), *norm, act(), nn.AvgPool2d(2)]

        first, second = self.filters
        self.features = nn.Sequential(*stage(in_channels, first), *stage(first, second), nn.Flatten())
        self.classifier = nn.Sequential(
            nn.Linear(25 * second, 120), act(), nn.Linear(120, 84), act(), nn.Linear(84, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, 32, 32)."""
        return self.classifier(self.features(x))


class LeNet5Half(LeNet5):
    """LeNet-5 with half of the convolutional filters, otherwise the same; 35,820 parameters at the defaults."""

    filters = (3, 8)


class CaffeLeNet(nn.Module):
    """LeNet as domain adaptation takes it (Tzeng 2017; Nayak 2021, 4.2): 20 and 50 filters, max pooling, 500 units.

    Input (N, in_channels, 32, 32), output logits (N, num_classes); 656,080 parameters at the defaults. ``dropout`` is
    the probability with which filters of the second convolution, and hidden units, are left out in training.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 20, 5), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(20, 50, 5), nn.Dropout2d(dropout), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(50 * 5 * 5, 500), nn.ReLU(), nn.Dropout(dropout), nn.Linear(500, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, 32, 32)."""
        return self.classifier(self.features(x))
