"""VGG-11 with BatchNorm for 32×32 images (Simonyan 2015, configuration A)."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Vgg11BnCifar"]

# Channels of each 3×3 convolution; a pooling halves the image where there is none.
LAYERS = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)


class Vgg11BnCifar(nn.Module):
    """VGG-11-BN with one linear layer, teacher and student of Yin 2020's Table 1.

    Images (N, in_channels, 32, 32); logits (N, num_classes); 9,231,114 parameters at the defaults. ``width`` scales
    all layers (64: the published ones).
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be positive, got {width}")
        layers: list[nn.Module] = []
        channels = in_channels
        for published in LAYERS:
            if published is None:
                layers.append(nn.MaxPool2d(2))
            else:
                outputs = published * width // 64
                layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                channels = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        return self.classifier(self.features(x).flatten(1))
