from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import SMALL, assert_resumes, assert_seed_decides, network, same, state
from torch import Tensor, nn

import exml_fast as xf
from exml_fast.data import InputSpec, load
from exml_fast.evaluation import accuracy
from exml_fast.generators import Delegation, Delegator, Generator
from exml_fast.generators.exploration import Exploration, Images, Imitation, TaughtFeatures
from exml_fast.training import Rounded, final_features

SHORT: dict[str, Any] = {
    "steps": 4, "imitations": 2, "batch_size": 8, "latent_size": 5, "width": 2, "precision": "float32", "decay_every": 2
}  # fmt: skip


NAMES = ("lambda_exp", "category", "diversity", "features")


def classifier(seed: int = 0, outputs: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 5, 3, 2), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(45, outputs))


@pytest.fixture
def given() -> nn.Module:
    model = classifier().train()
    for _ in range(20):
        model(torch.randn(16, *SMALL.shape) + 0.3)
    return model.eval()


def run(teacher: nn.Module, student: nn.Module | None = None, **changes: Any) -> Delegation:
    return xf.delegate(teacher, student, **({"spec": SMALL} | SHORT | changes))


def test_a_round_is_algorithm_1(given: nn.Module) -> None:
    """The same networks, latents and steps in plain PyTorch give the same weights."""
    start = Generator.create("upsampling", SMALL, latent_size=5, width=2, seed=3)
    student = classifier(7)
    weights = {"lambda_exp": 0.7, "category": 0.5, "diversity": 2.0, "features": 0.3}
    result = run(given, student, generator=start, steps=2, lr=0.05, generator_lr=0.01, decay_every=1, **weights)

    taught, images_of = copy.deepcopy(student).train(), copy.deepcopy(start.network).train()
    taught[-1].load_state_dict(given[-1].state_dict())
    learned = [p for layer in taught[:-1] for p in layer.parameters()]
    sgd = torch.optim.SGD(learned, 0.05, momentum=0.9, weight_decay=5e-4)
    adam = torch.optim.Adam(images_of.parameters(), 0.01)
    latents = torch.Generator().manual_seed(0)
    for turn in range(6):
        sgd.param_groups[0]["lr"], adam.param_groups[0]["lr"] = 0.05 * 0.1 ** (turn // 3), 0.01 * 0.1 ** (turn // 3)
        images = images_of(torch.randn(8, 16, generator=latents)[:, :5])
        if turn % 3 < 2:
            images = images.detach()
        inputs = given[0](images)
        wanted, found = given[:-1](images), taught[:-1](images)
        unit = [f / f.norm(dim=1, keepdim=True) for f in (wanted, found)]
        imitation = (1 - (unit[0] * unit[1]).sum(1)).mean()
        sgd.zero_grad()
        mine = torch.autograd.grad(imitation, learned, retain_graph=True)
        if turn % 3 == 2:
            probabilities = given(images).softmax(1)
            category = -probabilities.max(1).values.log().mean()
            mean = probabilities.mean(0)
            diversity = (mean * mean.log()).sum()
            var, mu = torch.var_mean(inputs, (0, 2, 3), correction=0)
            features = (mu - given[1].running_mean).norm() + (var - given[1].running_var).norm()
            explore = -0.7 * imitation + 0.5 * category + 2.0 * diversity + 0.3 * features
            for p, grad in zip(
                images_of.parameters(), torch.autograd.grad(explore, [*images_of.parameters()]), strict=True
            ):
                p.grad = grad
            adam.step()
        for p, grad in zip(learned, mine, strict=True):
            p.grad = grad
        sgd.step()

    for name, weight in taught.state_dict().items():
        assert torch.allclose(result.model.state_dict()[name].float(), weight.float(), atol=1e-4), name
    made = dict(result.generator.network.named_parameters())
    for name, weight in images_of.named_parameters():
        assert torch.allclose(made[name], weight, atol=1e-4), name
    assert math.isclose(result.history["features"][-1], features.item(), rel_tol=0.5)


@pytest.mark.parametrize("changed", ["lambda_exp", "category", "diversity", "features"])
def test_every_loss_is_switched_by_its_weight(given: nn.Module, changed: str) -> None:
    """Eq. 8: the gradient of the generator is the sum of the gradients of the weighted losses."""

    def gradients(**weights: float) -> list[Tensor]:
        config = Delegator().replace(**(dict.fromkeys(NAMES, 0.0) | weights))
        knowledge = TaughtFeatures(given, SMALL, torch.device("cpu"), "float32", 8)
        student = Rounded(classifier(1), "float32")
        images = torch.randn(8, *SMALL.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        losses = Imitation(knowledge, config.loss, config.loss.features or 0.0, 3)
        with final_features(student.model) as losses.student_features:
            terms = losses(student, Images(images, True))
        weight = student.model[0].weight
        grads = torch.autograd.grad(terms["loss"], [images, weight], allow_unused=True)
        assert not weights or grads[0] is not None
        return [torch.zeros_like(images) if grads[0] is None else grads[0], grads[1]]

    everything_else = {name: 0.5 for name in NAMES if name != changed}
    one, others = gradients(**{changed: 2.0}), gradients(**everything_else)
    both = gradients(**everything_else, **{changed: 2.0})
    assert one[0].abs().max() > 0
    assert torch.allclose(both[0], one[0] + others[0], atol=1e-6)
    assert torch.allclose(both[1], one[1], atol=1e-6), "the student's gradient is that of the imitation alone"


def test_the_student_learns_the_digits_and_the_generator_holds_them(
    digits_teacher: tuple[nn.Module, InputSpec], tmp_path: Path
) -> None:
    teacher, spec = digits_teacher
    data, before, told = load("digits"), state(teacher), []
    result = xf.delegate(
        teacher, spec=spec, steps=24, batch_size=64, latent_size=16, width=8, decay_every=12, precision="float32",
        evaluate=lambda model: accuracy(model, data.test, spec), evaluate_every=16,
        progress=lambda stage, step, steps, terms: told.append((stage, step, steps)),
    )  # fmt: skip
    assert same(before, state(teacher))
    assert accuracy(result.model, data.test, spec) > 0.8 and not result.model.training
    assert [at for at, _ in result.evaluations] == [16, 24] and result.evaluations[-1][1] > 0.8
    assert told == [("delegate", step, 24) for step in (8, 16, 24)] and result.history["step"] == [8, 16, 24]
    assert result.history["imitation"][-1] < result.history["imitation"][0]
    assert all(len(values) == 3 for values in result.history.values()) and result.peak_mb > 0
    assert torch.equal(result.model[-1].weight, teacher[-1].weight)
    assert all(p.requires_grad for p in result.model.parameters())
    images = result.generator.sample(256)
    assert images.mean().abs() < 0.2 and abs(images.std() - 1) < 0.2
    with torch.no_grad():
        assert teacher(images).argmax(1).unique().numel() >= 8
    card = result.generator.save(tmp_path)
    assert card.classes == tuple(range(10)) and card.training["settings"]["training"]["steps"] == 24
    assert json.dumps(card.to_dict())
    assert torch.equal(Generator.load(tmp_path).sample(4), result.generator.sample(4))


def test_resumes_bit_for_bit(given: nn.Module, tmp_path: Path) -> None:
    def resumable(**options: Any) -> Delegation:
        return run(given, steps=40, **options)

    assert_resumes(resumable, tmp_path, 16)
    made = [resumable().generator.fingerprint() for _ in range(2)]
    assert made[0] == made[1]


def test_a_resumed_generator_has_the_same_bits(given: nn.Module, tmp_path: Path) -> None:
    def interrupt(_stage: str, step: int, *_: object) -> None:
        if step == 16:
            raise KeyboardInterrupt

    found: list[int] = []

    def evaluated(**options: Any) -> Delegation:
        return run(given, steps=40, evaluate=lambda _: found.append(1), evaluate_every=8, **options)

    with pytest.raises(KeyboardInterrupt):
        evaluated(checkpoint_dir=tmp_path, progress=interrupt)
    resumed = evaluated(checkpoint_dir=tmp_path)
    assert len(found) == 5, "no evaluation is made twice"
    assert resumed.generator.fingerprint() == evaluated().generator.fingerprint()
    assert [at for at, _ in resumed.evaluations] == [8, 16, 24, 32, 40]


def test_another_run_is_refused(given: nn.Module, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(given, steps=40, checkpoint_dir=tmp_path, progress=interrupt)
    with pytest.raises(ValueError, match="belongs to another run"):
        run(given, steps=40, checkpoint_dir=tmp_path, lambda_exp=2.0)


def test_seed_decides(given: nn.Module) -> None:
    student = classifier(2)
    assert_seed_decides(lambda seed: run(given, seed=seed), given)
    assert_seed_decides(lambda seed: run(given, student, seed=seed), given, student)


def test_fine_tuning_starts_from_the_generator(given: nn.Module) -> None:
    first = run(given).generator
    before = state(first.network)
    more = classifier(4, outputs=6).eval()
    second = run(more, generator=first, generator_lr=1e-8).generator
    assert same(before, state(first.network)) and second.classes == tuple(range(6)) and first.classes == tuple(range(4))
    for name, weight in first.network.named_parameters():
        assert torch.allclose(weight, dict(second.network.named_parameters())[name], atol=1e-5)


def test_a_generator_that_does_not_fit_is_named(given: nn.Module) -> None:
    first = run(given).generator
    with pytest.raises(
        ValueError, match=r"generator holds the knowledge of 4 classes, of which the teacher lacks \[3\]"
    ):
        run(classifier(outputs=3).eval(), generator=first)
    other = Generator.create("upsampling", InputSpec(1, (12, 12), (0.5,), (0.2,)))
    with pytest.raises(ValueError, match="generator must be a generator of images of"):
        run(given, generator=other)
    with pytest.raises(ValueError, match="generator must be a Generator, got 'Sequential'"):
        run(given, generator=given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_size": 0}, "latent_size must be at least 1, got 0"),
        ({"imitations": 0}, "imitations must be at least 1"),
        ({"lambda_exp": -1.0}, "lambda_exp must be at least 0"),
        ({"moment": "mean"}, "moment must be one of"),
        ({"lamda_exp": 1.0}, "unknown field 'lamda_exp'.*did you mean 'lambda_exp'"),
        ({"architecture": "mine"}, "architecture must be one of upsampling, deconvolution"),
        ({"architecture": "deconvolution"}, "both positive multiples of 16"),
        ({"evaluate_every": 0}, "evaluate_every must be a positive integer"),
        ({"spec": None}, "cannot read an input specification"),
    ],
)
def test_bad_settings_are_named(given: nn.Module, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(given, **changes)


def test_bad_networks_are_named(given: nn.Module) -> None:
    with pytest.raises(ValueError, match="student must have the teacher's final linear layer, 45 to 4, got 45 to 3"):
        run(given, classifier(outputs=3))
    with pytest.raises(ValueError, match=r"student must be a torch.nn.Module, got 'int'"):
        run(given, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"executes no nn.Linear"):
        run(nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten()).eval())

    class Own(nn.Linear):
        reset_parameters = None  # type: ignore[assignment]

        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.weight, self.bias = nn.Parameter(torch.ones(4, 45)), None

    own = nn.Sequential(*copy.deepcopy(given)[:-1], Own()).eval()
    with pytest.raises(ValueError, match=r"student must be given: layer '4' .Own. has no reset_parameters"):
        run(own)


def test_a_teacher_without_batch_norm(given: nn.Module) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 4)).eval()
    with pytest.warns(
        UserWarning, match="Sequential has no BatchNorm, so the generator is trained without the feature"
    ):
        result = run(plain)
    assert set(result.history["features"]) == {0.0}
    run(plain, features=0.0)  # silent
    with pytest.raises(ValueError, match=r"features must be 0 for a teacher without BatchNorm, got 0.5"):
        run(plain, features=0.5)


