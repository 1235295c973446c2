"""Adversarial training and evaluation: does a student inherit its teacher's robustness? (Nayak 2021, 4.1.5)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from exml_fast import ops
from exml_fast.data import InputSpec, Split
from exml_fast.progress import ProgressOption, callback_of, reports_progress
from exml_fast.storage import PathLike
from exml_fast.training import Training, TrainingResult, train_classifier
from exml_fast.validation import Count, Positive, require, settings

__all__ = ["ATTACKS", "Attack", "RampedAttack", "Robustness", "adversarial_training", "attack_accuracies", "pgd"]

ATTACKS = ("fgsm", "ifgsm", "pgd")


@settings
class Attack:
    """Bound, step and number of steps of an L∞ attack, in pixel units [0, 1].

    The paper names none; these are Madry 2018's for MNIST (CIFAR-10: 8/255, 2/255, 7). ValueError naming the field.
    """

    epsilon: Annotated[float, Field(gt=0, le=1)] = 0.3
    step: Positive = 0.01
    steps: Count = 40

    def check(self) -> None:
        """ValueError for a step larger than the bound."""
        require(self.step <= self.epsilon, "step", f"at most epsilon = {self.epsilon}", self.step)


def pgd(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    attack: Attack,
    spec: InputSpec,
    start: Tensor | None = None,
    *,
    clamp: bool = True,
) -> Tensor:
    """Network input within ε of ``x`` (N, C, H, W) that raises the loss of ``labels`` (Madry 2018, Eq. 2.2).

    ``labels`` are classes (N,), or shares of them (N, K). ``start`` (N, C, H, W) in [−1, 1] says where in the ε-ball to
    begin; at ``x`` when None. ``clamp`` keeps to the range of pixels. The model's mode and its
    parameters' gradients are left as they are; in training mode BatchNorm's statistics move as in any forward pass.
    """
    scale = 1 / torch.tensor(spec.std, device=x.device)[:, None, None]
    low, high = x - attack.epsilon * scale, x + attack.epsilon * scale
    if clamp:
        black, white = spec.bounds(x.device)
        low, high = torch.maximum(low, black), torch.minimum(high, white)
    adversarial = x.detach() if start is None else x.detach() + attack.epsilon * scale * start
    adversarial = torch.minimum(torch.maximum(adversarial, low), high)
    for _ in range(attack.steps):
        with torch.enable_grad():
            leaf = adversarial.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(ops.soft_cross_entropy(model(leaf), labels, reduction="sum"), leaf)
        adversarial = adversarial + attack.step * scale * gradient.sign()
        adversarial = torch.minimum(torch.maximum(adversarial, low), high)
    return adversarial.detach()


class RampedAttack:
    """PGD examples from random starts, for one training of ``steps`` steps: ``attack(network, x, labels)``.

    ε grows linearly over the first ``warmup`` of the steps: from the start at full size, small networks learn to give
    one constant answer. The network sees the examples in evaluation mode, and is in training mode afterwards.
    """

    def __init__(self, attack: Attack, spec: InputSpec, steps: int, *, warmup: float = 0.3, seed: int = 0) -> None:
        self.attack, self.spec = attack, spec
        self._ramp, self._taken = max(round(warmup * steps), 1), 0
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        """Network input (N, C, H, W) near ``x``, for labels as in :func:`pgd`."""
        self._taken += 1
        share = min(self._taken / self._ramp, 1.0)
        grown = Attack(share * self.attack.epsilon, share * self.attack.step, self.attack.steps)
        start = 2 * torch.rand(x.shape, generator=self._generator).to(x.device) - 1
        network.eval()
        adversarial = pgd(network, x, labels, grown, self.spec, start)
        network.train()
        return adversarial

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"taken": self._taken, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._taken = state["taken"]
        self._generator.set_state(state["generator"].cpu())


@reports_progress
def adversarial_training(
    model: nn.Module,
    split: Split,
    spec: InputSpec,
    *,
    config: Training,
    attack: Attack,
    warmup: float = 0.3,
    seed: int = 0,
    progress: ProgressOption = None,
    checkpoint_dir: PathLike | None = None,
) -> TrainingResult:
    """Train a copy of ``model`` with cross-entropy on PGD examples (Madry 2018; :class:`RampedAttack`)."""
    progress = callback_of(progress)
    perturb = RampedAttack(attack, spec, config.steps, warmup=warmup, seed=seed)
    return train_classifier(
        model, split, spec, config=config, perturb=perturb, parts={"attack": perturb},
        identity=(repr(attack), warmup), seed=seed, progress=progress, checkpoint_dir=checkpoint_dir,
    )  # fmt: skip


@dataclass(frozen=True)
class Robustness:
    """One row of the paper's Table 4, shares in [0, 1]: accuracy, and by attack accuracy and fooling rate.

    Fooling rate: images of which the attack changes the predicted class, whether or not that was right.
    """

    natural: float
    adversarial: dict[str, float]
    fooling: dict[str, float]

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)


def attack_accuracies(
    model: nn.Module,
    split: Split,
    spec: InputSpec,
    attack: Attack,
    attacks: Sequence[str] = ATTACKS,
    *,
    seed: int = 0,
    batch_size: int = 256,
) -> Robustness:
    """Attack every image of ``split`` with the attacks of adversarial-robustness-toolbox.

    fgsm: one step of size ε (Goodfellow 2015); ifgsm: steps from the image itself (Kurakin 2017); pgd: steps from a
    random start (Madry 2018). The labels are the true ones.

    Raises:
        ImportError: if the extra ``attacks`` is missing.
        ValueError: for an unknown attack.
    """
    if unknown := [name for name in attacks if name not in ATTACKS]:
        raise ValueError(f"attacks must be among {ATTACKS}, got {unknown}")
    try:
        import numpy as np
        from art.attacks.evasion import BasicIterativeMethod, FastGradientMethod, ProjectedGradientDescent
        from art.estimators.classification import PyTorchClassifier
    except ImportError as error:
        raise ImportError("attacks need adversarial-robustness-toolbox: pip install 'exml_fast[attacks]'") from error
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (spec.mean, spec.std))
    classes = int(split.labels.max()) + 1
    try:
        model.eval()
        with torch.no_grad():
            classes = model(spec.prepare(split.images[:1]).to(device)).shape[1]
        classifier = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), spec.shape, classes, clip_values=(0.0, 1.0), preprocessing=(mean, std),
            device_type="gpu" if device.type == "cuda" else "cpu",
        )  # fmt: skip
        bound, steps = {"eps": attack.epsilon, "batch_size": batch_size}, {"max_iter": attack.steps, "verbose": False}
        made = {
            "fgsm": lambda: FastGradientMethod(classifier, **bound),
            "ifgsm": lambda: BasicIterativeMethod(classifier, eps_step=attack.step, **bound, **steps),
            "pgd": lambda: ProjectedGradientDescent(
                classifier, eps_step=attack.step, num_random_init=1, **bound, **steps
            ),
        }
        pixels, labels = spec.fit(split.images).numpy(), split.labels.numpy()
        said = classifier.predict(pixels, batch_size)
        if np.isnan(said).any():
            raise ValueError(f"{type(model).__name__}: logits are NaN")
        before = said.argmax(1)
        adversarial, fooling = {}, {}
        state = np.random.get_state()
        try:
            for name in attacks:
                np.random.seed(seed)  # ART draws its random starts from numpy's global state
                attacked = made[name]().generate(pixels, np.eye(classes, dtype=np.float32)[labels])
                after = classifier.predict(attacked, batch_size).argmax(1)
                adversarial[name] = float((after == labels).mean())
                fooling[name] = float((after != before).mean())
        finally:
            np.random.set_state(state)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Robustness(float((before == labels).mean()), adversarial, fooling)
