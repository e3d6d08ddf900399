# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Fetches `tests/` of the source distribution of the *installed* transformers: wheels do not contain it.

The archive (11 MB) is downloaded once by `pip` from the configured package index into the user's cache folder. A lock
makes that safe for several processes (pytest-xdist).
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from filelock import FileLock

_FAILURE_IS_FRESH_S = 60.0  # other workers of the same run do not try again


class SdistUnavailable(RuntimeError):
    """The common test suites cannot be had: no network, no package index, or no `pip`."""


def cache_dir() -> Path:
    """The folder that keeps what the conformance tests download: `$XDG_CACHE_HOME/hf_segcap/conformance`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_segcap" / "conformance"


@functools.cache
def sdist_tests() -> Path:
    """Returns the `tests` folder of the sdist whose version is that of the installed transformers.

    Raises:
        SdistUnavailable: with the reason, when it is neither cached nor downloadable.
    """
    version = importlib.metadata.version("transformers")
    try:
        cache = cache_dir()
        cache.mkdir(parents=True, exist_ok=True)
        target, failure = cache / f"transformers-{version}", cache / f"transformers-{version}.failed"
        with FileLock(cache / "download.lock", timeout=600):
            if not target.is_dir():
                if failure.exists() and time.time() - failure.stat().st_mtime < _FAILURE_IS_FRESH_S:
                    raise SdistUnavailable(failure.read_text())
                try:
                    _download(version, target)
                except SdistUnavailable as error:
                    failure.write_text(str(error))
                    raise
    except OSError as error:
        raise SdistUnavailable(f"the cache folder cannot be used: {error}") from error
    return target / "tests"


def _download(version: str, target: Path) -> None:
    """Downloads the archive with pip (which knows the user's index and proxy) and unpacks its tests into `target`."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        # `--no-binary transformers`: the sdist. pip also asks it for its metadata, for which setuptools suffices.
        options = ["--no-deps", "--no-binary", "transformers", "--retries", "1", "--timeout", "20"]
        command = [sys.executable, "-m", "pip", "download", "-q", *options, "-d", folder, f"transformers=={version}"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired as error:
            raise SdistUnavailable("pip download took more than 300 s") from error
        archive = Path(folder) / f"transformers-{version}.tar.gz"
        if result.returncode or not archive.exists():
            last = (result.stderr.strip() or "no archive was written").splitlines()[-1]
            raise SdistUnavailable(f"pip download of the sdist of transformers {version} failed: {last}")
        unpacked = Path(folder) / target.name
        with tarfile.open(archive) as tar:
            tests = [m for m in tar.getmembers() if m.name.startswith(f"{target.name}/tests/")]
            tar.extractall(folder, members=tests, filter="data")
        if not (unpacked / "tests" / "test_modeling_common.py").exists():
            raise SdistUnavailable(f"the sdist of transformers {version} contains no tests/test_modeling_common.py")
        # the tests look up transformers next to themselves through this (empty) file
        (unpacked / "tests" / "__init__.py").touch()
        shutil.move(unpacked, target)
