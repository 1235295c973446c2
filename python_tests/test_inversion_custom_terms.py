"""Losses of the user's own beside a recipe's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import BN, CE, SPEC, network
from torch import Tensor, nn

from exml_fast.inversion import CustomTerm, Step, Synthesizer, invert
from exml_fast.inversion.augmentation import Augmentation
from exml_fast.ranks import Ranks

PLAIN = CE.replace(jitter=0, lr=0.1, steps=1, clip=None)
LABELS = torch.tensor([0, 1, 2, 3])


def darkness(step: Step) -> Tensor:
    return (step.images + 1).square().mean((1, 2, 3))


def test_the_total_is_the_weighted_sum_of_all_terms() -> None:
    model = network().eval()
    start = torch.randn(4, *SPEC.shape, requires_grad=True)
    recipe = PLAIN.replace(l2=0.0)
    assert recipe.augmentation == Augmentation(border="zero")

    def pull(step: Step) -> Tensor:  # a term of the batch
        return step.images.mean().square()

    terms = [CustomTerm(darkness, 3.0, couples=False), CustomTerm(pull, -2.0)]
    synthesizer = Synthesizer(model, SPEC, recipe, engine=False, terms=terms)
    draws = recipe.augmentation.draw(1, SPEC.size, torch.Generator(), torch.device("cpu"), SPEC.bounds("cpu")[0])
    found, values = synthesizer.problem.gradient(LABELS, draws, start, torch.zeros(1, dtype=torch.int64))
    ce = nn.functional.cross_entropy(model(start), LABELS, reduction="none")
    total = ce.sum() + 3 * (start + 1).square().mean((1, 2, 3)).sum() - 2 * 4 * start.mean().square()
    (expected,) = torch.autograd.grad(total, start)
    assert torch.allclose(found, expected, atol=1e-6)
    each = [ce.mean(), (start + 1).square().mean(), start.mean().square(), total / 4]
    assert torch.allclose(values, torch.stack(each).detach(), atol=1e-5)
    assert synthesizer.objective.names == ("ce", "darkness", "pull", "loss") and synthesizer.objective.couples


def test_a_term_sees_what_the_step_computes() -> None:
    seen = list[tuple[Any, ...]]()

    def look(step: Step) -> Tensor:
        assert step.number is not None
        layer = step.layers[0]
        seen.append((int(step.number), step.logits.shape, step.targets.tolist(), layer.name, layer.mean.shape))
        return step.logits.mean(1)

    result = invert(network(), recipe=BN.replace(steps=2), spec=SPEC, per_class=1, terms=[look])
    assert seen == [(n, (5, 5), [0, 1, 2, 3, 4], "1", (6,)) for n in (0, 1)]
    assert list(result.history) == ["ce", "l2", "bn", "look", "loss"] and result.summary["terms"] == {"look": 1.0}


def test_a_term_changes_the_images_and_the_recipe_stays() -> None:
    bright, dark = (
        invert(network(), recipe=CE.replace(clip="valid"), spec=SPEC, per_class=2, terms=terms)
        for terms in ([], [CustomTerm(darkness, 100.0, "dark")])
    )
    assert dark.images.mean() < bright.images.mean() - 0.5
    assert dark.history["dark"][-1] < dark.history["dark"][0] and "dark" not in dark.summary["recipe"]


def test_small_images_first_have_the_term_too() -> None:
    recipe = CE.replace(coarse_steps=(3,), steps=2)
    result = invert(network(), recipe=recipe, spec=SPEC, per_class=1, terms=[darkness])
    assert len(result.history["darkness"]) == 5 and not result.history["darkness"].isnan().any()


@pytest.mark.parametrize("couples", [False, True])
def test_stopped_images_leave_only_where_no_term_couples(couples: bool) -> None:
    term = CustomTerm(darkness, couples=couples)
    assert Synthesizer(network(), SPEC, CE, terms=[term]).compact is not couples


def test_an_interrupted_run_continues_to_the_same_bits(tmp_path: Path) -> None:
    def wave(step: Step) -> Tensor:
        assert step.number is not None
        return (step.images.mean((1, 2, 3)) - torch.sin(step.number.float())).square()

    options: dict[str, Any] = {"recipe": BN.replace(steps=9), "engine": False, "block": 3, "terms": [wave]}
    whole = Synthesizer(network(), SPEC, **options).run(LABELS)

    def interrupt(_stage: str, step: int, *_: object) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Synthesizer(network(), SPEC, **options).run(LABELS, checkpoint_dir=tmp_path, progress=interrupt)
    with pytest.raises(ValueError, match="belongs to another run"):
        Synthesizer(network(), SPEC, **{**options, "terms": [CustomTerm(wave, 2.0)]}).run(
            LABELS, checkpoint_dir=tmp_path
        )
    again = Synthesizer(network(), SPEC, **options).run(LABELS, checkpoint_dir=tmp_path)
    assert torch.equal(again.images, whole.images)
    assert torch.equal(again.history["wave"], whole.history["wave"]) and len(again.history["wave"]) == 9


def test_a_module_is_a_term() -> None:
    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(144, 1)

        def forward(self, step: Step) -> Tensor:
            logits: Tensor = self.layer(step.images.flatten(1))[:, 0]
            return logits

    critic = Critic()
    invert(network(), recipe=PLAIN, spec=SPEC, per_class=1, terms=[critic])
    assert critic.layer.weight.grad is None


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        (darkness, "terms must be a list of functions or terms"),
        ([3], "terms must be functions or terms, got 3"),
        ([lambda step: step.images.sum()], "a lambda has no name"),
        ([darkness, darkness], "distinct names"),
        ([CustomTerm(darkness, name="ce")], "distinct names"),
        ([CustomTerm(darkness, name="loss")], "without the name 'loss'"),
        ([CustomTerm(lambda step: 1.0, name="one")], "term 'one' must return .* got float"),
        ([CustomTerm(lambda step: step.images, name="all")], r"term 'all' must return one value .*\(5,\), or a scalar"),
        ([CustomTerm(lambda step: step.images.mean(), name="m", couples=False)], r"term 'm' .*\(5,\), got .*\(\)"),
    ],
)
def test_terms_that_do_not_fit_are_named(terms: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        invert(network(), recipe=PLAIN, spec=SPEC, per_class=1, terms=terms)


def test_a_term_that_is_not_finite_is_named() -> None:
    def broken(step: Step) -> Tensor:
        return (step.images.mean((1, 2, 3)) * 0).log()

    with pytest.raises(RuntimeError, match="recipe 'ce': broken became -inf at step 0"):
        invert(network(), recipe=PLAIN, spec=SPEC, per_class=1, terms=[broken])
    with pytest.raises(ValueError, match="weight must be a finite number"):
        CustomTerm(darkness, float("nan"))


def test_a_term_of_the_batch_is_not_spread_over_ranks() -> None:
    synthesizer = Synthesizer(network(), SPEC, CE, terms=[darkness])
    with pytest.raises(ValueError, match=r"terms must be of single images \(couples=False\) over 2 ranks"):
        synthesizer.run(LABELS, ranks=Ranks(0, 2))
