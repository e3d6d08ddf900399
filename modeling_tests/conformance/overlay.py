# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Makes the common test mixins of the transformers sdist importable as the package `transformers_common_tests`.

The sdist ships only `tests/test_*.py`. Those files import four helpers that it leaves out; stand-ins for them are put
into `sys.modules` here. The shipped files are imported from where they were unpacked, never copied or edited.
"""

from __future__ import annotations

import importlib
import sys
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from .generation import GenerationTesterMixin
from .sdist import cache_dir, sdist_tests

PACKAGE = "transformers_common_tests"

# keyword arguments that every configuration must accept and keep
_CONFIG_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["SomeModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
    "name_or_path": "some/where",
}


class _ExportTesterMixin:
    """The ONNX / ExecuTorch export tests are not part of the sdist."""


def _url_to_local_path(url: str, return_url_if_not_found: bool = True) -> str:
    """Turns the address of a picture into a small generated file; any other address is returned as it is."""
    suffix = Path(url).suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg"):
        return url
    path = cache_dir() / "images" / f"{zlib.crc32(url.encode()):08x}{suffix}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(zlib.crc32(url.encode())).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        partial = path.with_name(f"{path.stem}.{id(pixels)}{suffix}")
        Image.fromarray(pixels).resize((64, 48)).save(partial)
        partial.replace(path)  # atomic: another process may be doing the same
    return str(path)


def _module(name: str, search_path: list[str] | None = None, **attributes: object) -> None:
    module = ModuleType(name)
    if search_path is not None:
        module.__path__ = search_path
    vars(module).update(attributes)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def bootstrap() -> None:
    """Installs the package; raises `SdistUnavailable` when the sdist cannot be had."""
    if PACKAGE in sys.modules:
        return
    _module(PACKAGE, [str(sdist_tests())])
    for folder in ("exporters", "generation", "utils"):
        _module(f"{PACKAGE}.{folder}", [])
    _module(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=_ExportTesterMixin)
    _module(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=GenerationTesterMixin)
    _module(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs=_CONFIG_KWARGS)
    _module("fetch_hub_objects_for_ci", url_to_local_path=_url_to_local_path)


def common_tests(name: str) -> ModuleType:
    """Imports `tests/<name>.py` of the sdist, e.g. `common_tests("test_modeling_common")`."""
    bootstrap()
    return importlib.import_module(f"{PACKAGE}.{name}")