def test_a_diverged_run_is_named_and_keeps_its_checkpoint(given: nn.Module, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 60, "generator_lr": 1e30, "checkpoint_dir": tmp_path, "lambda_exp": 1e30}
    with pytest.raises(RuntimeError, match=r"delegate: the loss is .* at step \d+; lower lr"):
        run(given, **options)
    broken = copy.deepcopy(given)
    nn.init.constant_(broken[0].bias, math.nan)
    with pytest.raises((RuntimeError, ValueError), match=r"the loss is nan|finite|nan"):
        run(broken)


def test_precision_and_a_network_with_dropout() -> None:
    teacher = network().eval()
    result = run(teacher, precision="bfloat16", steps=2)
    assert all(p.dtype == torch.float32 for p in result.model.parameters())
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in result.model.parameters())
    assert result.generator.sample(3).dtype == torch.float32


def test_augmentation_changes_the_images_of_the_imitations_only() -> None:
    config = Delegator().replace(steps=2, batch_size=4, imitations=1, augmentation={"shift": 2}, precision="float32")
    made = Generator.create("upsampling", SMALL, latent_size=3, width=2)
    latents = torch.Generator().manual_seed(0)
    source = Exploration(
        made.network.train(), 3, config.student_training(), config.generator_training(), config.round_steps, SMALL,
        latents, torch.device("cpu"), "float32",
    )  # fmt: skip
    batches = list(source.block(0, 2))
    assert [batch.explores for batch in batches] == [False, True]
    assert batches[1].images.requires_grad and not batches[0].images.requires_grad


def test_settings() -> None:
    config = Delegator()
    assert (config.training.lr, config.generator_lr, config.training.batch_size, config.imitations) == (
        0.1,
        1e-3,
        256,
        5,
    )
    assert config.round_steps == 6 and config.student_training().steps == 6 * config.training.steps
    assert config.generator_training().optimizer == "adam"
    assert config.generator_training().rate(6 * 5000) == pytest.approx(1e-4)
    assert Delegator(**config.to_dict()) == config
