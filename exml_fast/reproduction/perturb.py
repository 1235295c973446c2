"""Universal adversarial perturbations: Table 7 of Nayak 2021."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exml_fast.data import InputSpec, Split
from exml_fast.evaluation import accuracy, logits
from exml_fast.reproduction.lab import CLASS_IMPRESSIONS, Lab, first_images
from exml_fast.reproduction.lab_settings import (
    ImpressionsTable,
    PerturbationTable,
    TeacherTable,
)
from exml_fast.reproduction.outcome import Context, Outcome
from exml_fast.reproduction.preset import Preset
from exml_fast.storage import save_tensors
from exml_fast.transfer.perturbation import (
    PerturbationGenerator,
    fooling_rate,
    perturbed,
    universal_perturbations,
)
from exml_fast.transfer.robustness import Attack, pgd
from exml_fast.validation import settings

__all__ = ["Perturb", "require_size", "run"]

BY_BOUND = "Fooling rate by the bound of the perturbations"


@settings
class Perturb:
    """A preset of task "perturb"."""

    data: str
    teacher: TeacherTable
    impressions: ImpressionsTable
    perturbation: PerturbationTable


def run(preset: Preset, context: Context) -> Outcome:
    """Table 7, with Class Impressions beside, and yardsticks; ``epsilons`` adds the same for other bounds.

    Random signs of size ε say what any noise of that size does; PGD made for each image alone with the same ε, what no
    perturbation common to all can be expected to exceed; ``real_images``, what the same generator reaches that is
    trained on the training images.
    """
    lab = Lab(preset, Perturb, context)
    table = lab.settings.perturbation
    bound, clamp, number = table.epsilon, table.clamp, table.samples
    bounds = sorted({bound, *table.epsilons})
    teacher, test = lab.teacher(), lab.data.test
    lab.percent("Accuracy", accuracy(teacher, test, lab.spec))
    made = {"Ours": lab.impressions(teacher).images}
    if table.class_impressions:
        made["AAA"] = lab.impressions(teacher, "class impressions", **CLASS_IMPRESSIONS).images
    if table.real_images:
        made["Real images"] = lab.spec.prepare(lab.data.train.images)

    def trained(images: Tensor, epsilon: float) -> Tensor:
        with lab.stage("perturbations"):
            generator = universal_perturbations(
                teacher, images, spec=lab.spec, epsilon=epsilon, config=table.training,
                diversity=table.diversity, clamp=clamp, seed=context.seed, progress=context.progress,
            ).model  # fmt: skip
        assert isinstance(generator, PerturbationGenerator)
        return generator.sample(number, context.seed).cpu()

    rates: dict[str, list[tuple[float, float]]] = {}
    for epsilon in bounds:
        drawn = {name: trained(images, epsilon) for name, images in made.items()}
        if epsilon == bound:
            save_tensors(context.folder / "perturbations.safetensors", {"perturbations": drawn["Ours"]})
            flat = (0.5 + drawn["Ours"] * torch.tensor(lab.spec.std)[:, None, None] / (2 * epsilon)).clamp(0, 1)
            lab.outcome.samples["Perturbations, ±ε drawn as white and black"] = (flat, -1 - torch.arange(number))
            x = test.normalized(lab.spec, slice(0, number))
            pixels = perturbed(x, drawn["Ours"][: len(x)], lab.spec, clamp)
            lab.outcome.samples["Perturbed test images"] = (
                lab.spec.denormalize(pixels).clamp(0, 1),
                test.labels[: len(x)],
            )
        noise = torch.Generator().manual_seed(context.seed)
        signs = 2.0 * torch.randint(0, 2, (number, *lab.spec.shape), generator=noise) - 1
        drawn["Random signs"] = epsilon * signs / torch.tensor(lab.spec.std)[:, None, None]
        found = {
            name: float(fooling_rate(teacher, perturbations, test, lab.spec, clamp=clamp).mean())
            for name, perturbations in drawn.items()
        }
        found["PGD for each image"] = individual_rate(teacher, first_images(test, 2000), lab.spec, epsilon, clamp)
        for name, share in found.items():
            lab.percent(name if epsilon == bound else f"{name} at ε = {epsilon:g}", share)
            rates.setdefault(name, []).append((epsilon, 100 * share))
    if len(bounds) > 1:
        lab.outcome.lines[BY_BOUND] = rates
        lab.outcome.axes[BY_BOUND] = ("ε, pixels being in [0, 1]", "fooling rate, %")
    return lab.outcome


def individual_rate(model: nn.Module, split: Split, spec: InputSpec, epsilon: float, clamp: bool = True) -> float:
    """Share of images whose predicted class PGD of 40 steps, made for the image alone, changes."""
    attack, changed = Attack(epsilon, epsilon / 10, 40), 0
    device = next(model.parameters()).device
    for x, _ in split.batches(spec):
        said = logits(model, x, len(x)).argmax(1)
        attacked = pgd(model, x.to(device), said.to(device), attack, spec, clamp=clamp)
        changed += int((logits(model, attacked.cpu(), len(x)).argmax(1) != said).sum())
    return changed / len(split)


def require_size(lab: Lab) -> None:
    """ValueError for images that the generator cannot make."""
    PerturbationGenerator(lab.spec, lab.settings.perturbation.epsilon)
