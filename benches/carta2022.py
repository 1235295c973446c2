"""Table 2 of Carta 2022 on MNIST: the strategies and the baselines, on the same experts, several seeds.

    python benches/carta2022.py --data-root DATA      # writes benches/results/carta2022-table2.json

Experts are trained with the paper's hyper-parameters (App. A: SGD, momentum 0.9, weight decay 5e-4, batch 32, lr 0.01,
20 epochs for new classes, 100 for joint) into the work folder and reused from there; every finished cell is kept there
too, so that a run that was interrupted continues. What differs from the paper's generation and distillation is in each
row's note.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, write_results

import exml_fast as xf
from exml_fast.continual import (
    EnsembleAverage,
    MinEntropy,
    Oracle,
    ParameterAverage,
    experience_accuracies,
    joint,
    new_classes,
    stream_accuracy,
)
from exml_fast.data import load
from exml_fast.storage import load_json, save_json

# The paper's means (Table 2); it gives no ensembles for joint.
PAPER = {
    "Joint/Oracle": 93.71,
    "Joint/Model Inversion ED": 93.09,
    "Joint/Data Impression ED": 92.12,
    "Joint/Aux. Data ED": 89.35,
    "NC/Oracle": 99.42,
    "NC/Ensemble Avg.": 33.40,
    "NC/Min. Entropy": 39.41,
    "NC/Param. Avg.": 20.11,
    "NC/Model Inversion ED": 43.23,
    "NC/Data Impression ED": 36.05,
    "NC/Aux. Data ED": 35.48,
}
BASELINES = {
    "Oracle": Oracle,
    "Ensemble Avg.": EnsembleAverage,
    "Min. Entropy": MinEntropy,
    "Param. Avg.": ParameterAverage,
}
EPOCHS = {"Joint": 100, "NC": 20}
# Quick: Adam with a one-cycle rate needs a twentieth of the paper's 30,000 steps of plain SGD for each expert.
QUICK = xf.DistillationConfig(iterations=1500, optimizer="adam", lr=3e-3, schedule="onecycle", combine="per_unit")
PAPERS = xf.DistillationConfig(combine="per_unit")
NOTES = {
    "quick": "inversion stops an image at p > 0.99; distillation 1500 Adam steps an expert, one-cycle to 3e-3, "
    "instead of 30,000 SGD steps at 0.01; Eq. 8 per unit",
    "paper": "inversion stops an image at p > 0.99; Eq. 8 per unit; otherwise App. B.1",
}


def strategies(auxiliary: torch.Tensor) -> dict[str, Any]:
    stop = {"stop_confidence": 0.99}
    return {
        "Model Inversion ED": xf.ModelInversion("model_inversion/mnist", **stop),
        "Data Impression ED": xf.DataImpression("data_impressions/mnist", **stop),
        "Aux. Data ED": xf.AuxiliaryData(auxiliary, "fashion-mnist"),
    }


def experts(data: Any, scenario: str, seed: int, work: Path) -> xf.ExpertStream:
    folder = work / "experts" / scenario / f"seed{seed}"
    wanted = joint(data) if scenario == "Joint" else new_classes(data)
    if not (folder / f"expert_{len(wanted):02d}" / "card.json").exists():
        xf.train_stream(data, wanted, folder, seed=seed, epochs=EPOCHS[scenario], lr=0.01)
    return xf.ExpertStream(folder)


def cell(name: str, scenario: str, seed: int, settings: str, data: Any, auxiliary: torch.Tensor, work: Path) -> Any:
    """One strategy or baseline, one seed: accuracies in per cent and seconds."""
    path = work / "cells" / settings / scenario / f"{name.replace(' ', '_').replace('.', '')}-{seed}.json"
    if path.exists():
        return load_json(path)
    stream = experts(data, scenario, seed, work)
    started = time.perf_counter()
    if name in BASELINES:
        predictor = BASELINES[name](stream)
        seconds: dict[str, float] = {}
    else:
        config = QUICK if settings == "quick" else PAPERS
        run = xf.ExModelDistillation(strategies(auxiliary)[name], config, seed=seed)
        result = run.run(stream, checkpoint_dir=path.with_suffix(".checkpoint"))
        predictor = result.expert
        seconds = {key: round(sum(s[key] for s in result.seconds), 1) for key in ("generate", "distil")}
    found = {
        "accuracy": 100 * stream_accuracy(predictor, data, stream.experiences),
        "experiences": [100 * a for a in experience_accuracies(predictor, data, stream.experiences)],
        "seconds": seconds or {"predict": round(time.perf_counter() - started, 1)},
    }
    save_json(path, found)
    print(scenario, name, seed, f"{found['accuracy']:.2f}", found["seconds"], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="where torchvision finds (or puts) MNIST and Fashion-MNIST")
    parser.add_argument("--work", type=Path, default=Path("runs/carta2022"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", choices=["quick", "paper"], default="quick")
    parser.add_argument("--rows", nargs="*", help="cells, e.g. 'NC/Model Inversion ED'; all when absent")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load("mnist", root=arguments.data_root)
    auxiliary = load("fashion-mnist", root=arguments.data_root).train.images
    rows = []
    for name, paper in PAPER.items():
        if arguments.rows and name not in arguments.rows:
            continue
        scenario, method = name.split("/", 1)
        settings = "baseline" if method in BASELINES else arguments.settings
        runs = [cell(method, scenario, s, settings, data, auxiliary, arguments.work) for s in range(arguments.seeds)]
        accuracies = [run["accuracy"] for run in runs]
        row = {
            "cell": f"MNIST/{name}",
            "paper": paper,
            "ours": round(statistics.mean(accuracies), 2),
            "std": round(statistics.stdev(accuracies), 2) if len(accuracies) > 1 else None,
            "seeds": arguments.seeds,
            "accuracies": [round(a, 2) for a in accuracies],
            "experiences": [[round(a, 2) for a in run["experiences"]] for run in runs],
            "seconds": [run["seconds"] for run in runs],
            "reduced": settings == "quick",
        }
        if settings in NOTES:
            row["note"] = NOTES[settings]
        rows.append(row)
    write_results(RESULTS / "carta2022-table2.json", rows)
    for row in rows:
        print(f"{row['cell']:30} paper {row['paper']:6.2f}  ours {row['ours']:6.2f} ± {row['std']}")


if __name__ == "__main__":
    main()
