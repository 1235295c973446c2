"""Learn ten digits in five tasks by four methods (Lardizzone 2020). Less than a minute.

Run it with: python examples/class_incremental.py
"""

import torch
from torch import nn

import exml_fast as xf
from exml_fast.continual.class_incremental import METHODS, incremental, learner, tasks_of


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


digits = xf.data.load("digits")
tasks = tasks_of(digits, "b0-5")  # five tasks of two digits, in iCaRL's order
# Each keeps something else of earlier tasks: nothing, 200 images, sums of a regression, everything.
settings = {"fine-tuning": {}, "icarl": {"total": 200}, "analytic": {"width": 256}, "joint": {}}

for method, more in settings.items():
    taught = learner(method, network(), digits.spec, epochs=8, batch_size=32, augmentation={}, **more)
    # After Ctrl-C, the same call continues from the folder.
    result = incremental(taught, tasks, digits.test, checkpoint_dir=f"class-incremental/{method}")
    curve = " ".join(f"{task.accuracy:4.0%}" for task in result.tasks)
    kept = result.tasks[-1].learned.nbytes / 1000
    print(f"{method:12} {curve}  last {result.last:.1%}, keeps {kept:.0f} kB ({METHODS[method].source})")
