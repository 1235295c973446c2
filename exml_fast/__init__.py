"""Data-free learning from trained models, at hardware speed.

A trained classifier goes in; synthetic images, and models that learned from nothing but them, come out.
"""

from exml_fast import ops
from exml_fast._native import build_info

__version__ = str(build_info()["version"])

__all__ = ["__version__", "build_info", "ops"]
