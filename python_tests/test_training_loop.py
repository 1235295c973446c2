"""The loop against steps by hand; what a seed decides; bit-exact resume; what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_experts import quadrants
from small_training import (
    QUICK,
    SMALL,
    SPEC,
    assert_resumes,
    assert_seed_decides,
    everything,
    network,
    same,
    state,
    trained_lenet,
    unchanged,
)
from torch import Tensor, nn

from exml_fast.data import Augmentation, ImageData, InputSpec, Split
from exml_fast.evaluation import accuracy
from exml_fast.models import create
from exml_fast.training import Batch, ImageBatches, Loop, Training, final_features, seeded, train, train_classifier

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> ImageData:
    return quadrants()


@pytest.fixture(scope="module")
def split() -> Split:
    images = torch.randint(0, 256, (40, *SMALL.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(40) % 4)


def batches_of(split: Split, config: Training, seed: int = 0) -> ImageBatches:
    generator = torch.Generator().manual_seed(seed)
    return ImageBatches(SMALL.prepare(split.images), split.labels, config, SMALL, generator, CPU)


def cross_entropy(network: nn.Module, batch: Batch) -> Tensor:
    assert batch.labels is not None
    return F.cross_entropy(network(batch.images), batch.labels)


def test_training_lowers_the_loss_and_is_reproducible(data: ImageData) -> None:
    teacher = trained_lenet()
    assert accuracy(teacher, data.test, SPEC) > 0.9 and not teacher.training
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        model = create("lenet5", num_classes=4)
        torch.rand(7)  # the caller's random state plays no part
        done = train_classifier(model, data.train, SPEC, config=QUICK, seed=5)
        runs.append((state(done.model), done.history))
    assert runs[0][1] == runs[1][1] and same(runs[0][0], runs[1][0])
    assert done.history["step"] == [50, 60] and set(done.seconds) == {"train"} and done.peak_mb >= 0


def test_the_loss_of_the_last_steps_is_half_that_of_the_first(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Loop.run.__kwdefaults__, "block_steps", 10)
    torch.manual_seed(1)
    history = train_classifier(create("lenet5", num_classes=4), data.train, SPEC, config=QUICK, seed=5).history
    assert history["step"] == [10, 20, 30, 40, 50, 60] and history["loss"][-1] < 0.5 * history["loss"][0]


def test_the_last_step_has_a_rate_near_zero_and_progress_is_told(data: ImageData) -> None:
    torch.manual_seed(1)
    model, told = create("lenet5", num_classes=4), []
    done = train_classifier(model, data.train, SPEC, config=QUICK, progress=lambda *a: told.append(a))
    assert [a[:3] for a in told] == [("train", 50, 60), ("train", 60, 60)]
    assert [a[3] for a in told] == [{"loss": value} for value in done.history["loss"]]
    assert 0 < QUICK.rate(59) < 1e-3 * QUICK.rate(0)


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("batch_size", 1.5), ("lr", 0.0), ("lr", float("nan")), ("lr", "a"),
                         ("weight_decay", -1.0), ("augmentation", None), ("mixup", None), ("mixup", -1),
                         ("momentum", -0.1), ("warmup", -1), ("decay", 0), ("decay_every", 0), ("optimizer", "sdg")],
)  # fmt: skip
def test_bad_training_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        Training(**{field: value})
    with pytest.raises(ValueError, match=field):
        Training().replace(**{field: value})


def test_settings_are_plain_values() -> None:
    config = Training(steps=7, augmentation=Augmentation(2, contrast=(1, 2)), precision="auto")
    assert Training(**config.to_dict()) == config
    with pytest.raises(ValueError, match=r"unknown field 'step' \(did you mean 'steps'\?\)"):
        config.replace(step=3)


def test_divergence_is_an_error_that_names_stage_step_and_rate(data: ImageData, split: Split) -> None:
    model = create("lenet5", num_classes=4, activation="relu")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(RuntimeError, match=r"^train: the loss is nan at step 2; lower lr \(0\.001\)$"):
        train_classifier(model, data.train, SPEC, config=Training(steps=2, batch_size=8))
    config, told = Training(steps=130, batch_size=8, lr=0.25), []

    def late(network: nn.Module, batch: Batch) -> Tensor:
        told.append(1)
        return cross_entropy(network, batch) * (torch.nan if len(told) == 60 else 1)

    with pytest.raises(RuntimeError, match=r"^mine: the loss is nan at step 100; lower lr \(0\.25\)$"):
        train(network(), batches_of(split, config), late, config, stage="mine")
    assert len(told) == 100  # the block is the last one that is taken


def by_hand(config: Training) -> Callable[[list[Tensor], list[Tensor], int], None]:
    """The optimiser's update as its paper writes it."""
    memory: dict[int, list[Tensor]] = {}

    def update(parameters: list[Tensor], gradients: list[Tensor], step: int) -> None:
        rate = config.rate(step)
        for n, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
            g = g + config.weight_decay * p
            if config.optimizer == "sgd":
                velocity = memory.get(n, [torch.zeros_like(p)])[0] * config.momentum + g
                memory[n] = [velocity]
                p -= rate * velocity
            else:
                mean, square = memory.get(n, [torch.zeros_like(p), torch.zeros_like(p)])
                mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
                memory[n] = [mean, square]
                unbiased = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
                p -= rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)

    return update


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "onecycle"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_are_those_by_hand(optimizer: Any, schedule: Any, split: Split) -> None:
    """In double precision, with dropout and BatchNorm, images of two epochs, one incomplete batch left out."""
    config = Training(
        steps=9, batch_size=9, lr=0.02, optimizer=optimizer, momentum=0.8, weight_decay=0.01, schedule=schedule,
        warmup=0 if schedule == "onecycle" else 2, decay=0.5, decay_every=3,
    )  # fmt: skip
    model, images = network().double(), SMALL.prepare(split.images).double()
    reference = network().double().train()
    source = ImageBatches(images, split.labels, config, SMALL, torch.Generator().manual_seed(3), CPU)
    done = train(model, source, cross_entropy, config, seed=11)

    generator, losses, update = torch.Generator().manual_seed(3), [], by_hand(config)
    rows = [r for _ in range(3) for r in torch.randperm(40, generator=generator)[:36].split(9)][:9]
    parameters = list(reference.parameters())
    with torch.random.fork_rng():
        torch.manual_seed(11)
        for step, chosen in enumerate(rows):
            loss = F.cross_entropy(reference(images[chosen]), split.labels[chosen])
            losses.append(loss.item())
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                update(parameters, list(gradients), step)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(done.model.state_dict()[name], value, rtol=1e-9, atol=1e-9)
    assert done.history == {"step": [9], "loss": [pytest.approx(sum(losses) / 9)]}


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd", "lr": 0.05}, {"precision": "bfloat16"}, {"average": 0.9}])
@pytest.mark.parametrize("at", [50, 100, 130])
def test_an_interrupted_training_continues_bit_for_bit(
    at: int, options: dict[str, Any], split: Split, tmp_path: Path
) -> None:
    config = Training(steps=130, batch_size=8, mixup=0.4, augmentation=Augmentation(1, flip=0.5)).replace(**options)

    def run(**more: Any) -> Any:
        return train_classifier(network(), split, SMALL, config=config, seed=2, **more)

    assert_resumes(run, tmp_path / "run", at)


