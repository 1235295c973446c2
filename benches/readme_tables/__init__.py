"""The tables of README.md and docs/, each from its JSON file (benches/readme.py)."""
