"""Learn from a stream of experts with the images on disk, stop, continue, and measure forgetting. Some seconds.

Run it with: python examples/learn_from_experts.py
"""

import exml_fast as xf
from exml_fast.continual import experience_accuracies, new_classes

digits = xf.data.load("digits")
tasks = new_classes(digits, classes_per_step=5)
stream = xf.train_stream(digits, tasks, "experts", epochs=5)

method = xf.continual.method(
    "model-inversion", recipe="model_inversion", inversion={"steps": 30, "lr": 0.1},
    steps=150, lr=0.05, buffer_size=100, augmentation={"shift": 2}, buffer_dir="buffer",
)  # fmt: skip


class Stop(Exception):
    """Stands for a power cut."""


def progress(stage: str, step: int, total: int, terms: dict[str, float]) -> None:
    if stage.startswith("expert 2/2: distil"):
        raise Stop


def evaluate(ex_model: xf.Expert) -> list[float]:
    return experience_accuracies(ex_model, digits, tasks)


try:
    method.run(stream, progress=progress, checkpoint_dir="checkpoints", evaluate=evaluate)
except Stop:
    print("stopped while learning from the second expert")

# The same call continues from the checkpoint, with the same bits.
result = method.run(stream, checkpoint_dir="checkpoints", evaluate=evaluate)
for number, line in enumerate(result.matrix.tolist(), 1):
    print(f"after expert {number}: " + "  ".join(f"{share:.0%}" for share in line))
print(f"average {result.average_accuracy:.1%}, forgetting {result.forgetting:.1%}")
