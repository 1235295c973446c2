"""Adapt a network to unlabelled images of another domain, without its training images (Nayak 2021, 4.2). One minute.

Run it with: python examples/source_free_adaptation.py
"""

import torch

import exml_fast as xf
from exml_fast import training, transfer
from exml_fast.data import Split
from exml_fast.evaluation import accuracy
from exml_fast.models import create

torch.manual_seed(0)
digits = xf.data.load("digits")
source = create("lenet5", activation="relu")
source = training.train_classifier(
    source, digits.train, digits.spec, config=training.Training(steps=600, batch_size=64, lr=2e-3)
).model


def faint(split: Split) -> Split:
    """The same digits, pale on light grey."""
    return Split((split.images.float() / 255 * 0.3 + 0.6), split.labels)


impressions = xf.invert(
    source, per_class=40, recipe="data_impressions/nayak", spec=digits.spec, betas=(0.01, 0.1), steps=150, lr=0.05,
    clip="valid", l2=1e-3, blur=1e-3, norm_squared=True, batch_size=400,
)  # fmt: skip
target = digits.spec.prepare(faint(digits.train).images)
config = training.Training(steps=400, batch_size=64, lr=2e-4)
adapted = transfer.adapt(
    source, impressions.images, target, spec=digits.spec, config=config, discriminator_lr=1e-3
).model

for name, model in (("before", source), ("after", adapted)):
    print(f"{name}: {accuracy(model, faint(digits.test), digits.spec):.1%} of the faint test digits")
