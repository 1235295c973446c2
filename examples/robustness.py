"""An adversarially trained network and a plain one under attack (Nayak 2021, 4.1.5). Needs the extra `attacks`.

Run it with: python examples/robustness.py
"""

import torch

import exml_fast as xf
from exml_fast import transfer
from exml_fast.models import create

digits = xf.data.load("digits")
attack = transfer.Attack(epsilon=0.1, step=0.03, steps=5)
config = transfer.Training(steps=400, batch_size=64, lr=2e-3)
for name in ("plain", "robust"):
    torch.manual_seed(0)
    model = create("lenet5", activation="relu")
    if name == "plain":
        transfer.train_classifier(model, digits.train, digits.spec, config)
    else:
        transfer.adversarial_training(model, digits.train, digits.spec, config, attack)
    found = transfer.attack_accuracies(model, digits.test, digits.spec, attack)
    attacked = ", ".join(f"{kind} {share:.1%}" for kind, share in found.adversarial.items())
    print(f"{name}: {found.natural:.1%} as they are, under attack {attacked}")