def test_a_checkpoint_of_another_run_is_refused(split: Split, tmp_path: Path) -> None:
    config = Training(steps=130, batch_size=8)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier(network(), split, SMALL, config=config, progress=stop, checkpoint_dir=tmp_path)
    others: list[tuple[nn.Module, Split, dict[str, Any]]] = [
        (network(1), split, {"config": config}),
        (network(), Split(255 - split.images, split.labels), {"config": config}),
        (network(), split, {"config": config.replace(lr=0.5)}),
        (network(), split, {"config": config, "seed": 1}),
        (network(), split, {"config": config, "identity": ("another",)}),
    ]
    for model, images, options in others:
        with pytest.raises(ValueError, match="belongs to another run"):
            train_classifier(model, images, SMALL, checkpoint_dir=tmp_path, **options)
    done = train_classifier(network(), split, SMALL, config=config, checkpoint_dir=tmp_path)
    assert done.history["step"] == [50, 100, 130] and not list(tmp_path.iterdir())


def test_other_parts_belong_to_the_checkpoint(split: Split, tmp_path: Path) -> None:
    """A second network that the loss trains, with its optimiser, and a generator that the loss draws from."""
    config = Training(steps=120, batch_size=8)

    def run(**options: Any) -> Any:
        critic = network(1)
        critic[4].p = 0.0
        optimizer = torch.optim.SGD(critic.parameters(), lr=0.05, momentum=0.9)
        noise = torch.Generator().manual_seed(9)

        def loss(learner: nn.Module, batch: Batch) -> Tensor:
            x = batch.images + 0.1 * torch.randn(batch.images.shape, generator=noise)
            optimizer.zero_grad()
            cross_entropy(critic, batch).backward()
            optimizer.step()
            return F.mse_loss(learner(x), critic(x).detach())

        parts = {"critic": critic, "optimizer": optimizer, "noise": noise}
        return train(network(), batches_of(split, config), loss, config, parts=parts, **options)

    assert_resumes(run, tmp_path / "run", 100)


