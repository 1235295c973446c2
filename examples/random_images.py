"""A stream learned from random images alone: fields with the spectrum of natural ones, seen by every expert once.

Run it with: python examples/random_images.py
"""

import exml_fast as xf
from exml_fast.continual import Augmentation, EnsembleAverage, Procedural, ResponseCalibration, stream_accuracy

digits = xf.data.load("digits")
stream = xf.train_stream(digits, xf.continual.new_classes(digits, classes_per_step=5), "experts", epochs=15)

fields = xf.data.NaturalFields()
config = xf.DistillationConfig(
    iterations=300, batch_size=64, optimizer="adam", lr=3e-3, schedule="onecycle", loss="kl", lambda_ce=0.0,
    targets="stored", buffer_size=1000, augmentation=Augmentation(shift=0),
)  # fmt: skip
method = xf.ExModelDistillation(Procedural(fields), config, calibration=ResponseCalibration(fields, images=5000))
ex_model = method.run(stream).expert

print(f"both experts, averaged: {stream_accuracy(EnsembleAverage(stream), digits):.1%}")
print(f"one model that learned from random images: {stream_accuracy(ex_model, digits):.1%}")
