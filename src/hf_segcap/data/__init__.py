# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Readers that turn data sets into one row format (see `sources.py`), the collator and the augmentation."""

from .augmentation import LargeScaleJitter
from .collator import RegionCollator
from .folder import RegionFolder
from .label_collator import LabelCollator
from .mask_collator import MaskCollator
from .matte_collator import MatteCollator
from .sources import MixedRows, load_source
from .visual_genome import VisualGenomeRegions

__all__ = [
    "LabelCollator",
    "LargeScaleJitter",
    "MaskCollator",
    "MatteCollator",
    "MixedRows",
    "RegionCollator",
    "RegionFolder",
    "VisualGenomeRegions",
    "load_source",
]
