"""Test whether a student inherits the robustness of its teacher (Nayak 2021, 4.1.5). Needs the extra `attacks`.

Run it with: python examples/robustness.py
"""

import torch

import exml_fast as xf
from exml_fast import training, transfer
from exml_fast.models import create

digits = xf.data.load("digits")
attack = transfer.Attack(epsilon=0.1, step=0.03, steps=5)
config = training.Training(steps=400, batch_size=64, lr=2e-3)


def report(name, model):
    found = transfer.attack_accuracies(model, digits.test, digits.spec, attack)
    attacked = ", ".join(f"{kind} {share:.1%}" for kind, share in found.adversarial.items())
    print(f"{name}: {found.natural:.1%} of clean digits, under attack {attacked}")


torch.manual_seed(0)
plain = create("lenet5", activation="relu")
plain = training.train_classifier(plain, digits.train, digits.spec, config=config).model
report("plain teacher", plain)

torch.manual_seed(0)
robust = create("lenet5", activation="relu")
robust = transfer.adversarial_training(robust, digits.train, digits.spec, config=config, attack=attack).model
report("robust teacher", robust)

# No data from here on. Students learn from impressions of the robust teacher, clean and under attack.
impressions = xf.invert(robust, per_class=30, recipe="data_impressions/nayak", spec=digits.spec, steps=100, lr=0.05)
varied = xf.continual.Augmentation(
    shift=3, rotation=20.0, scale=0.25, stretch=0.2, shear=0.3, elastic=1.0, contrast=(4.0, 20.0)
)
learning = training.Training(steps=1000, batch_size=64, lr=2e-3, augmentation=varied)
for name, met in (("its student", None), ("its student under attack", attack)):
    torch.manual_seed(1)
    student = create("lenet5_half", activation="relu")
    student = transfer.zskd(robust, student, impressions, config=learning, attack=met).model
    report(name, student)
