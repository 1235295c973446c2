"""FrozenTeacher on a hundred architectures: how each is fused, whether it computes the same, and what a step gains.

    python benches/architectures.py                      # all; those that are done are skipped
    python benches/architectures.py --only resnet18 --again
    python benches/architectures.py --collect            # only writes the results

Weights are random, images small. BatchNorms take their running statistics from a few batches of noise. A step is the
gradient of cross-entropy and BatchNorm statistics with respect to a batch of images. It is timed against
exml_fast.engine.EagerTeacher: the unchanged layers in float32, weights frozen, statistics by torch.var_mean in hooks.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from measure import RESULTS, interleaved, write_results
from torch import Tensor, nn

import exml_fast as xf
from exml_fast.engine import EagerTeacher
from exml_fast.engine.statistics import bn_layers
from exml_fast.reproduction.provenance import provenance
from exml_fast.storage import load_json, save_json

TORCHVISION = """
alexnet densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 mnasnet0_5 mobilenet_v2
mobilenet_v3_small mobilenet_v3_large regnet_x_400mf regnet_y_400mf resnet18 resnet34 resnet50 resnext50_32x4d
wide_resnet50_2 shufflenet_v2_x0_5 squeezenet1_0 squeezenet1_1 vgg11 vgg11_bn vgg16_bn convnext_tiny swin_t
swin_v2_t vit_b_16 maxvit_t
"""
TIMM = """
bat_resnext26ts beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_tiny coatnet_nano_rw_224 convit_tiny
convmixer_768_32 convnext_atto convnextv2_atto crossvit_tiny_240 cs3darknet_s cspdarknet53 cspresnet50 darknet53
davit_tiny deit_tiny_patch16_224 densenet121 dla34 dm_nfnet_f0 dpn48b ecaresnet26t edgenext_xx_small
efficientformer_l1 efficientnet_b0 efficientnet_lite0 efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw fastvit_t8
fbnetc_100 fbnetv3_b focalnet_tiny_srf gcresnet50t gcvit_xxtiny gernet_s gernet_m ghostnet_050 ghostnetv2_100
gmixer_24_224 halonet26t hardcorenas_a haloregnetz_b hgnet_tiny hrnet_w18_small inception_resnet_v2 inception_v4
lambda_resnet26t lcnet_035 legacy_seresnet18 levit_128s maxvit_rmlp_pico_rw_256 mixer_s32_224 mixnet_s mnasnet_100
mobilenetv2_035 mobilenetv3_small_050 mobilenetv3_large_100 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs
mobilevitv2_050 mvitv2_tiny nf_regnet_b0 nf_resnet26 nfnet_l0 pit_ti_224 pnasnet5large poolformer_s12 pvt_v2_b0
regnetx_002 regnety_002 regnetz_b16 regnetv_040 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resmlp_12_224
resnest14d resnet10t resnet26 resnet50d resnetblur50 resnetrs50 resnetv2_50 resnext26ts rexnet_100 selecsls42
semnasnet_050 seresnet33ts skresnet18 spnasnet_100 swin_tiny_patch4_window7_224 swiftformer_xs tf_efficientnet_b0
tf_efficientnet_lite0 tf_efficientnetv2_b0 tf_mixnet_s tf_mobilenetv3_small_100 tinynet_e tiny_vit_5m_224 tresnet_m
vgg11_bn visformer_tiny vit_tiny_patch16_224 vovnet39a xception41 xcit_nano_12_p16_224 starnet_s1 rdnet_tiny
"""

CLASSES, BATCH, ROUNDS = 10, 4, 7
SIZES = (64, 128, 224, 240, 256, 299)
WAYS = {"torch.fx": "fused", "torch.export": "fused by torch.export", "without tracing": "layers alone"}


def made(name: str) -> tuple[nn.Module, xf.InputSpec]:
    """A network with random weights, and the smallest of SIZES that it takes."""
    torch.manual_seed(0)
    library, architecture = name.split("/")
    if library == "timm":
        network = timm.create_model(architecture, num_classes=CLASSES)
    else:
        aux = {"aux_logits": False, "init_weights": True} if architecture in ("googlenet", "inception_v3") else {}
        network = torchvision.models.get_model(architecture, num_classes=CLASSES, **aux)
    network.eval()
    for size in SIZES:
        spec = xf.InputSpec(3, (size, size), (0.5,) * 3, (0.5,) * 3)
        try:
            with torch.no_grad():
                logits = network(torch.randn(BATCH, *spec.shape))
        except (RuntimeError, AssertionError, ValueError, IndexError):
            continue
        if logits.shape == (BATCH, CLASSES):
            if not logits.std(0).any():  # a final layer of zeros, as some transformers have at first
                for layer in network.modules():
                    if isinstance(layer, nn.Linear) and layer.out_features == CLASSES:
                        nn.init.normal_(layer.weight, std=0.1)
            calibrate(network, spec)
            return network, spec
    raise ValueError(f"{name} takes images of none of the sizes {SIZES}")


def calibrate(network: nn.Module, spec: xf.InputSpec) -> None:
    """Running statistics from noise: those of random weights let signals vanish."""
    norms = [layer for _, layer in bn_layers(network)]
    for layer in norms:
        layer.train()
        layer.momentum = 0.5
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(BATCH, *spec.shape))
    network.eval()


def step_of(teacher: Any, images: Tensor, labels: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """Gradient and logits of a step."""

    def step() -> tuple[Tensor, Tensor]:
        x = images.clone().requires_grad_()
        logits, layers = teacher(x)
        loss = F.cross_entropy(logits, labels)
        for layer in layers:
            loss = loss + 0.01 * ((layer.mean - layer.target_mean).norm() + (layer.var - layer.target_var).norm())
        return torch.autograd.grad(loss, x)[0], logits.detach()

    return step


def measured(name: str) -> dict[str, Any]:
    """The row of an architecture."""
    network, spec = made(name)
    images, labels = torch.randn(BATCH, *spec.shape), torch.arange(BATCH) % CLASSES
    teachers: dict[str, Any] = {"eager": EagerTeacher(network, spec)}
    begun = time.monotonic()
    for precision in ("float32", "bfloat16"):
        teachers[precision] = xf.FrozenTeacher(network, spec, precision=precision, batch_size=BATCH)
    row: dict[str, Any] = {
        "architecture": name, "size": spec.size[0], "batch": BATCH, "way": WAYS[teachers["float32"].way],
        "parameters": sum(p.numel() for p in network.parameters()), "calls": teachers["float32"].matched_calls,
        "set_up_seconds": time.monotonic() - begun, "bfloat16_runs_in": teachers["bfloat16"].precision,
        "summary": teachers["bfloat16"].summary(),
    }  # fmt: skip
    steps = {key: step_of(teacher, images, labels) for key, teacher in teachers.items()}
    expected, logits = steps["eager"]()
    row["calls_are_all"] = all(len(t(images)[1]) == row["calls"] for t in teachers.values())
    for precision in ("float32", "bfloat16"):
        found, others = steps[precision]()
        row[f"logits_{precision}"] = float((others - logits).abs().max() / logits.abs().max())
        row[f"cosine_{precision}"] = float(F.cosine_similarity(found.flatten(), expected.flatten(), dim=0))
        row[f"norm_{precision}"] = float(found.norm() / expected.norm())
    times = interleaved(steps, rounds=ROUNDS, warmup=2)
    for key, timing in times.items():
        row[f"{key}_ms"] = {"median": timing.median, "low": timing.low, "high": timing.high}
        if key != "eager":
            row[f"gain_{key}"] = times["eager"].median / timing.median
    if lost := [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise RuntimeError(f"{', '.join(lost)} not finite")
    return row


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names, as resnet18")
    parser.add_argument("--again", action="store_true", help="also those that are done")
    parser.add_argument("--folder", type=Path, default=Path("architectures"), help="of a file for each that is done")
    parser.add_argument("--collect", action="store_true", help="run nothing; write the results of --folder")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    names = [f"torchvision/{name}" for name in TORCHVISION.split()] + [f"timm/{name}" for name in TIMM.split()]
    commit = str(provenance()["commit"])
    for name in names:
        path = args.folder / f"{name.replace('/', '-')}.json"
        if args.collect or (args.only and name.split("/")[1] not in args.only) or (path.exists() and not args.again):
            continue
        try:
            row = measured(name)
        except Exception as failure:  # a row that says so
            row = {"architecture": name, "way": "refused", "error": f"{type(failure).__name__}: {failure}"[:400]}
        save_json(path, row | {"commit": commit, "threads": args.threads})
        gain = max(row.get("gain_float32", 0), row.get("gain_bfloat16", 0))
        print(f"{name}: {row['way']}, {gain:.2f}x {row.get('error', '')}", flush=True)
    rows = [load_json(path) for name in names if (path := args.folder / f"{name.replace('/', '-')}.json").exists()]
    if args.collect:
        write_results(RESULTS / "architectures-cpu.json", rows)


if __name__ == "__main__":
    main()
