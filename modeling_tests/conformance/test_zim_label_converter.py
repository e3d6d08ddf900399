# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""transformers' common test suites for `specs/zim_label_converter.py`."""

import pytest

from modeling_tests.conformance.suites import conformance_tests

pytestmark = pytest.mark.network

globals().update(conformance_tests("zim_label_converter", __name__))
