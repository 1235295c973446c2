"""Parts for other libraries: replacements for published code, Lightning, and models of Hugging Face.

``compat.lightning`` and ``compat.transformers`` need their libraries, so each is imported by its own name.
"""

from exml_fast.compat import deep_inversion

__all__ = ["deep_inversion"]
