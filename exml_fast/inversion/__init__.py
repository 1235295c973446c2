"""Images out of trained classifiers: recipes, objective and loop (Yin 2020; Carta 2022; Nayak 2021)."""

from exml_fast.inversion import recipes
from exml_fast.inversion.custom_terms import CustomTerm
from exml_fast.inversion.invert import invert, invert_many
from exml_fast.inversion.objective import Step, Term
from exml_fast.inversion.parametrisation import Parametrisation
from exml_fast.inversion.recipes import Recipe
from exml_fast.inversion.result import Result
from exml_fast.inversion.set_statistics import SetStatistics
from exml_fast.inversion.synthesizer import Synthesizer
from exml_fast.inversion.targets import class_similarity

__all__ = [
    "CustomTerm",
    "Parametrisation",
    "Recipe",
    "Result",
    "SetStatistics",
    "Step",
    "Synthesizer",
    "Term",
    "class_similarity",
    "invert",
    "invert_many",
    "recipes",
]
