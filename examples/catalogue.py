"""A folder of experts to choose from, and a stream handed on as one folder. A few seconds.

Run it with: python examples/catalogue.py
"""

import exml_fast as xf
from exml_fast.continual import new_classes

digits = xf.data.load("digits")
experts = xf.train_stream(digits, new_classes(digits, classes_per_step=5), epochs=2)

catalogue = xf.Catalogue("catalogue")
for expert, name in zip(experts, ("low-digits", "high-digits"), strict=True):
    catalogue.add(expert, name, licence="MIT", overwrite=True)

# Who knows a seven, and is small?
for entry in catalogue.find(classes=["7"], max_parameters=1_000_000):
    print(f"{entry.name}: {entry.parameters} parameters, {entry.accuracy:.1%} right, {entry.card.licence}")

# As one folder, in an order of our own, with the hash of everything; it is a stream to learn from.
stream = catalogue.export("stream", ["low-digits", "high-digits"], overwrite=True)
print(f"stream of {stream.experiences}")

# Elsewhere: everything is checked on the way in, and can be checked again at any time.
other = xf.Catalogue("other-catalogue")
other.import_("stream", overwrite=True)
print(f"{len(other)} experts, problems: {other.verify()}")
