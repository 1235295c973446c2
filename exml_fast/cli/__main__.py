"""`python -m exml_fast.cli` is `exml-fast`."""

from exml_fast.cli import main

main()
