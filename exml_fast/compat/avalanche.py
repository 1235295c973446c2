"""Benchmarks, strategies and expert models of Avalanche.

A learner on a benchmark, the same learner as a strategy, and a stream of experts::

    from exml_fast.compat.avalanche import LearnerStrategy, expert_stream, split_of, tasks_of

    result = incremental(taught, tasks_of(benchmark), split_of(benchmark.test_stream))
    strategy = LearnerStrategy(learner=taught, evaluator=evaluator)
    stream = expert_stream(ExMLMNIST(), folder="experts")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from exml_fast.continual import Expert, ExpertStream
from exml_fast.continual.class_incremental import LearnedTask, Learner, Task
from exml_fast.data import InputSpec, Split, images_and_labels
from exml_fast.engine.freezing import device_of, distinct_units, frozen, probe
from exml_fast.progress import ProgressOption
from exml_fast.storage import PathLike
from exml_fast.validation import require

try:
    from avalanche.training.plugins.evaluation import default_evaluator
    from avalanche.training.templates import SupervisedTemplate
except ImportError as error:
    raise ImportError("these parts need Avalanche: pip install 'exml_fast[avalanche]'") from error

__all__ = ["EXML_SPECS", "LearnerStrategy", "expert_stream", "experts_of", "split_of", "task_of", "tasks_of"]

EXML_SPECS = {
    "ExMLMNIST": InputSpec(1, (32, 32), (0.1307,), (0.3081,)),
    "ExMLCIFAR10": InputSpec(3, (32, 32), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "ExMLCoRE50": InputSpec(3, (128, 128), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""The input of the experts of Avalanche's ExML benchmarks, by the transforms of these benchmarks."""

# How far a pixel may be outside [0, 1] after its normalisation was undone.
ROUNDING = 1e-3


def split_of(source: Any, *, normalized: InputSpec | None = None, size: int | tuple[int, int] | None = None) -> Split:
    """The labelled images of an experience, or of a stream of experiences one after the other.

    Args:
        source: an experience with a data set, or a stream such as ``benchmark.test_stream`` or a slice of it. Images
            are read with the transforms for evaluation, so without augmentation, in the order of the data sets.
        normalized: the mean and standard deviation with which these transforms normalise. The normalisation is undone.
            None if the transforms do not normalise.
        size: height and width to which PIL images are resized.

    Returns:
        Images (N, C, H, W), uint8 or float32 in [0, 1]; labels (N,) int64 are the benchmark's class ids.

    Raises:
        ValueError: for what has no data set, a data set that does not hold labelled images, images of several shapes,
            or floating-point images outside [0, 1].
    """
    experiences = [source] if hasattr(source, "dataset") else _stream(source, "source", "test_stream")
    parts = [_read(experience, normalized, size) for experience in experiences]
    require(len(parts) > 0, "source", "at least one experience", len(parts))
    shapes = list(dict.fromkeys(f"{part.images.dtype} {tuple(part.images.shape[1:])}" for part in parts))
    require(len(shapes) == 1, "source", "experiences with images of one shape and dtype", shapes)
    return Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def task_of(experience: Any, *, normalized: InputSpec | None = None, size: int | tuple[int, int] | None = None) -> Task:
    """The task of an experience, for :meth:`exml_fast.continual.class_incremental.Learner.learn`.

    Args:
        experience: of a class-incremental benchmark. Its classes are ``classes_in_this_experience``, or the labels of
            its images for a benchmark without this attribute.
        normalized, size: as :func:`split_of`.

    Returns:
        The classes in ascending order, and their images.

    Raises:
        ValueError: for what :func:`split_of` refuses, a class without images, or images of other classes.
    """
    split = _read(experience, normalized, size)
    classes = getattr(experience, "classes_in_this_experience", None)
    ids = split.labels.unique().tolist() if classes is None else classes
    try:
        return Task(tuple(sorted(int(c) for c in ids)), split)
    except ValueError as error:
        raise ValueError(f"{_name(experience)}: {error}") from error


def tasks_of(
    benchmark: Any, *, normalized: InputSpec | None = None, size: int | tuple[int, int] | None = None
) -> list[Task]:
    """The tasks of a class-incremental benchmark, for :func:`exml_fast.continual.class_incremental.incremental`.

    All images are read into memory. :func:`task_of` reads one experience.

    Args:
        benchmark: a benchmark with a ``train_stream``, as ``nc_benchmark`` and ``SplitMNIST`` make them, or such a
            stream.
        normalized, size: as :func:`split_of`.

    Raises:
        ValueError: for a class that is in several experiences, and for what :func:`task_of` refuses.
    """
    tasks, known = list[Task](), set[int]()
    for experience in _stream(benchmark, "benchmark", "train_stream"):
        task = task_of(experience, normalized=normalized, size=size)
        if twice := [c for c in task.classes if c in known]:
            raise ValueError(
                f"benchmark must have each class in one experience only, but {_name(experience)} has the classes "
                f"{twice[:8]} of earlier experiences: task-incremental benchmarks must keep their class ids "
                "(class_ids_from_zero_in_each_exp=False)"
            )
        known |= set(task.classes)
        tasks.append(task)
    return tasks


