"""Keep experts in a catalogue, search it, and pass on a stream as one folder. A few seconds.

Run it with: python examples/catalogue.py
"""

import exml_fast as xf
from exml_fast.continual import new_classes

digits = xf.data.load("digits")
experts = xf.train_stream(digits, new_classes(digits, classes_per_step=5), epochs=2)

catalogue = xf.Catalogue("catalogue")
for expert, name in zip(experts, ("low-digits", "high-digits"), strict=True):
    catalogue.add(expert, name, licence="MIT", overwrite=True)

# Small experts that know the class 7.
for entry in catalogue.find(classes=["7"], max_parameters=1_000_000):
    print(f"{entry.name}: {entry.parameters} parameters, {entry.accuracy:.1%} right, {entry.card.licence}")

# Export two experts in a chosen order. The folder holds the hash of every file and is a stream to learn from.
stream = catalogue.export("stream", ["low-digits", "high-digits"], overwrite=True)
print(f"stream of {stream.experiences}")

# Import them into another catalogue, which checks the hashes. verify() checks them again.
other = xf.Catalogue("other-catalogue")
other.import_("stream", overwrite=True)
print(f"{len(other)} experts, problems: {other.verify()}")
