"""Train one model from two experts with different classes, without their data. About half a minute.

Run it with: python examples/quick_start.py
"""

import exml_fast as xf
from exml_fast.continual import new_classes, stream_accuracy

# Train two experts, one on the digits 0 to 4, the other on 5 to 9. Nothing after these lines uses training data.
digits = xf.data.load("digits")
experiences = new_classes(digits, classes_per_step=5)
experts = xf.train_stream(digits, experiences, epochs=20)

# Images that the first expert recognises, made from the expert alone.
result = xf.invert(experts[0], per_class=4, recipe="model_inversion", steps=200, lr=0.05)
result.save_grid("inverted.png")
print(f"{len(result)} images in inverted.png, {result.summary['teacher_accuracy']:.0%} recognised by the expert")

# One model that learns from both experts, one after the other (Carta 2022, Algorithm 1).
inversion = {"steps": 200, "lr": 0.05}
method = xf.continual.method(
    "model-inversion", recipe="model_inversion", inversion=inversion, steps=600, lr=0.02, buffer_size=200
)
ex_model = method.run(experts).expert
ex_model.save("ex-model")

for name, model in (("expert of 0 to 4", experts[0]), ("expert of 5 to 9", experts[1]), ("ex-model", ex_model)):
    print(f"{name}: {stream_accuracy(model, digits, experiences):.1%} of all test digits")
