# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Turns specs into unittest classes built on transformers' own mixins."""

from __future__ import annotations

import fnmatch
import importlib
import unittest
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from ..overlay import bootstrap
from ..sdist import SdistUnavailable
from ..spec_types import Spec

_SUITES = {
    "MODELS": "models",
    "PROCESSORS": "processors",
    "IMAGE_PROCESSORS": "image_processors",
    "PIPELINES": "pipelines",
}


def conformance_tests(model: str, test_module: str) -> dict[str, type[unittest.TestCase]]:
    """Returns the test classes of `specs/<model>.py` by name, for the namespace of `test_module` (its `__name__`).

    Without the sdist of transformers (no network, and nothing cached) the calling module is skipped with the reason, and
    a warning is issued.
    """
    try:
        bootstrap()
    except SdistUnavailable as error:
        reason = f"transformers' common test suites were NOT run for {model}: {error}"
        warnings.warn(reason, stacklevel=2)
        pytest.skip(reason, allow_module_level=True)
    spec_module = importlib.import_module(f"modeling_tests.conformance.specs.{model}")
    classes = {}
    for variable, suite in _SUITES.items():
        for spec in getattr(spec_module, variable, []):
            test_class = importlib.import_module(f"{__name__}.{suite}").test_class(spec)
            # the common tests look for the file of the module that defines their class
            test_class.__module__ = test_module
            classes[test_class.__name__] = test_class
    return classes


def build_test_class(
    suffix: str, bases: tuple[type, ...], spec: Spec, namespace: dict[str, Any], skip: dict[str, str] | None = None
) -> type[unittest.TestCase]:
    """Builds `<spec.name><suffix>ConformanceTest`; the tests that match `spec.skip` (or `skip`) become skips."""
    namespace = {**namespace, **spec.flags, **spec.override}
    names = {n for base in bases for n in dir(base)} | set(namespace)
    for pattern, reason in {**(skip or {}), **spec.skip}.items():
        matching = [n for n in names if n.startswith("test_") and fnmatch.fnmatch(n, pattern)]
        if not matching:
            raise ValueError(f"{spec.name}: the skip pattern {pattern!r} matches no test")
        namespace.update((name, _skipped(reason)) for name in matching)
    return type(f"{spec.name}{suffix}ConformanceTest", bases, namespace)


def _skipped(reason: str) -> Callable:
    def skipped(self, *args, **kwargs):
        self.skipTest(reason)

    return skipped
