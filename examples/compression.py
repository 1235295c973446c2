"""Make a classifier smaller without its data: fewer filters, 8 bits, 4 bits.

    pip install 'exml_fast[prune,quantize]'
    python examples/compression.py

Takes about a minute on one core. The real digits only train the first network and test all.
"""

import exml_fast as xf
from exml_fast.evaluation import accuracy
from exml_fast.transfer import FINE_TUNING, export

digits = xf.data.load("digits")
arguments = {"in_channels": 1, "num_classes": 10, "batch_norm": True, "activation": "relu"}
expert = xf.continual.train_expert(digits, architecture="lenet5", arguments=arguments, epochs=15).expert
images = xf.invert(expert, per_class=30, steps=100, seed=0)


def report(name: str, model: object, size: int) -> None:
    """One line for each network."""
    print(f"{name:<16} {accuracy(model, digits.test, digits.spec):.1%}, {size:,} bytes")


report("the network", expert.model, sum(tensor.nbytes for tensor in expert.model.state_dict().values()))

tuning = FINE_TUNING.replace(steps=100, batch_size=64, augmentation={"shift": 2})
pruned = xf.prune(expert, images, 0.3, target="flops", fine_tuning=tuning, batch_size=64, steps=10, filters=8)
report("pruned", pruned.model, sum(tensor.nbytes for tensor in pruned.model.state_dict().values()))
export(pruned, "pruned.pt")

int8 = xf.quantize(expert, images)
report("8 bits", int8.model, int8.nbytes)
int8.save("int8", architecture="lenet5", arguments=arguments, overwrite=True)
print("most sensitive layer:", max(int8.sensitivity, key=int8.sensitivity.get))

w4a4 = xf.quantize(expert, images, bits=4, steps=100, batch_size=64)
report("4 bits, learned", w4a4.model, w4a4.nbytes)
