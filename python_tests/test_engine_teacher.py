from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast import BNStatistics, InputSpec, Synthesizer, recipes
from exml_fast.compat.deep_inversion import DeepInversionFeatureHook
from exml_fast.engine.conv_plan import ConvShape, Plan
from exml_fast.engine.eager import EagerTeacher
from exml_fast.engine.frozen_conv import FrozenConv2d
from exml_fast.engine.teacher import FrozenTeacher
from exml_fast.models import CifarResNet, LeNet5

SPEC = InputSpec(3, (16, 16), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
ACTIVATIONS = {
    "relu": nn.ReLU(inplace=True), "relu6": nn.ReLU6(), "silu": nn.SiLU(inplace=True), "hardswish": nn.Hardswish(),
    "leaky_relu": nn.LeakyReLU(0.2), "gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh"), "tanh": nn.Tanh(),
}  # fmt: skip


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


class Residual(nn.Module):
    """Two BatchNorms that are added, then a plain residual."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.add = add
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(3, 8, 1, 2, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8, affine=False)
        self.head = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.add(self.bn1(self.conv1(x)), self.bn2(self.conv2(x))))
        return self.head(self.add(x, F.dropout(self.bn3(self.conv3(x)), 0.5, self.training)).relu_())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Sequential(*head(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(torch.tanh(self.bn(self.conv(x)))))


class Broadcast(nn.Module):
    """One learned image is added to all after the BatchNorm; squeeze() takes the axes of size 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.place = nn.Parameter(torch.randn(1, 8, 16, 16))
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.conv(x))) + self.bn(self.conv(x)) + self.place
        return self.head(self.norm(F.adaptive_avg_pool2d(x, 1).squeeze()))


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(*head(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.head(y if float(y.detach().sum()) > -1e9 else -y)


class Volume(nn.Module):
    """BatchNorm3d and BatchNorm1d."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4)
        self.flat, self.last = nn.BatchNorm1d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.conv(x.unsqueeze(1))))
        return self.last(self.flat(y.mean((2, 3, 4))))


def with_norm(norm: nn.Module, *after: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), norm, *after, nn.Conv2d(8, 8, 3, groups=8), *head(8))


def timm_norm() -> nn.Module:
    layers = pytest.importorskip("timm.layers")
    return with_norm(layers.BatchNormAct2d(8, act_layer=nn.SiLU))


def frozen_norm() -> nn.Module:
    from torchvision.ops import FrozenBatchNorm2d

    return with_norm(FrozenBatchNorm2d(8), nn.ReLU())


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    **{name: (lambda act=act: with_norm(nn.BatchNorm2d(8), copy.deepcopy(act)), f"1 with {name}")
       for name, act in ACTIVATIONS.items()},
    "residual by operator": (lambda: Residual(lambda a, b: a + b), "2 with residual and relu"),
    "residual in place": (lambda: Residual(lambda a, b: b.add_(a)), "2 with residual and relu"),
    "residual by torch.add": (lambda: Residual(torch.add), "2 with residual and relu"),
    "a layer that runs twice": (Twice, "1 with tanh"),
    "not traceable": (Untraceable, "1 alone"),
    "SyncBatchNorm": (lambda: with_norm(nn.SyncBatchNorm(8), nn.ReLU()), "1 with relu"),
    "BatchNorm1d and 3d": (Volume, "1 with relu"),
    "timm's BatchNormAct2d": (timm_norm, "1 with silu"),
    "torchvision's FrozenBatchNorm2d": (frozen_norm, "1 with relu"),
    "no BatchNorm": (lambda: with_norm(nn.GroupNorm(2, 8), nn.ReLU()), "0 BatchNorm calls"),
    "LeNet": (lambda: nn.Sequential(nn.Upsample(32), nn.Conv2d(3, 1, 1), LeNet5(5, batch_norm=True)), "2 with tanh"),
    "ResNet": (lambda: CifarResNet(8), "3 with residual and relu"),
}  # fmt: skip


def network(name: str) -> tuple[nn.Module, str]:
    make, line = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_()
            if isinstance(getattr(module, "weight", None), Tensor):
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_()
    return model, line


def observed(teacher: FrozenTeacher | EagerTeacher, images: Tensor) -> list[Tensor]:
    """Logits, statistics, and the images' gradient of a function of both."""
    x = images.clone().requires_grad_()
    logits, layers = teacher(x)
    loss = logits.square().sum()
    for layer in layers:
        loss = loss + (layer.mean - layer.target_mean).norm() + (layer.var - layer.target_var).norm()
    (gradient,) = torch.autograd.grad(loss, x)
    return [logits, *(t for layer in layers for t in layer[1:]), gradient]


@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_what_the_network_computes(name: str) -> None:
    model, line = network(name)
    images = torch.randn(4, *SPEC.shape)
    teacher, eager = FrozenTeacher(model, SPEC, precision="float32"), EagerTeacher(model, SPEC)
    assert line in teacher.summary() and teacher.matched_calls == eager.matched_calls
    assert teacher.num_classes == eager.num_classes == eager(images)[0].shape[1]
    found, expected = observed(teacher, images), observed(eager, images)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["residual in place", "timm's BatchNormAct2d", "not traceable"])
def test_float64_and_bfloat16(name: str) -> None:
    model, _ = network(name)
    images = torch.randn(4, *SPEC.shape)
    half = observed(FrozenTeacher(model, SPEC, precision="bfloat16"), images)
    single = observed(FrozenTeacher(model, SPEC, precision="float32"), images)
    double = observed(FrozenTeacher(model.double(), SPEC), images.double())
    assert half[0].dtype == torch.float32 and double[0].dtype == torch.float64
    for a, b, c in zip(half[:-1], single[:-1], double[:-1], strict=True):
        torch.testing.assert_close(b.double(), c.double(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_nothing_is_left_on_the_model() -> None:
    model, _ = network("residual by operator")
    model.train()
    model.conv1.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    kinds = [type(module) for module in model.modules()]
    teacher = FrozenTeacher(model, SPEC)
    x = torch.randn(2, *SPEC.shape, requires_grad=True)
    teacher(x)[0].sum().backward()
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [type(module) for module in model.modules()] == kinds
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with torch.no_grad():
        model.conv2.weight.zero_()
    assert not torch.equal(teacher(x)[0], FrozenTeacher(model, SPEC)(x)[0])


def test_statistics_of_images() -> None:
    model, _ = network("residual by operator")
    images = torch.randn(6, *SPEC.shape)
    _, layers = FrozenTeacher(model, SPEC, precision="float32", statistics=images)(images)
    for layer in layers:
        torch.testing.assert_close(layer.target_mean, layer.mean.detach())
        torch.testing.assert_close(layer.target_var, layer.var.detach())
    with pytest.raises(ValueError, match="statistics must be 'running' or images"):
        FrozenTeacher(model, SPEC, statistics="batch")


@pytest.mark.parametrize("make", [FrozenTeacher, EagerTeacher])
def test_statistics_of_many_images_are_those_of_one_batch(make: type) -> None:
    model, _ = network("residual by operator")
    images = torch.randn(70, *SPEC.shape)
    options = {} if make is EagerTeacher else {"precision": "float32"}
    _, layers = make(model, SPEC, statistics=images, **options)(images)
    assert len(layers) == 3
    for layer in layers:
        torch.testing.assert_close(layer.target_mean, layer.mean.detach(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(layer.target_var, layer.var.detach(), rtol=1e-3, atol=1e-5)


class Tokens(nn.Module):
    """Patches as a sequence, LayerNorm over the last dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.act = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6), nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


class ChannelsLast(nn.Module):
    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, channels, 4, 4), nn.LayerNorm(channels)
        self.mix, self.head = nn.Linear(channels, channels), nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.norm(self.conv(x).permute(0, 2, 3, 1))).mean((1, 2)))


OBSERVED = {
    "convolution before an activation in place": (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), *head(8)), ["0"], (0, 2, 3),
    ),
    "GroupNorm": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), *head(8)), ["1"], (0, 2, 3)),
    "LayerNorm over tokens": (Tokens(), ["n*m"], (0, 1)),
    "LayerNorm over channels_last images": (ChannelsLast(), ["norm"], (0, 1, 2)),
    "LayerNorm over images as high as it is wide": (ChannelsLast(4), ["norm"], (0, 1, 2)),
    "linear over channels_last images": (ChannelsLast(4), ["mix"], (0, 1, 2)),
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 5)), ["1"], (0,)),
    "instead of BatchNorm": (with_norm(nn.BatchNorm2d(8), nn.ReLU()), ["0"], (0, 2, 3)),
}  # fmt: skip


class Untraceable(nn.Module):
    """Neither torch.fx nor torch.export follows a branch on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(x).mean((2, 3))
        return self.head(hidden if float(hidden.detach().sum()) < 1e9 else -hidden)  # type: ignore[no-any-return]


OBSERVED["without tracing"] = (Untraceable(), ["conv"], (0, 2, 3))


@pytest.mark.parametrize("name", OBSERVED)
def test_statistics_of_named_layers(name: str) -> None:
    model, layers, dims = OBSERVED[name]
    real, images = torch.randn(6, *SPEC.shape) + 1, torch.randn(4, *SPEC.shape)
    outputs: list[Tensor] = []
    layer = dict(model.named_modules())[layers[0].replace("n*m", "norm")]
    handle = layer.register_forward_hook(lambda *args: outputs.append(args[2].detach().clone()))
    model.eval()(torch.cat([real, images]))
    handle.remove()
    wanted = [(x.mean(dims), x.var(dims, correction=0)) for x in (outputs[0][6:], outputs[0][:6])]
    teachers = [
        FrozenTeacher(model, SPEC, precision="float32", statistics=real, layers=layers),
        EagerTeacher(model, SPEC, statistics=real, layers=layers),
    ]
    for teacher in teachers:
        assert teacher.matched_calls == 1
        _, (found,) = teacher(images)
        for a, b in zip(found[1:], [t for pair in wanted for t in pair], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    for a, b in zip(*(observed(teacher, images) for teacher in teachers), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert not any("Observer" in type(m).__name__ for m in model.modules())


def test_statistics_that_do_not_fit_are_named() -> None:
    model, images = network("residual by operator")[0], torch.randn(4, *SPEC.shape)
    for wrong in (images[:0], images[:, :1], images[..., :8]):
        with pytest.raises(ValueError, match=r"statistics must be images \(N, 3, 16, 16\)"):
            FrozenTeacher(model, SPEC, statistics=wrong)
    with pytest.raises(ValueError, match="normalised images, floating point and finite"):
        EagerTeacher(model, SPEC, statistics=images * float("nan"))
    with pytest.raises(ValueError, match="layers keep no running statistics"):
        FrozenTeacher(model, SPEC, layers=["conv1"])
    with pytest.raises(ValueError, match="'conv9' matches no layer of Residual, which has conv1"):
        FrozenTeacher(model, SPEC, statistics=images, layers=["conv9"])


def test_a_layer_without_running_statistics_stays_as_it_is() -> None:
    model = with_norm(nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU())
    teacher, images = FrozenTeacher(model, SPEC, precision="float32"), torch.randn(4, *SPEC.shape)
    assert teacher.matched_calls == 0
    torch.testing.assert_close(teacher(images)[0], model.eval()(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="without running statistics"):
        Synthesizer(model, SPEC, "deep_inversion")


def test_plans_of_another_teacher_give_the_same_bits() -> None:
    model, _ = network("ResNet")
    first = FrozenTeacher(model, SPEC)
    second = FrozenTeacher(model, SPEC, plans=first.plans)
    images = torch.randn(4, *SPEC.shape)
    assert second.plans == first.plans and len(first.plans) == 7
    assert all(torch.equal(a, b) for a, b in zip(observed(first, images), observed(second, images), strict=True))


LIBRARY = {"0": ("float32", Plan()), "3": ("float32", Plan())}
WRONG_PLANS = {
    "no dict": ([1], "expected a dict, got list"),
    "of another network": ({"0": LIBRARY["0"]}, r"expected the convolutions \['0', '3'\], got \['0'\]"),
    "empty": ({}, r"got \[\]"),
    "no pair": (LIBRARY | {"3": Plan()}, r"expected one of .* for '3', got Plan\("),
    "no plan": (LIBRARY | {"3": ("float32", "library")}, r"for '3', got \('float32', 'library'\)"),
    "of another dtype": (LIBRARY | {"0": ("float16", Plan())}, r"expected one of \('float32', 'bfloat16'\)"),
    "unknown adjoint": (LIBRARY | {"0": ("float32", Plan(adjoint="magic"))}, "for '0', got .*magic"),
    "of another shape": (LIBRARY | {"0": ("float32", Plan(adjoint="convolution"))}, "for '0', got .*convolution"),
}


def strided() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), *head(8)
    ).eval()


@pytest.mark.parametrize("name", WRONG_PLANS)
def test_wrong_plans_are_named(name: str) -> None:
    plans, message = WRONG_PLANS[name]
    with pytest.raises(ValueError, match=f"plans must be those of a teacher of the same network.*{message}"):
        FrozenTeacher(strided(), SPEC, plans=plans)
    model, x = strided(), torch.randn(2, *SPEC.shape)
    torch.testing.assert_close(FrozenTeacher(model, SPEC, plans=LIBRARY)(x)[0], model(x), rtol=1e-4, atol=1e-5)


def test_plans_of_a_cpu_elsewhere() -> None:
    """Packed weights are oneDNN's: on another device the library computes, with weights that are there."""
    shape = ConvShape((2, 8, 8, 8), (6, 8, 3, 3), (1, 1), (1, 1), (1, 1), 1, True)
    layer = FrozenConv2d(
        nn.Conv2d(8, 6, 3, padding=1, device="meta"), torch.float32, shape, Plan("packed", "convolution", "packed")
    )
    assert layer.plan == Plan() and layer.weight.stride() == (72, 1, 24, 8)
    assert layer(torch.randn(2, 8, 8, 8, device="meta")).shape == (2, 6, 8, 8)


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, torch.randn(2, *SPEC.shape))])
def test_torchscript_is_refused_in_one_line(make: Callable[[nn.Module], nn.Module]) -> None:
    model = make(strided())
    for use in (
        lambda: FrozenTeacher(model, SPEC),
        lambda: EagerTeacher(model, SPEC),
        lambda: Synthesizer(model, SPEC),
        lambda: BNStatistics(model),
    ):
        with pytest.raises(
            ValueError, match=r"model must be a torch\.nn\.Module in Python.*ScriptModule \(Seq"
        ) as found:
            use()
        assert "\n" not in str(found.value)
    with pytest.raises(ValueError, match=r"model must be a torch\.nn\.Module, got str"):
        FrozenTeacher("resnet50", SPEC)  # type: ignore[arg-type]


@pytest.mark.parametrize("teacher", [FrozenTeacher, EagerTeacher])
@pytest.mark.parametrize("half", ["all", "without BatchNorm"])
def test_float16_is_taken_as_float32(teacher: type, half: str) -> None:
    model, images = network("residual by operator")[0].eval().half(), torch.randn(4, *SPEC.shape) * 100
    if half == "without BatchNorm":
        for module in (model.bn1, model.bn2, model.bn3):
            module.float()
    options = {} if teacher is EagerTeacher else {"precision": "float32"}
    found = observed(teacher(model, SPEC, **options), images)
    expected = observed(teacher(copy.deepcopy(model).float(), SPEC, **options), images)
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(found, expected, strict=True))
    assert model.conv1.weight.dtype == torch.float16
    recipe = recipes.get("deep_inversion").replace(steps=3, targets="dirichlet")
    result = Synthesizer(model, SPEC, recipe, engine=teacher is FrozenTeacher).run([0, 1])
    assert result.images.dtype == result.logits.dtype == torch.float32 and result.summary["precision"] != "float16"


def test_of_a_compiled_network_the_network_inside_is_frozen() -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("was compiled")

    model, _ = network("ResNet")
    images, compiled = torch.randn(2, *SPEC.shape), torch.compile(model, backend=refuse)
    plain = FrozenTeacher(model, SPEC, precision="float32")
    found = observed(FrozenTeacher(compiled, SPEC, precision="float32"), images)
    assert all(torch.equal(a, b) for a, b in zip(found, observed(plain, images), strict=True))
    recipe = recipes.get("deep_inversion").replace(steps=2)
    assert len(Synthesizer(compiled, SPEC, recipe, precision="float32").run([0, 1])) == 2


def test_precision() -> None:
    model, _ = network("ResNet")
    with pytest.raises(ValueError, match="precision must be one of"):
        FrozenTeacher(model, SPEC, precision="float16")
    for precision in ("float32", "bfloat16"):
        teacher = FrozenTeacher(model, SPEC, precision=precision)
        convolutions = [m for m in teacher.model.modules() if isinstance(m, FrozenConv2d)]
        assert teacher.precision == precision and {m.dtype for m in convolutions} == {getattr(torch, precision)}
        assert f"7 convolutions, 7 in {precision}" in teacher.summary()
    assert FrozenTeacher(model, SPEC, precision="auto").precision in ("float32", "bfloat16")


@pytest.mark.parametrize("name", ["ResNet", "LeNet", "not traceable"])
def test_engine_and_reference_take_the_same_way(name: str) -> None:
    model, _ = network(name)
    recipe = recipes.get("deep_inversion").replace(steps=20, flip=True, batch_size=8)
    labels = torch.arange(5).repeat(2)
    eager = Synthesizer(model, SPEC, recipe, engine=False).run(labels)
    engine = Synthesizer(model, SPEC, recipe, precision="float32").run(labels)
    half = Synthesizer(model, SPEC, recipe, precision="bfloat16").run(labels)
    torch.testing.assert_close(engine.history["loss"], eager.history["loss"], rtol=1e-4, atol=1e-4)
    # Adam divides by the gradient's size: where it is all but zero, rounding decides its sign.
    assert float((engine.images - eager.images).abs().mean()) < 2e-3
    assert abs(float(half.history["loss"][-1] / eager.history["loss"][-1]) - 1) < 0.02


def test_networks_are_frozen_while_others_run() -> None:
    model, images = network("residual by operator")[0].eval(), torch.randn(2, *SPEC.shape)
    expected = model(images)

    def freeze(_: int) -> None:
        for _ in range(5):
            FrozenTeacher(network("residual by operator")[0], SPEC, precision="float32")

    def run(_: int) -> None:
        for _ in range(200):
            assert torch.equal(model(images), expected)

    call = nn.Module.__call__
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(job, i) for i in range(2) for job in (freeze, run)]:
            done.result()
    assert nn.Module.__call__ is call


# What is put on modules, mixed dtypes, order.


class Swapped(nn.Module):
    """Two BatchNorms of which the first in time is added last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)
        for bn in (self.first, self.second):
            nn.init.normal_(bn.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(self.conv1(x))
        b = self.second(self.conv2(a))
        return self.fc((b.sigmoid() + a.relu()).mean((2, 3)))


def test_layers_come_in_the_order_of_the_calls() -> None:
    torch.manual_seed(0)
    model, x = Swapped().eval(), torch.randn(4, 3, 16, 16)
    layers = FrozenTeacher(model, SPEC, precision="float32")(x)[1]
    assert [layer.name for layer in layers] == ["first", "second"]
    torch.testing.assert_close(layers[0].mean, model.conv1(x).mean((0, 2, 3)), rtol=1e-4, atol=1e-4)


def test_a_residual_of_another_dtype() -> None:
    class Block(Swapped):
        def forward(self, x: Tensor) -> Tensor:
            a = self.first(self.conv1(x)).relu()
            return self.fc((self.second(self.conv2(a)) + a).relu().mean((2, 3)))

    model = Block().eval()
    for mixed in ("conv1", "conv2"):
        plans = {name: ("float32" if name == mixed else "bfloat16", Plan()) for name in ("conv1", "conv2")}
        logits, _ = FrozenTeacher(model, SPEC, plans=plans)(x := torch.randn(2, 3, 16, 16))
        torch.testing.assert_close(logits, model(x), rtol=0.1, atol=0.1)


def test_a_network_that_cannot_run_in_bfloat16_runs_in_float32() -> None:
    class OwnWeight(Swapped):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.first(self.conv1(x)).mean((2, 3)) @ self.weight

    model = OwnWeight().eval()
    teacher = FrozenTeacher(model, SPEC, precision="bfloat16")
    assert teacher.precision == "float32" and "does not run in bfloat16" in teacher.summary()
    torch.testing.assert_close(teacher(x := torch.randn(2, 3, 16, 16))[0], model(x), rtol=1e-4, atol=1e-4)


def test_classes_derived_from_conv2d_are_frozen_too() -> None:
    class SamePadding(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    model = Swapped().eval()
    model.conv1, model.conv2 = SamePadding(3, 8, 3, 2), SamePadding(8, 8, 3, groups=8, bias=False)
    teacher, x = FrozenTeacher(model, SPEC, precision="float32"), torch.randn(2, 3, 16, 16, requires_grad=True)
    assert sum(isinstance(module, FrozenConv2d) for module in teacher.model.modules()) == 2
    torch.testing.assert_close(teacher(x)[0], model(x), rtol=1e-4, atol=1e-4)
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    (gradient,) = torch.autograd.grad(teacher(x)[0].square().sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


def test_hooks_and_patched_methods_are_kept() -> None:
    model, x = Swapped().eval(), torch.randn(2, 3, 16, 16)
    model.conv1.register_forward_hook(lambda module, args, output: output * 2)
    model.conv2.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    torch.testing.assert_close(FrozenTeacher(model, SPEC, precision="float32")(x)[0], model(x), rtol=1e-4, atol=1e-4)


def test_what_one_image_would_hide_is_fused() -> None:
    model, images = Broadcast().eval(), torch.randn(2, 3, 16, 16)
    teacher = FrozenTeacher(model, SPEC, precision="float32")
    assert "failed" not in teacher.summary() and "1 with residual" in teacher.summary()
    torch.testing.assert_close(teacher(images)[0], model(images), rtol=1e-4, atol=1e-4)


def test_a_batch_norm_under_two_names_without_tracing() -> None:
    class Twice(Swapped):
        def __init__(self) -> None:
            super().__init__()
            self.second = self.first

        def forward(self, x: Tensor) -> Tensor:
            if float(x.sum()) > 1e9:  # torch.fx cannot follow
                x = -x
            return super().forward(x)

    teacher = FrozenTeacher(Twice().eval(), SPEC, precision="float32")
    assert teacher.matched_calls == 2 and len(teacher(torch.randn(2, 3, 16, 16))[1]) == 2


def test_our_own_hooks_do_not_hinder_a_copy() -> None:
    model = Swapped().eval()
    hook = DeepInversionFeatureHook(model.first)
    with BNStatistics(model) as statistics:
        model(torch.randn(2, 3, 16, 16, requires_grad=True))
        value, loss = hook.r_feature, statistics.loss()
        FrozenTeacher(model, SPEC)
        assert hook.r_feature is value and statistics.loss() == loss
    pruned = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    model.conv1 = pruned
    model.extra = pruned.weight  # a tensor with a graph
    with pytest.raises(ValueError, match="Swapped cannot be copied"):
        FrozenTeacher(model, SPEC)


# Threads.


@pytest.mark.parametrize("make", [FrozenTeacher, EagerTeacher])
@pytest.mark.parametrize("layers", [(), ("conv*",)])
def test_calls_from_several_threads_do_not_mix(make: type, layers: tuple[str, ...]) -> None:
    model, _ = network("residual by operator")
    batches = [torch.randn(n, *SPEC.shape) for n in (1, 2, 3, 4)]
    teacher = make(model, SPEC, statistics=batches[3] if layers else "running", layers=layers)
    expected = [observed(teacher, images) for images in batches]

    def call(number: int) -> None:
        for _ in range(25):
            found = observed(teacher, batches[number])
            assert len(found) == len(expected[number])
            assert all(torch.equal(a, b) for a, b in zip(found, expected[number], strict=True))

    with ThreadPoolExecutor(len(batches)) as pool:
        for done in [pool.submit(call, number) for number in range(len(batches))]:
            done.result()


def test_passes_that_run_again_in_the_backward_pass_are_not_counted() -> None:
    class Checkpointed(Swapped):
        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    teacher, x = FrozenTeacher(Checkpointed(), SPEC, precision="float32"), torch.randn(2, *SPEC.shape)
    for _ in range(2):
        assert len(observed(teacher, x)) == 1 + 2 * 4 + 1


# Other ways to call, copy and differentiate.


def test_autocast_of_the_caller_changes_nothing() -> None:
    model, x = network("residual by operator")[0].eval(), torch.randn(3, *SPEC.shape)
    teacher = FrozenTeacher(model, SPEC, precision="float32")
    logits, layers = teacher(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, others = teacher(x)
    assert torch.equal(found, logits) and torch.equal(others[0].mean, layers[0].mean)


def reloaded(teacher: FrozenTeacher | EagerTeacher) -> FrozenTeacher | EagerTeacher:
    return pickle.loads(pickle.dumps(teacher))


@pytest.mark.parametrize("again", [copy.deepcopy, reloaded])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_teacher_can_be_copied(precision: str, again: Callable[[FrozenTeacher], FrozenTeacher]) -> None:
    spec = InputSpec(3, (32, 32), SPEC.mean, SPEC.std)
    teacher = FrozenTeacher(CifarResNet(8).eval(), spec, precision=precision, batch_size=4)
    x = torch.randn(4, *spec.shape)
    made, expected = again(teacher), observed(teacher, x)
    assert all(torch.equal(a, b) for a, b in zip(observed(made, x), expected, strict=True))
    assert made.summary() == teacher.summary()
    eager = EagerTeacher(CifarResNet(8).eval(), spec)
    assert torch.equal(again(eager)(x)[0], eager(x)[0])


def test_torch_func_is_refused_in_one_line() -> None:
    teacher, x = FrozenTeacher(network("residual by operator")[0], SPEC), torch.randn(2, *SPEC.shape)
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.vmap):
        with pytest.raises(RuntimeError, match=r"FrozenTeacher does not run under torch\.func"):
            transform(lambda x: teacher(x)[0].sum())(x)
    eager = EagerTeacher(network("residual by operator")[0], SPEC)
    assert torch.func.grad(lambda x: eager(x)[0].sum())(x).shape == x.shape


@pytest.mark.compiled
def test_a_teacher_with_winograd_layers_compiles() -> None:
    spec = InputSpec(3, (32, 32), SPEC.mean, SPEC.std)
    model = CifarResNet(8).eval()
    winograd = ("float32", Plan("winograd", "convolution", "winograd"))
    plans = {
        name: winograd if conv.stride == (1, 1) and conv.in_channels >= 16 else ("float32", Plan())
        for name, conv in model.named_modules()
        if isinstance(conv, nn.Conv2d)
    }
    teacher, x = FrozenTeacher(model, spec, plans=plans), torch.randn(4, *spec.shape).requires_grad_()
    compiled = torch.compile(lambda x: teacher(x)[0], backend="aot_eager", fullgraph=True)
    (found,), (expected,) = (torch.autograd.grad(call(x).sum(), x) for call in (compiled, lambda x: teacher(x)[0]))
    torch.testing.assert_close(found, expected)
