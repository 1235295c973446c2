"""Classifiers on the features of exemplars (Lardizzone 2020, sec. 4.2)."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CLASSIFIERS", "FeatureClassifier", "NearestMean"]

FeatureClassifier = Callable[[Tensor], Tensor]
"""``f(features (N, D))``: logit positions (N,)."""


class NearestMean:
    """The class with the nearest mean of its exemplars' features (Rebuffi 2017, Alg. 1).

    Features and means are scaled to norm 1.

    Args:
        features: (M, D) of the exemplars.
        labels: (M,) logit positions, each of 0 to K − 1 at least once.
    """

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        features = F.normalize(features, dim=1)
        sums = torch.zeros(int(labels.max()) + 1, features.shape[1]).index_add_(0, labels, features)
        self.means = F.normalize(sums, dim=1)  # a sum has the direction of its mean

    def __call__(self, features: Tensor) -> Tensor:
        """Logit positions (N,) for features (N, D)."""
        return (F.normalize(features, dim=1) @ self.means.T).argmax(1)


def _learned(features: Tensor, labels: Tensor, model: Any) -> FeatureClassifier:
    """A classifier of scikit-learn; features are standardised first."""
    scaler = _scikit_learn("preprocessing").StandardScaler()
    with warnings.catch_warnings():
        # The epochs of the paper's MLP are fixed; scikit-learn warns that the loss would fall on.
        warnings.simplefilter("ignore", _scikit_learn("exceptions").ConvergenceWarning)
        fitted = _scikit_learn("pipeline").make_pipeline(scaler, model).fit(features.numpy(), labels.numpy())
    return lambda found: torch.from_numpy(fitted.predict(found.numpy())).long()


def _scikit_learn(part: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{part}")
    except ImportError as error:
        raise ImportError("this classifier needs scikit-learn: pip install 'exml_fast[eval]'") from error


def k_nearest(features: Tensor, labels: Tensor, seed: int) -> FeatureClassifier:
    """The majority of the five nearest exemplars."""
    return _learned(features, labels, _scikit_learn("neighbors").KNeighborsClassifier(min(5, len(labels))))


def perceptron(features: Tensor, labels: Tensor, seed: int) -> FeatureClassifier:
    """A hidden layer of 100 ReLU units, Adam at 0.001, at most 200 epochs.

    The paper does not give the hidden layer's size. Its loss is the squared error; scikit-learn's is cross-entropy.
    """
    network = _scikit_learn("neural_network").MLPClassifier
    return _learned(features, labels, network((100,), learning_rate_init=1e-3, max_iter=200, random_state=seed))


def support_vectors(features: Tensor, labels: Tensor, seed: int) -> FeatureClassifier:
    """A support vector machine with RBF kernel and C = 1."""
    return _learned(features, labels, _scikit_learn("svm").SVC(C=1.0, kernel="rbf"))


CLASSIFIERS: dict[str, Callable[[Tensor, Tensor, int], FeatureClassifier]] = {
    "nearest-mean": lambda features, labels, seed: NearestMean(features, labels),
    "k-nearest": k_nearest,
    "mlp": perceptron,
    "svm": support_vectors,
}
"""``CLASSIFIERS[name](features, labels, seed)`` of the exemplars. Those of scikit-learn need the extra "eval"."""
