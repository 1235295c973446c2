"""``python -m exml_fast`` and ``torchrun -m exml_fast``: the command `exml-fast`."""

from exml_fast.cli import main

if __name__ == "__main__":
    main()
