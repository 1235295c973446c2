"""Make perturbations that mislead a network on most images, from the network alone (Nayak 2021, 4.4). One minute.

Run it with: python examples/universal_perturbation.py
"""

import torch
from torchvision.utils import save_image

import exml_fast as xf
from exml_fast import training, transfer
from exml_fast.models import create

torch.manual_seed(0)
digits = xf.data.load("digits")
model = create("lenet5", activation="relu")
model = training.train_classifier(
    model, digits.train, digits.spec, config=training.Training(steps=600, batch_size=64, lr=2e-3)
).model

impressions = xf.invert(
    model, per_class=40, recipe="data_impressions/nayak", spec=digits.spec, steps=150, lr=0.05, clip="valid",
    l2=1e-3, blur=1e-3, norm_squared=True, batch_size=400,
)  # fmt: skip
config = training.Training(steps=300, batch_size=32, lr=2e-3)
generator = transfer.universal_perturbations(
    model, impressions.images, spec=digits.spec, epsilon=0.2, config=config, diversity=0.1
).model
perturbations = generator.sample(10)
save_image(perturbations, "perturbations.png", nrow=10, normalize=True)
rate = transfer.fooling_rate(model, perturbations, digits.test, digits.spec)
print(f"{rate.mean():.1%} of the test digits are taken for another digit")
