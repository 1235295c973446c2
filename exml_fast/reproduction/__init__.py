"""The papers' tables computed again.

``presets/*.toml`` hold settings, the papers' figures ``[paper]`` and their lengths ``[published]``; ``tasks.py`` lists
all tasks. ``zskd.py``, ``robustness.py``, ``adapt.py`` and ``perturb.py`` (Nayak 2021) work in a ``Lab``; ``stream.py``
(Carta 2022) runs a ``Study`` for each row. ``runner.py`` loads, checks and runs a preset with several seeds.
"""
