"""Adversarial training and evaluation: does a student inherit its teacher's robustness? (Nayak 2021, 4.1.5)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from exml_fast import ops
from exml_fast.checks import is_count, is_number
from exml_fast.data import InputSpec, Split
from exml_fast.progress import Progress
from exml_fast.transfer.training import Attacked, Training, train_classifier

__all__ = ["ATTACKS", "Attack", "Robustness", "adversarial_training", "attack_accuracies", "pgd", "ramped"]

ATTACKS = ("fgsm", "ifgsm", "pgd")


@dataclass(frozen=True)
class Attack:
    """Bound, step and number of steps of an L∞ attack, in pixel units [0, 1].

    The paper names none; these are Madry 2018's for MNIST (CIFAR-10: 8/255, 2/255, 7).
    """

    epsilon: float = 0.3
    step: float = 0.01
    steps: int = 40

    def __post_init__(self) -> None:
        if not is_number(self.epsilon) or not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon must be in (0, 1], pixels being in [0, 1], got {self.epsilon!r}")
        if not is_number(self.step) or not 0 < self.step <= self.epsilon:
            raise ValueError(f"step must be in (0, epsilon], got {self.step!r}")
        if not is_count(self.steps):
            raise ValueError(f"steps must be a positive integer, got {self.steps!r}")


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


def ramped(attack: Attack, spec: InputSpec, steps: int, *, warmup: float = 0.3, seed: int = 0) -> Attacked:
    """``perturb(network, x, labels)``: PGD examples from random starts, for one training of ``steps`` steps.

    ε grows linearly over the first ``warmup`` of them: from the start at full size, small networks learn to give one
    constant answer. The network sees them in evaluation mode, and is in training mode afterwards.
    """
    generator = torch.Generator().manual_seed(seed)
    ramp = max(round(warmup * steps), 1)
    taken = 0

    def perturb(network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        nonlocal taken
        taken += 1
        share = min(taken / ramp, 1.0)
        grown = Attack(share * attack.epsilon, share * attack.step, attack.steps)
        start = 2 * torch.rand(x.shape, generator=generator).to(x.device) - 1
        network.eval()
        adversarial = pgd(network, x, labels, grown, spec, start)
        network.train()
        return adversarial

    return perturb


def adversarial_training(
    model: nn.Module,
    split: Split,
    spec: InputSpec,
    config: Training,
    attack: Attack,
    *,
    warmup: float = 0.3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Cross-entropy on PGD examples (Madry 2018; :func:`ramped`), in place; losses (steps,)."""
    perturb = ramped(attack, spec, config.steps, warmup=warmup, seed=seed)
    return train_classifier(model, split, spec, config, attack=perturb, seed=seed, progress=progress)


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
