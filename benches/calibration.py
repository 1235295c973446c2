"""Compares ways to make the logits of independently trained experts comparable, for ensembles and for ex-models.

There are five experts of two classes each. The accuracy is over all classes, on USPS, on Fashion-MNIST, or on training
images of MNIST that its experts have not seen, so that no choice depends on the test images of MNIST. An ensemble
predicts the class of the highest logit among all experts, after the named scaling. An ex-model is distilled from the
experts with few steps.

python benches/calibration.py --data usps --experts experts
python benches/calibration.py --data mnist --held-out 10000 --experts experts
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from measure import RESULTS, write_results
from torch import Tensor

from exml_fast.continual import (
    DistillationConfig,
    ExModelDistillation,
    Expert,
    ExpertStream,
    Procedural,
    ResponseCalibration,
    stream_accuracy,
)
from exml_fast.data import SOURCES, ImageData, Split, load
from exml_fast.reproduction.experts import experiences_of, train_experts
from exml_fast.reproduction.study_settings import Settings

IMAGES = 20000
SHARES = (0.2, 0.01, 0.001, 0.0001)
ASCENT_STEPS, ASCENT_LR, ASCENT_IMAGES = 60, 0.05, 64
QUICK = {
    "steps": 600, "batch_size": 128, "optimizer": "adam", "lr": 3e-3, "schedule": "onecycle", "lambda_ce": 0.0,
    "targets": "stored", "augmentation": {"shift": 0},
}  # fmt: skip


def own_logits(experts: list[Expert], images: Tensor) -> Tensor:
    """The logit of each class from the expert that knows the class, (N, K)."""
    found = torch.zeros(len(images), len({c for e in experts for c in e.classes}))
    for expert in experts:
        found[:, list(expert.classes)] = expert.logits(images)[:, expert.positions(expert.classes)]
    return found


def highest_reachable(experts: list[Expert]) -> Tensor:
    """The mean logit (K,) of valid images that are optimised from noise to raise it."""
    found = torch.zeros(len({c for e in experts for c in e.classes}))
    for expert in experts:
        low, high = expert.input_spec.bounds()
        for unit, column in zip(expert.classes, expert.positions(expert.classes).tolist(), strict=True):
            images = torch.randn(ASCENT_IMAGES, *expert.input_spec.shape, generator=torch.Generator().manual_seed(unit))
            images = (0.5 * images).requires_grad_()
            adam = torch.optim.Adam([images], lr=ASCENT_LR)
            for _ in range(ASCENT_STEPS):
                adam.zero_grad()
                (-expert.model(images)[:, column].sum()).backward()
                adam.step()
                with torch.no_grad():
                    images.copy_(torch.minimum(torch.maximum(images, low), high))
            found[unit] = expert.logits(images.detach())[:, column].mean()
    return found


def ensembles(experts: list[Expert], data: ImageData) -> list[dict[str, object]]:
    logits = own_logits(experts, data.spec.prepare(data.test.images))

    def row(what: str, source: str, scaled: Tensor) -> dict[str, object]:
        accuracy = 100 * float((scaled.argmax(1) == data.test.labels).double().mean())
        print(f"ensemble  {what:44} {source:16} {accuracy:5.1f} %", flush=True)
        return {"kind": "ensemble", "what": what, "source": source, "accuracy": round(accuracy, 2)}

    rows = [row("as they are", "", logits)]
    for name, source in SOURCES.items():
        responses = own_logits(experts, source().draw(IMAGES, data.spec, torch.Generator().manual_seed(0)))
        mean, deviation = responses.mean(0), responses.std(0)
        rows += [row("minus mean", name, logits - mean), row("standardised", name, (logits - mean) / deviation)]
        for share in SHARES:
            highest = responses.topk(round(share * IMAGES), 0).values.mean(0)
            rows.append(row(f"over the mean of the highest {100 * share:g} %", name, logits / highest))
    rows.append(row("over the highest that ascent reaches", "ascent", logits / highest_reachable(experts)))
    own = own_logits(experts, data.spec.prepare(data.train.images))
    real = torch.stack([own[data.train.labels == c, c].mean() for c in data.classes])
    rows.append(row("over the mean of the class's real images", "(real data)", logits / real))
    return rows


def ex_models(stream: ExpertStream, data: ImageData, seed: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, source in SOURCES.items():
        for what, calibrated, loss, ce in (
            ("logits as they are, MSE", False, "mse", 0.0), ("calibrated, MSE", True, "mse", 0.0),
            ("calibrated, KL", True, "kl", 0.0), ("calibrated, KL, cross-entropy on the labels", True, "kl", 1.0),
        ):  # fmt: skip
            config = DistillationConfig.from_dict({**QUICK, "loss": loss, "lambda_ce": ce})
            calibration = ResponseCalibration(source()) if calibrated else None
            method = ExModelDistillation(Procedural(source()), config, seed=seed, calibration=calibration)
            accuracy = 100 * stream_accuracy(method.run(stream).expert, data, stream.experiences)
            print(f"ex-model  {what:44} {name:16} {accuracy:5.1f} %", flush=True)
            rows.append({"kind": "ex-model", "what": what, "source": name, "accuracy": round(accuracy, 2)})
    return rows


def held_out(data: ImageData, count: int) -> ImageData:
    """The data set with its last ``count`` training images as the test set, and the others as the training set."""
    if not count:
        return data
    images, labels = data.train.images, data.train.labels
    train, test = Split(images[:-count], labels[:-count]), Split(images[-count:], labels[-count:])
    return dataclasses.replace(data, name=f"{data.name}-held-out", train=train, test=test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="usps")
    parser.add_argument("--data-root")
    parser.add_argument(
        "--experts", type=Path, required=True, help="Folder of the experts; missing experts are trained."
    )
    parser.add_argument(
        "--held-out", type=int, default=0, help="Number of training images that replace the test images."
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ensembles", action="store_true", help="Skip the ex-models, which take minutes.")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = held_out(load(arguments.data, arguments.data_root), arguments.held_out)
    settings = Settings(data=arguments.data)
    # The folder depends on the split and the seed: experts of another split may have seen the test images.
    folder = arguments.experts / f"{data.name}-{arguments.held_out}-{arguments.seed}"
    experiences = experiences_of(data, settings, arguments.seed)
    stream = train_experts(experiences, folder, settings.resolved_experts(), seed=arguments.seed)
    rows = ensembles(list(stream), data)
    if not arguments.ensembles:
        rows += ex_models(stream, data, arguments.seed)
    write_results(arguments.json or RESULTS / f"calibration-{data.name}.json", rows)


if __name__ == "__main__":
    main()
