# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`hf-segcap caption`, `train` and `demo`, in process; one run through the installed command."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_segcap import cli
from hf_segcap.masks import decode_rle
from modeling_tests.tiny import random_image, tiny_processor, tiny_sam_caption


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    tiny_sam_caption().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    random_image(0).save(folder / "image.png")
    return folder


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["hf-segcap", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def test_table(files, monkeypatch, capsys):
    code, out, _ = run(
        monkeypatch,
        capsys,
        "caption",
        files / "image.png",
        "--model",
        files / "model",
        "--box",
        "1,2,30,40",
        "--point",
        "9,9",
    )
    lines = out.strip().splitlines()
    assert (
        code == 0 and len(lines) == 3 and lines[0].split()[:2] == ["box", "(x0"] and lines[1].startswith("1 2 30 40")
    )


def test_json_and_picture(files, monkeypatch, capsys):
    out_file = files / "out.png"
    code, out, _ = run(
        monkeypatch, capsys, "caption", files / "image.png", "--model", files / "model",
        "--box=1,2,30,40", "--json", "--out", out_file, "--num-beams", "2", "--max-new-tokens", "3",
    )  # fmt: skip
    (result,) = json.loads(out)
    assert code == 0 and result["box"] == {"xmin": 1, "ymin": 2, "xmax": 30, "ymax": 40}
    assert np.asarray(decode_rle(result["mask"])).shape == (44, 60)
    assert Image.open(out_file).size == (60, 44)


def test_everything_without_regions(files, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "caption", files / "image.png", "--model", files / "model")
    assert code == 0 and out.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--box", "1,2,3"], "--box takes 4 numbers"),
        (["--point", "x,y"], "--point takes 2 numbers"),
        (["--box", "30,2,10,40"], "image 0, prompt 0"),
        (["--point", "500,500"], "image 0, prompt 0"),
    ],
)
def test_bad_input_is_one_line_and_status_2(files, monkeypatch, capsys, arguments, message):
    code, _, err = run(monkeypatch, capsys, "caption", files / "image.png", "--model", files / "model", *arguments)
    assert code == 2 and message in err
    assert "Traceback" not in err and len([line for line in err.splitlines() if line.startswith("hf-segcap:")]) == 1


def test_missing_files(files, monkeypatch, capsys):
    for arguments in ([files / "none.png"], [files / "image.png", "--model", files / "nothing here"]):
        code, _, err = run(monkeypatch, capsys, "caption", *arguments, "--box", "1,1,5,5")
        assert code == 2 and "hf-segcap:" in err and "Traceback" not in err


def test_train_hands_its_arguments_on(files, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("hf_segcap.training.run.train", lambda *arguments: calls.append(arguments))
    code, _, _ = run(monkeypatch, capsys, "train", "r.yaml", "--override", "seed=1", "--override", "a.b=2", "--resume")
    assert code == 0 and calls == [("r.yaml", ["seed=1", "a.b=2"], Path("output"), True)]


def test_demo_with_the_bundled_model(tmp_path):
    command = [str(Path(sys.executable).with_name("hf-segcap")), "demo", "--out", str(tmp_path / "demo.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("region at the") >= 5 and "Everything" in done.stdout
    assert Image.open(tmp_path / "demo.png").size == (680, 880)
