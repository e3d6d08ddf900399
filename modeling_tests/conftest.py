# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Set-up of the whole test suite: no network, one device, the marks of transformers' own tests."""

from __future__ import annotations

import os

import pytest

# Read once, when transformers and huggingface_hub are imported: set before anything imports them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    DISABLE_SAFETENSORS_CONVERSION="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("TRANSFORMERS_TEST_DEVICE", "cpu")

# Marks that transformers' common suites put on their tests (this project runs pytest with --strict-markers).
TRANSFORMERS_MARKS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "slow",
    "torch_compile_test",
)


def pytest_configure(config: pytest.Config) -> None:
    for mark in TRANSFORMERS_MARKS:
        config.addinivalue_line("markers", f"{mark}: used by transformers' common test suites")
