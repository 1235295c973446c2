"""Replacements for published code, with the same names and values, computed by the fused ops."""

from exml_fast.compat import deep_inversion

__all__ = ["deep_inversion"]
