"""Teach a fresh network to read digits with crops of one photograph, on which there is no digit (Asano 2022).

The photograph is one of scikit-learn's sample images. About a minute. Run it with: python examples/one_photograph.py
"""

import torch
from sklearn.datasets import load_sample_images

import exml_fast as xf
from exml_fast import training
from exml_fast.evaluation import accuracy
from exml_fast.models import create

torch.manual_seed(0)
digits = xf.data.load("digits")
teacher, student = create("lenet5", activation="relu"), create("lenet5_half", activation="relu")
teacher = training.train_classifier(
    teacher, digits.train, digits.spec, config=training.Training(steps=600, batch_size=64, lr=2e-3)
).model

# No digits from here on.
crops = xf.data.Photographs(torch.tensor(load_sample_images().images[0]).permute(2, 0, 1))
taught = xf.distill(
    teacher, student, crops, spec=digits.spec, steps=1500, batch_size=64, lr=0.05, schedule="cosine", mixup=1.0,
    cutmix=1.0, temperature=4.0, augmentation={"shift": 0},
)  # fmt: skip

print(f"{crops.domain}, {sum(each['images'] for each in taught.rounds):.0f} crops")
for name, model in (("teacher", teacher), ("student", taught.model)):
    print(f"{name}: {accuracy(model, digits.test, digits.spec):.1%} of the test digits")
