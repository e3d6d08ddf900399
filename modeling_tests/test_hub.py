# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Round trips through a Hub on the loopback interface; pusher and loader are processes with caches of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hf_segcap
from hf_segcap import SamCaptionConfig
from hf_segcap.hub import add_hub_files, auto_map_files
from modeling_tests.hub_server import HubServer
from modeling_tests.tiny import tiny_sam_caption

ROOT = Path(__file__).parents[1]
REPOSITORY = "tester/tiny-captioner"


def run_client(hub: HubServer, home: Path, function: str, repository: str = REPOSITORY) -> Any:
    """Runs a function of `hub_client.py` in a new process with an empty cache; returns its result."""
    environment = {**os.environ, **hub.env, "HF_HOME": str(home), "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-m", "modeling_tests.hub_client", function, repository]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}\n{hub.requests[-5:]}"
    return json.loads(result.stdout.splitlines()[-1])


def stored(hub: HubServer, repository: str = REPOSITORY, branch: str = "main") -> dict[str, str]:
    """The text files of a repository as the server holds them; binary files are empty strings."""
    store = hub.store
    tree = store.read_commit("models", repository, store.resolve("models", repository, branch))["tree"]
    return {name: "" if file["lfs"] else store.blob(file["sha256"]).read_text() for name, file in tree.items()}


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def pushed(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_client(hub, tmp_path_factory.mktemp("pusher"), "push")


def same_digest(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got["weights"] == pytest.approx(expected["weights"], rel=1e-12)
    assert {k: v for k, v in got.items() if k != "weights"} == {k: v for k, v in expected.items() if k != "weights"}


def test_what_is_pushed(hub: HubServer, pushed: dict[str, Any]) -> None:
    files = stored(hub)
    assert [name for name in files if name.endswith((".bin", ".pt", ".pth"))] == []
    assert "model.safetensors" in files
    names = "SamCaptionConfig, SamCaptionForRegionCaptioning, SamCaptionProcessor"
    assert files["segcap_auto.py"] == f"from hf_segcap import {names}  # noqa: F401\n"
    auto_map = json.loads(files["config.json"])["auto_map"]
    assert auto_map["AutoModelForImageTextToText"] == "segcap_auto.SamCaptionForRegionCaptioning"
    assert json.loads(files["processor_config.json"])["auto_map"] == {
        "AutoProcessor": "segcap_auto.SamCaptionProcessor"
    }
    card = files["README.md"]
    assert "pipeline_tag: region-captioning" in card
    assert f'pipeline("region-captioning", model="{REPOSITORY}")' in card
    # a folder on the disk gets none of this
    assert not {"segcap_auto.py", "README.md"} & set(pushed["local_files"])
    assert not pushed["local_auto_map"]


def test_load_in_another_process(hub: HubServer, pushed: dict[str, Any], tmp_path: Path) -> None:
    loaded = run_client(hub, tmp_path, "load")
    same_digest(loaded["direct"], pushed["main"])
    same_digest(loaded["auto"], pushed["main"])
    same_digest(loaded["branch"], pushed["branch"])
    assert pushed["branch"]["weights"] != pushed["main"]["weights"]
    assert loaded["pipelines"] == [pushed["main"]["captions"][0]] * 2
    assert loaded["task_by_card"] == "region-captioning"


def test_load_without_importing_the_package(hub: HubServer, pushed: dict[str, Any], tmp_path: Path) -> None:
    loaded = run_client(hub, tmp_path, "load_remote_code")
    assert loaded["imported_before"] == []
    assert loaded["module"] == "hf_segcap.models.sam_caption.modeling_sam_caption"
    same_digest(loaded["digest"], pushed["main"])
    # saved again, it is a plain folder: no code, no reference to the repository
    assert loaded["saved_files"] == pushed["local_files"]
    assert not loaded["saved_auto_map"]


def test_push_pipeline_keeps_the_card(hub: HubServer, tmp_path: Path) -> None:
    files = run_client(hub, tmp_path, "push_pipeline", "tester/whole-pipeline")
    assert {"segcap_auto.py", "processor_config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    card = stored(hub, "tester/whole-pipeline")["README.md"]
    assert "# My own card" in card
    for line in ("license: mit", "- mine", "pipeline_tag: region-captioning", "library_name: transformers"):
        assert line in card


def test_auto_map_names_public_classes() -> None:
    files = auto_map_files(SamCaptionConfig)
    for entries in (files["config.json"], files["processor_config.json"]):
        assert isinstance(entries, dict)
        for reference in entries.values():
            module, name = reference.split(".")
            assert module == "segcap_auto"
            assert hasattr(hf_segcap, name)


def test_add_hub_files_changes_nothing_else(tmp_path: Path) -> None:
    tiny_sam_caption().save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    add_hub_files(tmp_path, SamCaptionConfig, "tester/x", "region-captioning")
    after = json.loads((tmp_path / "config.json").read_text())
    assert after.pop("auto_map")["AutoConfig"] == "segcap_auto.SamCaptionConfig"
    assert after == before
    assert not (tmp_path / "README.md").exists()
