"""Train one model from a stream of experts with random images, which each expert labels once.

Run it with: python examples/random_images.py
"""

import exml_fast as xf
from exml_fast.continual import EnsembleAverage, stream_accuracy

digits = xf.data.load("digits")
stream = xf.train_stream(digits, xf.continual.new_classes(digits, classes_per_step=5), "experts", epochs=15)

# Few steps and images, so that the example is short.
method = xf.continual.method("random-images", source="natural-fields", steps=300, batch_size=64, buffer_size=1000)
ex_model = method.run(stream).expert

print(f"both experts, averaged: {stream_accuracy(EnsembleAverage(stream), digits):.1%}")
print(f"one model that learned from random images: {stream_accuracy(ex_model, digits):.1%}")
