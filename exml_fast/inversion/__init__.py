"""Images out of trained classifiers: recipes, objective and loop (Yin 2020; Carta 2022; Nayak 2021)."""

from exml_fast.inversion import recipes
from exml_fast.inversion.many import invert_many
from exml_fast.inversion.parametrisation import Parametrisation
from exml_fast.inversion.recipes import Recipe
from exml_fast.inversion.result import Result
from exml_fast.inversion.statistics import BNStatistics
from exml_fast.inversion.synthesizer import Progress, Synthesizer, invert
from exml_fast.inversion.targets import class_similarity
from exml_fast.inversion.teacher import PRECISIONS, FrozenTeacher

__all__ = [
    "PRECISIONS",
    "BNStatistics",
    "FrozenTeacher",
    "Parametrisation",
    "Progress",
    "Recipe",
    "Result",
    "Synthesizer",
    "class_similarity",
    "invert",
    "invert_many",
    "recipes",
]
