"""Train a generator from a classifier alone, and other students from its images (Ye 2022). About a minute.

Run it with: python examples/knowledge_delegator.py
"""

import torch
from torch import nn

import exml_fast as xf
from exml_fast.evaluation import accuracy
from exml_fast.training import Training, train_classifier


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


torch.manual_seed(0)
digits = xf.data.load("digits")
teacher = train_classifier(
    network(), digits.train, digits.spec, config=Training(steps=300, batch_size=64, lr=3e-3)
).model

# No digits from here on. A round is five imitations and one exploration.
delegation = xf.delegate(teacher, spec=digits.spec, steps=60, batch_size=64, latent_size=32, width=16, decay_every=30)
delegation.generator.save("generator")
generator = xf.Generator.load("generator")
student = xf.distill(teacher, network(), generator.sample(2000), spec=digits.spec, steps=300, batch_size=64).model

for name, model in (("teacher", teacher), ("student beside the generator", delegation.model), ("student", student)):
    print(f"{name}: {accuracy(model, digits.test, digits.spec):.1%} of the test digits")
