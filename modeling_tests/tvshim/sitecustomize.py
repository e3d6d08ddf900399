# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Lets a CUDA build of torchvision be imported next to a CPU-only torch: for testing its image-processor backends.

The compiled part of such a build does not load, so the schemas of the operators that its Python files expect are
declared before the first `import torchvision`, with a plain CPU kernel for `nms`. Put this folder, and the one that
holds `torchvision/`, on PYTHONPATH: Python imports `sitecustomize` at start-up. `test_torchvision.py` does so.
"""

import importlib.abc
import sys

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _TorchvisionImport(importlib.abc.MetaPathFinder):
    """Finds nothing, but acts just before torchvision is looked for."""

    library = None  # a torch.library.Library lives as long as its reference

    def find_spec(self, name, path, target=None):
        if name == "torchvision" and self.library is None:
            self.library = _declare_operators()
        elif (
            name == "torchvision.ops"
        ):  # torchvision.extension is imported by now; nms() asks it whether operators exist
            sys.modules["torchvision.extension"]._assert_has_ops = lambda: None


def _declare_operators():
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)

    def nms(boxes, scores, iou_threshold):
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        dead = torch.zeros(len(boxes), dtype=torch.bool)
        kept = []
        for i in scores.argsort(descending=True, stable=True).tolist():
            if not dead[i]:
                kept.append(i)
                low, high = torch.maximum(boxes[i, :2], boxes[:, :2]), torch.minimum(boxes[i, 2:], boxes[:, 2:])
                overlap = (high - low).clamp(min=0).prod(1)
                dead |= overlap / (area[i] + area - overlap) > iou_threshold
        return torch.tensor(kept, dtype=torch.int64)

    library.impl("nms", nms, "CPU")
    return library


sys.meta_path.insert(0, _TorchvisionImport())
