# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The wheel built from this tree holds everything and works without the tree."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .tracked_files import ROOT, tracked_files

USE_THE_PACKAGE = """
import sys
from pathlib import Path

import hf_segcap
import hf_segcap.conversion.convert_sca as convert_sca
from PIL import Image
from transformers import pipeline

home = Path(sys.argv[1])
for module in (hf_segcap, hf_segcap.conversion, convert_sca):
    assert Path(module.__file__).is_relative_to(home), module.__file__
pipe = pipeline("region-captioning")
assert Path(pipe.model.name_or_path).is_relative_to(home), pipe.model.name_or_path
image = Image.new("RGB", (120, 80), "white")
image.paste((220, 20, 20), (10, 10, 60, 60))
(region,) = pipe(image, boxes=[[10, 10, 60, 60]])
print(region["caption"])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tracked files: setuptools leaves its own files in the folder it builds from."""
    tree, output = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for path in tracked_files():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tree / path)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", output, tree]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = output.glob("hf_segcap-*.whl")
    return built


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    expected = set()
    for path in tracked_files():
        if path.is_relative_to("src/hf_segcap"):
            expected.add(path.relative_to("src").as_posix())
        elif path.is_relative_to("conversion"):
            expected.add(f"hf_segcap/{path.as_posix()}")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert found == expected
    assert licences


def test_wheel_works_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", home, wheel]
    subprocess.run(install, check=True, capture_output=True)

    run = subprocess.run(
        [sys.executable, "-c", USE_THE_PACKAGE, home],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(home)},
        capture_output=True,
        text=True,
    )

    assert run.returncode == 0, run.stderr
    assert "red" in run.stdout.split(), run.stdout
