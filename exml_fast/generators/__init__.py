"""Generator networks that hold a classifier's knowledge, trained without data."""

from exml_fast.generators.delegator import Delegation, Delegator, ExplorationLoss, GeneratorNetwork, delegate
from exml_fast.generators.generator import Generator, GeneratorCard
from exml_fast.generators.meta import Fast, FastSynthesis
from exml_fast.generators.networks import DeconvolutionGenerator, UpsamplingGenerator, create, register

__all__ = [
    "DeconvolutionGenerator",
    "Delegation",
    "Delegator",
    "ExplorationLoss",
    "Fast",
    "FastSynthesis",
    "Generator",
    "GeneratorCard",
    "GeneratorNetwork",
    "UpsamplingGenerator",
    "create",
    "delegate",
    "register",
]
