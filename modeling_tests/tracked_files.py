# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The files that belong to the project, for tests about the tree itself."""

import functools
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@functools.cache
def tracked_files() -> list[Path]:
    """Paths, relative to `ROOT`, of all files that git tracks or would track; skips the test outside of a git clone."""
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no git clone: which files belong to the project is not known")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted({Path(name) for name in listing.split("\0") if name and (ROOT / name).is_file()})
