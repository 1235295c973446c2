"""Train a small network from a larger one without any data (Nayak 2021, 4.1). About a minute.

Run it with: python examples/zero_shot_distillation.py
"""

import torch

import exml_fast as xf
from exml_fast import training, transfer
from exml_fast.evaluation import accuracy
from exml_fast.models import create
from exml_fast.report.charts import save_similarity

torch.manual_seed(0)
digits = xf.data.load("digits")
teacher, student = create("lenet5", activation="relu"), create("lenet5_half", activation="relu")
teacher = training.train_classifier(
    teacher, digits.train, digits.spec, config=training.Training(steps=600, batch_size=64, lr=2e-3)
).model
save_similarity("similarity.png", xf.inversion.class_similarity(teacher), digits.class_names)

# No digits from here on. One call makes impressions of all classes with both scaling factors.
impressions = xf.invert(
    teacher, per_class=40, recipe="data_impressions/nayak", spec=digits.spec, steps=150, lr=0.05, clip="valid",
    l2=1e-3, blur=1e-3, norm_squared=True, batch_size=400,
)  # fmt: skip
impressions.save_grid("impressions.png")
student = transfer.zskd(
    teacher, student, impressions, config=training.Training(steps=800, batch_size=64, lr=2e-3)
).model

for name, model in (("teacher", teacher), ("student", student)):
    print(f"{name}: {accuracy(model, digits.test, digits.spec):.1%} of the test digits")
