# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The processor tests with torchvision, in a process of its own.

    pip download torchvision --no-deps -d DIR && unzip DIR/torchvision-*.whl -d DIR/unpacked
    HF_SEGCAP_TORCHVISION=DIR/unpacked pytest modeling_tests/test_torchvision.py

`tvshim/` makes that work with a CUDA wheel on a machine without one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TORCHVISION = os.environ.get("HF_SEGCAP_TORCHVISION")

pytestmark = pytest.mark.skipif(
    TORCHVISION is None, reason="HF_SEGCAP_TORCHVISION names no folder with an unpacked torchvision wheel"
)


def run_python(*arguments: str) -> str:
    path = [str(TESTS / "tvshim"), str(TORCHVISION), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-4000:]
    return result.stdout


def test_torchvision_backend_is_used() -> None:
    names = run_python(
        "-c", "from modeling_tests.tiny import *; print(type(tiny_processor().image_processor).__name__)"
    )
    assert names.split() == ["SamImageProcessor"]


@pytest.mark.parametrize(
    "selection",
    [
        ["modeling_tests/models/sam_caption/test_processing_sam_caption.py"],
        ["modeling_tests/conformance/test_sam_caption.py", "-k", "Processor"],
    ],
    ids=["processor", "conformance"],
)
def test_processor_tests_pass(selection: list[str]) -> None:
    output = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", *selection)
    passed = re.search(r"(\d+) passed", output)
    assert passed and int(passed[1]) > 10, output[-2000:]
