"""LeNets for MNIST: LeNet-5 (Carta 2022, Table 1), its half (Nayak 2021, 4.1.2.1), and the LeNet of Caffe."""

from __future__ import annotations

from torch import Tensor, nn

from exml_fast.validation import named

__all__ = ["CaffeLeNet", "LeNet5", "LeNet5Half"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class LeNet5(nn.Module):
    """LeNet-5 for 32×32 images: two 5×5 convolutions with average pooling, then linear layers of 120, 84, num_classes.

    The defaults give 61,706 parameters.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        batch_norm: put a BatchNorm2d after each convolution.
        activation: "tanh", as published, or "relu".

    Raises:
        ValueError: for another activation.
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
        act = named("activation", activation, ACTIVATIONS)

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
    """LeNet-5 with half of the convolutional filters; 35,820 parameters at the defaults."""

    filters = (3, 8)


class CaffeLeNet(nn.Module):
    """The LeNet used for domain adaptation (Tzeng 2017; Nayak 2021, 4.2): 20 and 50 filters, max pooling, 500 units.

    The defaults give 656,080 parameters.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        dropout: probability of dropping a filter of the second convolution, or a hidden unit, in training mode.
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
