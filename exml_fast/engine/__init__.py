"""A frozen network whose pass forward and back to the images costs less than the bare network's.

``FrozenTeacher`` copies a classifier (freezing), replaces layers by faster ones (substitution, fusion, frozen_conv),
and returns logits together with the layers' statistics (statistics).
"""

from exml_fast.engine.conv_tuning import PRECISIONS
from exml_fast.engine.eager import EagerTeacher
from exml_fast.engine.statistics import BNStatistics
from exml_fast.engine.teacher import FrozenTeacher

__all__ = ["PRECISIONS", "BNStatistics", "EagerTeacher", "FrozenTeacher"]
