"""LeNet-5 for MNIST (Carta 2022, Table 1), and the student with half of its filters (Nayak 2021, 4.1.2.1)."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["LeNet5", "LeNet5Half"]

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
