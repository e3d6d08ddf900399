# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What the README shows is run: its code from top to bottom, its recipe, its command lines."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hf_segcap.cli import app

from .tiny import random_image, tiny_processor, tiny_sam_caption
from .tracked_files import ROOT

OFFICIAL = "xk-huang/segment-caption-anything-gpt2_large-vg"
OFFICIAL_ONNX = "naver-iv/zim-anything-vitl"


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README speaks of; a tiny model takes the place of the official checkpoint."""
    monkeypatch.chdir(tmp_path)
    tiny_sam_caption().save_pretrained("tiny")
    tiny_processor().save_pretrained("tiny")
    Path("my_data/images").mkdir(parents=True)
    for i, name in enumerate(("photo.jpg", "scene.png", "a.jpg", "b.jpg", "my_data/images/cat.jpg")):
        random_image(i, (640, 400)).save(name)
    (annotations,) = blocks("json")
    Path("my_data/regions.jsonl").write_text(annotations)
    (recipe,) = blocks("yaml")
    assert OFFICIAL in recipe
    Path("my_recipe.yaml").write_text(recipe.replace(OFFICIAL, "tiny"))
    return tmp_path


def test_python_of_the_readme_runs(user_folder: Path) -> None:
    names: dict[str, Any] = {}
    for code in blocks("python"):
        # Pushing is tested in test_hub.py; here there is no Hub. One epoch instead of ten.
        code = re.sub(r"^.*push_to_hub.*\n", "", code, flags=re.M).replace(OFFICIAL, "tiny")
        code = code.replace(OFFICIAL_ONNX, str(ROOT / "modeling_tests/fixtures/zim/onnx"))
        code = code.replace("num_train_epochs=10", 'num_train_epochs=1, use_cpu=True, report_to="none"')
        exec(compile(code, "README.md", "exec"), names)
    assert [len(regions) for regions in names["captions"]] == [1]
    assert names["trainer"].state.global_step == 1


def test_commands_of_the_readme_run(user_folder: Path) -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("hf-segcap ")]
    assert len(lines) >= 3
    for line in lines:
        extra = {"train": ["--override", "training.use_cpu=true"], "caption": ["--model", "tiny"]}.get(
            line.split()[1], []
        )
        result = CliRunner().invoke(app, [*shlex.split(line)[1:], *extra])
        assert result.exit_code == 0, (line, result.output, result.exception)
    assert all(
        (user_folder / name).exists()
        for name in ("captioned.png", "masks.png", "records.json", "cutout.png", "alpha.png")
    )
    assert (user_folder / "my_model" / "model.safetensors").exists()
    assert list((user_folder / "my_features").glob("*.safetensors"))
