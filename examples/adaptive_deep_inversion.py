"""Train a student on images that Adaptive DeepInversion makes from its teacher. About a minute.

Run it with: python examples/adaptive_deep_inversion.py
"""

import torch

import exml_fast as xf
from exml_fast.continual import Augmentation, train_expert
from exml_fast.evaluation import evaluate
from exml_fast.models import LeNet5

# Train two networks on the digits. After these lines the digits only measure accuracy.
digits = xf.data.load("digits")
teacher, judge = (
    train_expert(digits, arguments={"batch_norm": True, "activation": "relu"}, epochs=10, seed=seed).expert
    for seed in (0, 1)
)

# Images of the teacher's classes (DeepInversion). An independent network, the judge, classifies them.
images = xf.invert(teacher, per_class=16, recipe="deep_inversion", steps=150, lr=0.1)
images.save_grid("dreamed_digits.png", columns=10)
found = evaluate(images, {"judge": judge})
print(f"{len(images)} images in dreamed_digits.png, {found.judges['judge']['top1']:.0%} recognised by another network")

# The student learns from these images. Every 100 steps it gets new ones on which it disagrees with its teacher
# (Adaptive DeepInversion).
torch.manual_seed(0)
adaptive = xf.recipes.get("adaptive_deep_inversion").replace(steps=100, lr=0.1, compete=3.0)
taught = xf.distill(
    teacher, LeNet5(batch_norm=True, activation="relu"), images, recipe=adaptive, steps=400,
    batch_size=64, schedule="cosine", generate_every=100, per_round=64, augmentation=Augmentation(shift=3),
)  # fmt: skip

for each in taught.rounds:
    print(f"step {each['step']:.0f}: new images right for teacher {each['teacher']:.0%}, student {each['student']:.0%}")
inputs, labels = digits.spec.prepare(digits.test.images), digits.test.labels
with torch.no_grad():
    for name, model in (("teacher", teacher.model), ("student", taught.model)):
        print(f"{name}: {(model(inputs).argmax(1) == labels).double().mean():.1%} of the real test digits")