class LearnerStrategy(SupervisedTemplate):
    """A learner as a strategy of Avalanche, with Avalanche's metrics and loggers.

    ``train(experience)`` lets the learner learn the classes of the experience; ``progress`` and ``checkpoint_dir`` are
    passed on to :meth:`exml_fast.continual.class_incremental.Learner.learn`. ``eval(stream)`` predicts among all
    classes that were learned. The metrics are computed from class ids, so the loss is the share of wrong predictions.
    The learner makes its own batches: plugins see experiences and evaluation batches, but no training batches.

    Args:
        learner: as :func:`exml_fast.continual.class_incremental.learner` makes it; the same object is taught.
        normalized: as :func:`split_of`.
        eval_mb_size: images a batch of an evaluation.
        plugins, evaluator: as Avalanche's ``SupervisedTemplate``.

    Attributes:
        learner: as given.
        learned: what the learner reports of each experience.

    Raises:
        ValueError: for a learner of another type. On ``train``, for what :func:`task_of` and ``Learner.learn`` refuse,
            such as classes of earlier experiences. On ``eval``, before the first experience, or for images outside
            [0, 1].
    """

    def __init__(
        self,
        *,
        learner: Learner[Any],
        normalized: InputSpec | None = None,
        eval_mb_size: int = 256,
        plugins: Sequence[Any] | None = None,
        evaluator: Any = default_evaluator,
    ) -> None:
        require(isinstance(learner, Learner), "learner", "a class-incremental learner", type(learner).__name__)
        super().__init__(
            model=_Answers(learner, normalized),
            optimizer=None,
            criterion=_share_of_wrong,
            eval_mb_size=eval_mb_size,
            plugins=plugins,
            evaluator=evaluator,
        )
        self.learner, self.normalized, self.learned = learner, normalized, list[LearnedTask]()

    def make_train_dataloader(self, **options: Any) -> None:
        """Nothing, because the learner makes its own batches."""

    def check_model_and_optimizer(self, **options: Any) -> None:
        """Nothing, because the learner grows its network and makes its optimiser."""

    def _train_exp(
        self,
        experience: Any,
        eval_streams: Any = None,
        *,
        progress: ProgressOption = None,
        checkpoint_dir: PathLike | None = None,
        **options: Any,
    ) -> None:
        task = task_of(experience, normalized=self.normalized)
        self.learned.append(self.learner.learn(task, progress=progress, checkpoint_dir=checkpoint_dir))


def experts_of(
    benchmark: Any,
    spec: Any = None,
    *,
    units: Sequence[int] | None = None,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
) -> Iterator[Expert]:
    """The experts of a benchmark of ex-model continual learning, each made when it is asked for (Carta 2022, sec. 2).

    Args:
        benchmark: with an ``expert_models_stream``, such as ``ExMLMNIST`` or an ``ExModelCLScenario``, or such a
            stream.
        spec: the input of the networks, an InputSpec or what :meth:`InputSpec.of` reads. When None, it is that of
            :data:`EXML_SPECS` for Avalanche's own benchmarks, and otherwise read from each network.
        units: class id of each logit, the same for all experts; 0 to K − 1 when None, as in Avalanche's benchmarks.
        architecture, arguments, class_names: as :meth:`exml_fast.Expert.wrap`.

    Yields:
        Experts of copies of the networks, with the classes in ascending order.

    Raises:
        ValueError: for another benchmark, and on iteration for an expert without input specification or classes, with
            classes that no logit has, or that :meth:`exml_fast.Expert.wrap` refuses.
    """
    stream = _stream(benchmark, "benchmark", "expert_models_stream")
    given = EXML_SPECS.get(type(benchmark).__name__) if spec is None else InputSpec.of(spec)
    options = {"architecture": architecture, "arguments": arguments, "class_names": class_names}
    return (_expert(experience, f"expert {n}", given, units, options) for n, experience in enumerate(stream, 1))


