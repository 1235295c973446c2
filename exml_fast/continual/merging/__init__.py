"""Merging: one network made of the experts' weights, as baselines of ex-model streams."""

from exml_fast.continual.merging.images import Images, MergeImages
from exml_fast.continual.merging.merged import Merged
from exml_fast.continual.merging.rebasin import ReBasin
from exml_fast.continual.merging.regmean import RegMean
from exml_fast.continual.merging.zipit import ZipIt

__all__ = ["Images", "MergeImages", "Merged", "ReBasin", "RegMean", "ZipIt"]
