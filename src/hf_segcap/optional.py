# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Packages that only some features need."""

import importlib
from typing import Any


def import_optional(package: str, extra: str, purpose: str) -> Any:
    """Imports a package of an extra of this package, at the moment when it is needed.

    Args:
        purpose: what needs it, for the message.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{purpose} needs {package}: pip install hf_segcap[{extra}]") from error


__all__ = ["import_optional"]