@pytest.mark.parametrize("training", [True, False])
def test_a_seed_decides_all_and_the_model_given_stays(training: bool, split: Split) -> None:
    model = network().train(training)
    model[0].weight.requires_grad_(False)
    config = Training(steps=5, batch_size=8, augmentation=Augmentation(1), mixup=0.4)
    assert_seed_decides(lambda **o: train_classifier(model, split, SMALL, config=config, **o), model)
    done = train_classifier(model, split, SMALL, config=config)
    assert torch.equal(done.model[0].weight, model[0].weight) and not torch.equal(done.model[5].weight, model[5].weight)


def test_a_loss_may_be_named_terms(split: Split) -> None:
    """ "loss" is minimised, the others are recorded: means over blocks of steps."""
    config, seen = Training(steps=70, batch_size=8, lr=0.01), list[tuple[float, float]]()

    def loss(learner: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = learner(batch.images)
        ce = F.cross_entropy(logits, batch.labels)
        size = logits.square().mean()
        seen.append((ce.item(), size.item()))
        return {"loss": ce + 0.1 * size, "ce": ce, "size": size}

    done = train(network(), batches_of(split, config), loss, config)
    plain = train(network(), batches_of(split, config), lambda n, b: (t := loss(n, b))["loss"] + 0 * t["size"], config)
    assert list(done.history) == ["step", "loss", "ce", "size"] and done.history["step"] == [50, 70]
    for part, name in enumerate(("ce", "size")):
        values = [terms[part] for terms in seen[:70]]
        assert done.history[name] == pytest.approx([sum(values[:50]) / 50, sum(values[50:]) / 20], rel=1e-5)
    assert same(done.model.state_dict(), plain.model.state_dict())


def test_a_student_learns_the_features_of_a_teacher(split: Split) -> None:
    teacher, config = network(1).eval().requires_grad_(False), Training(steps=150, batch_size=20, lr=0.01)

    def loss(learner: nn.Module, batch: Batch) -> Tensor:
        with final_features(learner) as mine, final_features(teacher) as wanted:
            learner(batch.images)
            teacher(batch.images)
        return F.mse_loss(mine[0], wanted[0])

    student = network()
    before = everything(student)
    done = train(student, batches_of(split, config), loss, config)
    assert done.history["loss"][-1] < 0.5 * done.history["loss"][0] and unchanged(before, student)
    assert not torch.equal(done.model[0].weight, student[0].weight)
    assert torch.equal(done.model[5].weight, student[5].weight)  # no gradient reaches the head
    assert not any(m._forward_pre_hooks for net in (teacher, done.model) for m in net.modules())


def test_what_cannot_be_trained_is_refused(split: Split) -> None:
    config = Training(steps=2, batch_size=8)
    for model in (network().requires_grad_(False), nn.Flatten()):
        with pytest.raises(ValueError, match="model has no parameter that requires a gradient"):
            train_classifier(model, split, SMALL, config=config)

    class Locked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = network()

        def __deepcopy__(self, memo: object) -> Any:
            raise RuntimeError("holds a lock")

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

    locked = Locked()
    before = everything(locked)
    with pytest.raises(ValueError, match="Locked cannot be copied, so it would be changed in place"):
        train_classifier(locked, split, SMALL, config=config)
    assert unchanged(before, locked)
    with pytest.raises(ValueError, match="images must hold at least one image"):
        train_classifier(network(), Split(split.images[:0], split.labels[:0]), SMALL, config=config)
    with pytest.raises(ValueError, match="images hold NaN"):
        ImageBatches(torch.full((2, *SMALL.shape), torch.nan), None, config, SMALL, torch.Generator(), CPU)


def test_parts_do_not_replace_those_of_the_training(split: Split) -> None:
    config = Training(steps=2, batch_size=8)
    for name in ("loop", "batches"):
        with pytest.raises(ValueError, match=rf"parts must not be named 'loop' or 'batches', .*, got \['{name}'\]"):
            train(network(), batches_of(split, config), cross_entropy, config, parts={name: network()})


def test_a_loss_finds_the_layers_by_their_names(split: Split) -> None:
    config, names = Training(steps=2, batch_size=8), set[str]()

    def loss(learner: nn.Module, batch: Batch) -> Tensor:
        names.update(name for name, _ in learner.model.named_modules())
        return cross_entropy(learner, batch) + learner.model.get_submodule("0").weight.square().sum()

    done = train(network(), batches_of(split, config), loss, config)
    assert names == {name for name, _ in network().named_modules()}
    assert not torch.equal(done.model[0].weight, network()[0].weight)


def test_progress_may_draw_random_numbers(split: Split) -> None:
    config = Training(steps=120, batch_size=8)
    plain, drawing = (
        train_classifier(network(), split, SMALL, config=config, progress=told)
        for told in (None, lambda *_: torch.rand(3))
    )
    assert plain.history == drawing.history and same(plain.model.state_dict(), drawing.model.state_dict())


@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_memory_format_is_that_of_before(precision: Any, format: torch.memory_format) -> None:
    spec = InputSpec(3, (8, 8), (0.5,) * 3, (0.25,) * 3)
    images = torch.randint(0, 256, (16, *spec.shape), dtype=torch.uint8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).to(memory_format=format)
    config = Training(steps=2, batch_size=8, precision=precision)
    done = train_classifier(model, Split(images, torch.arange(16) % 4), spec, config=config)
    assert done.model[0].weight.is_contiguous(memory_format=format)
    assert model[0].weight.is_contiguous(memory_format=format)


def test_a_loss_may_keep_layers_in_evaluation_mode(split: Split) -> None:
    """All layers are in training mode otherwise, also those that were not before."""
    config, model = Training(steps=3, batch_size=8), network().eval()

    def keeping(learner: nn.Module, batch: Batch) -> Tensor:
        for layer in learner.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        return cross_entropy(learner, batch)

    for loss, kept in ((cross_entropy, False), (keeping, True)):
        done = train(model, batches_of(split, config), loss, config)
        pairs = [
            (a, b) for a, b in zip(model.modules(), done.model.modules(), strict=True) if hasattr(a, "running_mean")
        ]
        assert pairs and all(torch.equal(a.running_mean, b.running_mean) is kept for a, b in pairs)


def test_terms_of_a_loss_have_their_names(split: Split) -> None:
    config, taken = Training(steps=70, batch_size=8), []

    def run(terms: Callable[[Tensor], Any]) -> None:
        taken.clear()
        train(network(), batches_of(split, config), lambda n, b: terms(cross_entropy(n, b)), config)

    for wrong in (lambda ce: {"ce": ce}, lambda ce: {"loss": ce, "step": ce}):
        with pytest.raises(ValueError, match="loss must return a scalar, or scalars named 'loss' and others, got"):
            run(wrong)
    for last in (20, 60):  # within a block of steps, and after one

        def changing(ce: Tensor, last: int = last) -> dict[str, Tensor]:
            taken.append(1)
            return {"loss": ce} if len(taken) == last else {"loss": ce, "ce": ce}

        with pytest.raises(ValueError, match=rf"the same terms at every step, got \['loss'\] at step {last} after"):
            run(changing)
    done = train(
        network(), batches_of(split, config), lambda n, b: dict(loss=(ce := cross_entropy(n, b)), twice=2 * ce), config
    )
    swapped = train(
        network(), batches_of(split, config),
        lambda n, b: dict(sorted(dict(loss=(ce := cross_entropy(n, b)), twice=2 * ce).items(), reverse=True)), config,
    )  # fmt: skip
    assert done.history == swapped.history


def test_a_seeded_block_leaves_the_random_state_of_the_caller() -> None:
    before, draws = torch.get_rng_state(), []
    for seed in (3, 3, 4):
        with seeded(seed, CPU):
            draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("clip", [0.0, 0.02])
def test_the_gradient_of_all_parameters_is_scaled_to_the_largest_norm(clip: float, split: Split) -> None:
    """In double precision; the module beside the network counts, too."""
    config = Training(
        steps=4, batch_size=40, lr=0.3, optimizer="sgd", momentum=0.0, schedule="constant", clip=clip
    )  # fmt: skip
    images = SMALL.prepare(split.images).double()
    model, beside = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double(), nn.Linear(4, 4).double()
    reference = copy.deepcopy(nn.ModuleList([model, beside]))
    source = ImageBatches(images, split.labels, config, SMALL, torch.Generator(), CPU)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(beside(network(batch.images)), batch.labels)  # type: ignore[arg-type]

    done = train(model, source, loss, config, beside=beside)
    parameters = list(reference.parameters())
    for _ in range(4):
        value = F.cross_entropy(reference[1](reference[0](images)), split.labels)
        gradients = torch.autograd.grad(value, parameters)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        scale = min(1.0, clip / float(norm)) if clip else 1.0
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.3 * scale * gradient
    for found, expected in zip([*done.model.parameters(), *beside.parameters()], parameters, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="clip must be at least 0, got -1"):
        config.replace(clip=-1)


def test_a_module_beside_the_network_is_in_the_checkpoint(split: Split, tmp_path: Path) -> None:
    config, ended = Training(steps=130, batch_size=8, momentum=0.5, optimizer="sgd", clip=1.0), []

    def run(**options: Any) -> Any:
        torch.manual_seed(4)
        beside = nn.Linear(4, 4)
        before = state(beside)

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            return F.cross_entropy(beside(network(batch.images)), batch.labels)  # type: ignore[arg-type]

        done = train(network(), batches_of(split, config), loss, config, beside=beside, seed=2, **options)
        assert not same(before, state(beside)), "it is trained in place"
        ended.append(state(beside))
        return done

    assert_resumes(run, tmp_path / "run", 100)
    assert len(ended) == 2 and same(*ended)