def expert_stream(benchmark: Any, spec: Any = None, folder: PathLike | None = None, **options: Any) -> ExpertStream:
    """The stream of the experts of a benchmark (:func:`experts_of`), for the methods of ``exml_fast.continual``.

    Args:
        benchmark, spec: as :func:`experts_of`, which also takes ``options``.
        folder: experts are saved to ``folder/expert_01`` and so on, one at a time, and the stream reads them from
            there. This needs an ``architecture`` that :func:`exml_fast.models.create` knows. None keeps copies of all
            networks in memory.

    Raises:
        ValueError: for what :func:`experts_of` and :meth:`exml_fast.Expert.save` refuse.
    """
    experts = experts_of(benchmark, spec, **options)
    if folder is None:
        return ExpertStream(list(experts))
    folders = list[Path]()
    for expert in experts:
        folders.append(Path(folder) / f"expert_{len(folders) + 1:02d}")
        expert.save(folders[-1])
        del expert  # before the next one is made
    return ExpertStream(folders)


class _Answers(nn.Module):
    """The predictions of a learner; Avalanche moves and trains its model, and must not do so with the network."""

    def __init__(self, learner: Learner[Any], normalized: InputSpec | None) -> None:
        super().__init__()
        self.learner, self.normalized = learner, normalized

    def forward(self, images: Tensor) -> Tensor:
        """Class ids (N,) of images (N, C, H, W) as the transforms give them."""
        pixels = _pixels(images, self.normalized, "images")
        return self.learner.predict(self.learner.spec.prepare(pixels)).to(images.device)


def _share_of_wrong(predicted: Tensor, labels: Tensor) -> Tensor:
    return (predicted != labels).float().mean()


def _stream(source: Any, argument: str, name: str) -> Iterable[Any]:
    stream: Any = getattr(source, name, source)
    require(isinstance(stream, Iterable), argument, f"a benchmark with {name}, or a stream", type(source).__name__)
    return stream


def _name(experience: Any) -> str:
    return f"experience {experience.current_experience}"


def _read(experience: Any, normalized: InputSpec | None, size: int | tuple[int, int] | None) -> Split:
    data: Any = getattr(experience, "dataset", None)
    evaluation: Callable[[], Any] | None = getattr(data, "eval", None)
    if evaluation is None:
        raise ValueError(
            f"experience must have a data set, as in train_stream and test_stream, got {type(experience).__name__}"
        )
    name = _name(experience)
    images, labels = images_and_labels(Subset(evaluation(), range(len(data))), size=size, name=name)
    if labels is None:
        raise ValueError(f"{name}: images must have class ids as labels")
    return Split(_pixels(images, normalized, name), labels)


def _pixels(images: Tensor, normalized: InputSpec | None, name: str) -> Tensor:
    """Images as the transforms give them, as uint8 or as float32 pixels in [0, 1]."""
    if not images.is_floating_point():
        return images
    pixels = images.float() if normalized is None else normalized.denormalize(images.float())
    low, high = (float(bound) for bound in pixels.aminmax())
    if -ROUNDING <= low <= high <= 1 + ROUNDING:
        return pixels.clamp(0, 1)
    if normalized is None:
        raise ValueError(
            f"{name}: floating-point images must be in [0, 1], got {low:g} to {high:g}: give normalized, the InputSpec "
            "with which the benchmark's transforms normalise"
        )
    raise ValueError(
        f"normalized must be the InputSpec with which the benchmark's transforms normalise, so that pixels are in "
        f"[0, 1], got {normalized}, which gives {low:g} to {high:g} in {name}"
    )


def _expert(
    experience: Any, name: str, spec: InputSpec | None, units: Sequence[int] | None, options: Mapping[str, Any]
) -> Expert:
    model: Any = getattr(experience, "expert_model", None)
    given: Any = getattr(experience, "classes_in_this_experience", None)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} must have a network as expert_model, got {type(model).__name__}")
    if given is None:
        raise ValueError(f"{name} must have classes_in_this_experience, the ids of its classes, got None")
    try:
        spec = InputSpec.of(model) if spec is None else spec
    except ValueError as error:
        raise ValueError(f"spec must be given, because {name} does not tell its input: {error}") from error
    with frozen(model):
        outputs = probe(model, torch.zeros(1, *spec.shape, device=device_of(model)), spec).shape[1]
    ids, classes = distinct_units(units, outputs), sorted(int(c) for c in given)
    if missing := [c for c in classes if c not in ids]:
        raise ValueError(
            f"{name} has the classes {missing[:8]}, but its {outputs} logits are those of {list(ids[:8])}: give units, "
            "the class id of each logit"
        )
    return Expert.wrap(model, spec, classes, units=ids, **options)
