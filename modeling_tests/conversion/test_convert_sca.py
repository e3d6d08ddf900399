# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`convert_sca` on the golden official folders: single, sharded, fp16 and damaged files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_segcap import SamCaptionForRegionCaptioning, SamCaptionProcessor
from hf_segcap.conversion import convert_sca as script
from hf_segcap.conversion.convert_sca import convert_sca

from ..hub_server import HubServer
from ..tiny import random_image

FIXTURES = Path(__file__).parents[1] / "fixtures" / "sca"
CAPTION_MIXER_WEIGHT = "mask_decoder.additional_transformer.layers.1.mlp.lin1.weight"


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a one-file checkpoint."""
    if (folder / "model.safetensors").exists():
        return load_file(folder / "model.safetensors")
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


def copy_without_weights(language_model: str, folder: Path) -> Path:
    """A copy of a golden checkpoint folder that lacks the weights."""
    shutil.copytree(
        FIXTURES / language_model / "checkpoint",
        folder,
        ignore=shutil.ignore_patterns("pytorch_model.bin", "model.safetensors"),
    )
    return folder


@pytest.fixture(params=["gpt2", "llama"])
def official(request: pytest.FixtureRequest) -> Path:
    return FIXTURES / request.param / "checkpoint"


@pytest.fixture
def gpt2_tensors() -> dict[str, torch.Tensor]:
    return stored_tensors(FIXTURES / "gpt2" / "checkpoint")


def test_converted_folder_is_complete_and_says_the_same(official: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    conversion = convert_sca(official, output)

    written, original = load_file(output / "model.safetensors"), stored_tensors(official)
    assert conversion.num_read == len(original)
    assert conversion.num_written == len(written)
    assert set(written) <= set(original)
    assert all(torch.equal(written[key], original[key]) for key in written)
    # Left out are only second names of tensors that are written, and what the official class does not use.
    aliases = {"prompt_encoder.shared_embedding.positional_embedding", "language_model.lm_head.weight"}
    unused = {key for key in original if key.endswith("rotary_emb.inv_freq")}
    assert set(original) - set(written) <= aliases | unused
    assert {path.name for path in output.iterdir()} >= {"config.json", "generation_config.json", "README.md"}
    assert not list(output.glob("*.bin"))

    image, box = random_image(), [[4, 5, 40, 30]]
    captions = []
    for folder in (official, output):
        processor = SamCaptionProcessor.from_pretrained(folder)
        model = SamCaptionForRegionCaptioning.from_pretrained(folder, dtype=torch.float32).eval()
        inputs = processor(images=image, input_boxes=box, return_tensors="pt")
        allowed = {key: inputs[key] for key in ("pixel_values", "input_boxes", "prompt_mask")}
        captions.append(model.generate(**allowed, max_new_tokens=8).tolist())
    assert captions[0] == captions[1]


def test_sharded_pickles(gpt2_tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder, keys = copy_without_weights("gpt2", tmp_path / "official"), sorted(gpt2_tensors)
    weight_map = {}
    for i, part in enumerate((keys[::2], keys[1::2])):
        name = f"pytorch_model-{i + 1:05d}-of-00002.bin"
        torch.save({key: gpt2_tensors[key] for key in part}, folder / name)
        weight_map.update(dict.fromkeys(part, name))
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    conversion = convert_sca(folder, tmp_path / "out")

    assert conversion.files == sorted(set(weight_map.values()))
    assert conversion.num_read == len(keys)
    (folder / conversion.files[1]).unlink()
    with pytest.raises(ValueError, match="lacks pytorch_model-00002-of-00002.bin"):
        convert_sca(folder, tmp_path / "out2")


def test_half_precision_is_kept_unless_another_dtype_is_asked_for(
    gpt2_tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    folder = copy_without_weights("gpt2", tmp_path / "official")
    torch.save({key: tensor.half() for key, tensor in gpt2_tensors.items()}, folder / "pytorch_model.bin")

    kept = convert_sca(folder, tmp_path / "kept")
    assert {tensor.dtype for tensor in load_file(tmp_path / "kept" / "model.safetensors").values()} == {torch.float16}
    assert kept.max_rounding == 0
    assert SamCaptionForRegionCaptioning.from_pretrained(tmp_path / "kept").dtype == torch.float16

    convert_sca(folder, tmp_path / "wide", torch.float32)
    written = load_file(tmp_path / "wide" / "model.safetensors")
    assert torch.equal(written[CAPTION_MIXER_WEIGHT], gpt2_tensors[CAPTION_MIXER_WEIGHT].half().float())

    rounded = convert_sca(FIXTURES / "gpt2" / "checkpoint", tmp_path / "rounded", torch.bfloat16)
    assert 0 < rounded.max_rounding < 0.02
    assert "bfloat16, largest rounding" in rounded.table()


def test_unused_keys_are_ignored_and_named(gpt2_tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    unused = "language_model.transformer.h.0.attn.masked_bias"
    folder = copy_without_weights("gpt2", tmp_path / "official")
    torch.save(gpt2_tensors | {unused: torch.tensor(-1e4)}, folder / "pytorch_model.bin")

    conversion = convert_sca(folder, tmp_path / "out")

    assert unused in conversion.ignored
    assert unused in conversion.table()


def test_truncated_weights_are_refused(official: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(official, tmp_path / "official")
    (weights,) = [*folder.glob("*.bin"), *folder.glob("*.safetensors")]
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])

    with pytest.raises(ValueError, match=f"{weights.name} cannot be read: it is damaged or incomplete"):
        convert_sca(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickles_that_run_code_are_refused(tmp_path: Path) -> None:
    folder = copy_without_weights("gpt2", tmp_path / "official")
    torch.save({"weight": Path("not a tensor")}, folder / "pytorch_model.bin")

    with pytest.raises(ValueError, match="pytorch_model.bin cannot be read"):
        convert_sca(folder, tmp_path / "out")


@pytest.mark.parametrize(
    "prefix", ["mask_decoder.additional_transformer.layers.1.", "mask_decoder.caption_tokens", "language_project."]
)
def test_missing_trained_weights_are_refused(
    prefix: str, gpt2_tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    folder = copy_without_weights("gpt2", tmp_path / "official")
    kept = {key: tensor for key, tensor in gpt2_tensors.items() if not key.startswith(prefix)}
    assert len(kept) < len(gpt2_tensors)
    save_file({key: tensor.clone() for key, tensor in kept.items()}, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(ValueError, match=prefix.rstrip(".")):
        convert_sca(folder, tmp_path / "out")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no config.json"):
        convert_sca(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text('{"model_type": "sam"}')
    with pytest.raises(ValueError, match="model_type 'sam', expected 'sca'"):
        convert_sca(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="holds no weights"):
        convert_sca(copy_without_weights("gpt2", tmp_path / "official"), tmp_path / "out")
    with pytest.raises(ValueError, match="is not empty"):
        convert_sca(FIXTURES / "gpt2" / "checkpoint", tmp_path)


def test_a_change_after_writing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = SamCaptionForRegionCaptioning.save_pretrained

    def save_something_else(model: SamCaptionForRegionCaptioning, *args: object, **kwargs: object) -> None:
        with torch.no_grad():
            model.language_project.bias[0] += 1e-3
        save(model, *args, **kwargs)

    monkeypatch.setattr(SamCaptionForRegionCaptioning, "save_pretrained", save_something_else)
    with pytest.raises(ValueError, match="'language_project.bias' differs from the official one"):
        convert_sca(FIXTURES / "gpt2" / "checkpoint", tmp_path / "out")


def test_script_prints_what_it_did(tmp_path: Path) -> None:
    arguments = ["--checkpoint", FIXTURES / "llama" / "checkpoint", "--output", tmp_path / "out", "--dtype", "float16"]
    run = subprocess.run([sys.executable, script.__file__, *arguments], capture_output=True, text=True, check=True)

    lines = dict(line.split(maxsplit=1) for line in run.stdout.splitlines())
    assert lines["weights"].endswith("float32, in model.safetensors")
    assert lines["written"].startswith(str(tmp_path / "out"))
    assert "llama, width 48" in run.stdout
    assert "every tensor equal" in lines["verified"]


def test_script_explains_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = script.main(["--checkpoint", str(tmp_path), "--output", str(tmp_path / "out")])

    assert status == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} has no config.json; give the folder of")


@pytest.mark.parametrize(
    ("name", "reason"), [("me/sca", "offline mode is enabled"), ("a/b/c/d", "Repo id must be in the form")]
)
def test_script_explains_failed_uploads(
    name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(FIXTURES / "gpt2" / "checkpoint"), "--output", str(tmp_path / "out")]

    status = script.main([*arguments, "--push-to-hub", name])

    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2
    assert error.startswith(f"error: {tmp_path / 'out'} is written, but was not uploaded to {name!r}: ")
    assert reason in error


def test_script_explains_a_hub_that_does_not_answer(tmp_path: Path) -> None:
    arguments = [
        "--checkpoint",
        FIXTURES / "gpt2" / "checkpoint",
        "--output",
        tmp_path / "out",
        "--push-to-hub",
        "me/sca",
    ]
    with HubServer() as hub:
        environment = {**os.environ, **hub.env, "HF_HOME": str(tmp_path / "cache")}
    run = subprocess.run(
        [sys.executable, script.__file__, *arguments], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert "was not uploaded to 'me/sca'" in run.stderr.splitlines()[-1]


def test_pushed_checkpoint_is_loaded_by_its_name(tmp_path: Path) -> None:
    arguments = [
        "--checkpoint",
        FIXTURES / "gpt2" / "checkpoint",
        "--output",
        tmp_path / "out",
        "--push-to-hub",
        "me/sca",
    ]
    user = """
import hf_segcap
from PIL import Image
from transformers import pipeline

pipe = pipeline(model="me/sca")
print(pipe.task, len(pipe(Image.new("RGB", (60, 40)), boxes=[[5, 5, 30, 30]], max_new_tokens=2)))
"""
    with HubServer() as hub:
        environment = {**os.environ, **hub.env, "HF_HOME": str(tmp_path / "cache")}
        for command in ([script.__file__, *arguments], ["-c", user]):
            run = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
            assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["region-captioning", "1"]
