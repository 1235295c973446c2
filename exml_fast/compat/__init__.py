"""Parts for other libraries: replacements for published code, Lightning, models of Hugging Face, and Avalanche.

``compat.lightning``, ``compat.transformers`` and ``compat.avalanche`` need their libraries, so each is imported by its
own name.
"""

from exml_fast.compat import deep_inversion

__all__ = ["deep_inversion"]
