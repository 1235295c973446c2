"""A stream learned with the images on disk, stopped and gone on with, and what was kept and lost. Some seconds.

Run it with: python examples/learn_from_experts.py
"""

import exml_fast as xf
from exml_fast.continual import Augmentation, experience_accuracies, new_classes

digits = xf.data.load("digits")
tasks = new_classes(digits, classes_per_step=5)
stream = xf.train_stream(digits, tasks, "experts", epochs=5)

images = xf.ModelInversion("model_inversion", steps=30, lr=0.1)
config = xf.DistillationConfig(iterations=150, lr=0.05, buffer_size=100, augmentation=Augmentation(shift=2))
method = xf.ExModelDistillation(images, config, buffer_dir="buffer")


class Stop(Exception):
    """A power cut."""


def progress(stage: str, step: int, total: int, terms: dict[str, float]) -> None:
    if stage.startswith("expert 2/2: distil"):
        raise Stop


def evaluate(ex_model: xf.Expert) -> list[float]:
    return experience_accuracies(ex_model, digits, tasks)


try:
    method.run(stream, progress, "checkpoints", evaluate)
except Stop:
    print("stopped while it learned from the second expert")

# The same call goes on from the checkpoint, bit for bit.
result = method.run(stream, checkpoint_dir="checkpoints", evaluate=evaluate)
for number, line in enumerate(result.matrix.tolist(), 1):
    print(f"after expert {number}: " + "  ".join(f"{share:.0%}" for share in line))
print(f"average {result.average_accuracy:.1%}, forgotten {result.forgetting:.1%}")
