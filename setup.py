# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Only what pyproject.toml cannot say: `conversion/` next to `src/` is the package `hf_segcap.conversion`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages("src"), "hf_segcap.conversion"],
    package_dir={"": "src", "hf_segcap.conversion": "conversion"},
)
