# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_segcap.data.matting_folders import AIM500, AM2K, Composition1K, ForegroundComposites, MicroMat3K
from hf_segcap.data.sources import load_source

FIXTURES = Path(__file__).parents[1] / "fixtures" / "zim"
MICROMAT = FIXTURES / "MicroMat3K_tiny"


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def picture(seed, size=(20, 30)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def matte(seed, size=(20, 30)):
    values = np.zeros(size, dtype=np.uint8)
    values[4:15, 5:20] = np.random.default_rng(seed).integers(30, 256, (11, 15), dtype=np.uint8)
    return values


@pytest.mark.golden
def test_micromat_reads_the_official_layout():
    official = json.loads((FIXTURES / "micromat.json").read_text())
    for subset in ("fine", "coarse"):
        rows = load_source("micromat3k", root=MICROMAT, subset=subset)
        regions = [region for index in range(len(rows)) for region in rows[index]["regions"]]
        assert [region["name"] for region in regions] == [item["fname"] for item in official[subset]["items"]]
        for region, item in zip(regions, official[subset]["items"]):
            assert (region["alpha"] > 0.3).mean() == pytest.approx(item["ratio"], rel=1e-6)
            prompt = json.loads((MICROMAT / "prompt" / subset / region["name"]).with_suffix(".json").read_text())
            assert region["box"] == prompt["bbox"]
            assert [[*point, label] for point, label in zip(region["points"], region["point_labels"])] == prompt[
                "point"
            ]
    both = MicroMat3K(MICROMAT)
    assert [both[i]["image_id"] for i in range(3)] == ["0000", "0001", "0002"] and len(
        MicroMat3K(MICROMAT, limit=2)
    ) == 2
    row = both[0]
    assert row["image"].size == (row["width"], row["height"]) and row["regions"][0]["alpha"].dtype == np.float32


@pytest.fixture
def micromat(tmp_path):
    folder = tmp_path / "micromat"
    shutil.copytree(MICROMAT, folder)
    return folder


def test_objects_of_one_image_share_a_row(micromat):
    lines = (micromat / "data_list.txt").read_text().splitlines()
    again = "img/0000.png matte/fine/0000_02.png prompt/fine/0000_02.json seg/fine/0000_01.png"
    for kind, ending in (("matte", "png"), ("prompt", "json")):
        shutil.copy(micromat / kind / "fine" / f"0000_01.{ending}", micromat / kind / "fine" / f"0000_02.{ending}")
    padded = {"point": [[3, 4, 1], [-1, -1, -1]], "bbox": [1, 2, 30, 40]}
    (micromat / "prompt" / "fine" / "0000_02.json").write_text(json.dumps(padded))
    (micromat / "data_list.txt").write_text("\n".join([*lines, again]))
    rows = MicroMat3K(micromat, limit=1)
    assert len(rows) == 1 and [region["name"] for region in rows[0]["regions"]] == ["0000_01.png", "0000_02.png"]
    assert rows[0]["regions"][1]["points"] == [[3, 4]] and rows[0]["regions"][1]["point_labels"] == [1]


def test_a_box_of_one_column_and_an_empty_matte(micromat):
    """Boxes are of first and last pixels; what is empty is left out."""
    prompt = {"point": [[3, 4, 1]], "bbox": [20, 8, 20, 15]}
    (micromat / "prompt" / "fine" / "0000_01.json").write_text(json.dumps(prompt))
    rows = MicroMat3K(micromat, subset="fine")
    assert rows[0]["regions"][0]["box"] == [20, 8, 21, 15]
    save(micromat / "matte" / "fine" / "0000_01.png", np.zeros((133, 199), np.uint8))
    assert rows[0]["regions"] == []


def test_micromat_says_what_is_wrong(micromat, tmp_path):
    with pytest.raises(ValueError, match="there is no .*data_list.txt"):
        MicroMat3K(tmp_path)
    with pytest.raises(ValueError, match="unknown subset 'rough'"):
        MicroMat3K(micromat, subset="rough")
    (micromat / "prompt" / "fine" / "0000_01.json").write_text('{"point": [[1, 2]], "bbox": [1, 2, 3, 4]}')
    with pytest.raises(ValueError, match=r"0000_01.json: expected .*\"point\""):
        MicroMat3K(micromat)
    (micromat / "matte" / "fine" / "0000_01.png").unlink()
    with pytest.raises(ValueError, match=r"there is no .*matte/fine/0000_01.png \(named by line 1"):
        MicroMat3K(micromat)
    (micromat / "data_list.txt").write_text("img/0000.png only/coarse")
    with pytest.raises(ValueError, match="line 1: expected the paths"):
        MicroMat3K(micromat)
    with pytest.raises(ValueError, match="no line of the subset 'fine'"):
        MicroMat3K(micromat, subset="fine")


def three_folders(root, trimaps=True):
    for number in range(3):
        save(root / "original" / f"m_{number}.jpg", picture(number))
        save(root / "mask" / f"m_{number}.png", matte(number))
        if trimaps:
            save(root / "trimap" / f"m_{number}.png", np.where(matte(number) > 0, 128, 0).astype(np.uint8))


def test_am2k_and_aim500(tmp_path):
    three_folders(tmp_path / "AM-2k" / "validation")
    three_folders(tmp_path / "AM-2k" / "train", trimaps=False)
    three_folders(tmp_path / "AIM-500")
    for rows in (load_source("am2k", root=tmp_path / "AM-2k"), load_source("aim500", root=tmp_path / "AIM-500")):
        assert len(rows) == 3
        row = rows[1]
        assert row["image_id"] == "m_1" and row["image"].size == (30, 20)
        (region,) = row["regions"]
        np.testing.assert_allclose(region["alpha"], matte(1) / 255, atol=1e-6)
        assert region["box"] == [5, 4, 20, 15] and set(np.unique(region["trimap"])) == {0, 128}
    train = AM2K(tmp_path / "AM-2k", split="train", limit=2)
    assert len(train) == 2 and "trimap" not in train[0]["regions"][0]


def test_missing_files_are_named(tmp_path):
    root = tmp_path / "AIM-500"
    with pytest.raises(ValueError, match="there is no folder .*AIM-500/mask"):
        AIM500(root)
    three_folders(root)
    (root / "mask" / "m_1.png").unlink()
    with pytest.raises(ValueError, match="1 of 3 images have no matte .* the first is m_1.jpg"):
        AIM500(root)
    save(root / "mask" / "m_1.png", matte(1, (21, 30)))
    with pytest.raises(ValueError, match="m_1.png: the matte has 21 x 30 .* the image 20 x 30"):
        AIM500(root)[1]
    save(root / "mask" / "m_2.png", np.zeros((20, 30), dtype=np.uint8))
    assert AIM500(root)[2]["regions"] == []  # 0 everywhere: there is no object
    with pytest.raises(ValueError, match="unknown split 'test'"):
        AM2K(tmp_path, split="test")


@pytest.fixture
def composition(tmp_path):
    test = tmp_path / "Combined_Dataset" / "Test_set"
    licensed = test / "Adobe-licensed images"
    for number in range(2):
        save(licensed / "fg" / f"f{number}.png", picture(number))
        save(licensed / "alpha" / f"f{number}.png", matte(number))
        for place in range(2):
            save(licensed / "trimaps" / f"f{number}_{place}.png", np.full((20, 30), 128, dtype=np.uint8))
    for number in range(4):
        save(tmp_path / "voc" / f"b{number}.png", picture(10 + number, (15, 40) if number else (50, 60)))
    (test / "test_fg_names.txt").write_text("f0.png\nf1.png\n")
    (test / "test_bg_names.txt").write_text("b0.png\nb1.png\nb2.png\nb3.png\n")
    return tmp_path / "Combined_Dataset", tmp_path / "voc"


def test_composition1k_composes_its_pictures(composition):
    root, backgrounds = composition
    rows = load_source("composition1k", root=root, backgrounds=backgrounds)
    assert [rows[i]["image_id"] for i in range(4)] == ["f0_0", "f0_1", "f1_0", "f1_1"]
    alpha = matte(0)[..., None] / 255
    expected = alpha * picture(0) + (1 - alpha) * picture(10, (50, 60))[:20, :30]
    np.testing.assert_allclose(np.asarray(rows[0]["image"]), expected, atol=0.51)
    assert rows[3]["image"].size == (30, 20)  # a background that is too small is enlarged
    assert (rows[3]["regions"][0]["trimap"] == 128).all()
    np.testing.assert_allclose(rows[3]["regions"][0]["alpha"], matte(1) / 255, atol=1e-6)


def test_composition1k_takes_composed_pictures(composition):
    root, _ = composition
    with pytest.raises(ValueError, match="give `backgrounds`"):
        Composition1K(root)
    merged = root / "Test_set" / "merged"
    for name in ("f0_0", "f0_1", "f1_0"):
        save(merged / f"{name}.png", picture(99))
    with pytest.raises(ValueError, match="there is no .*f1_1.png"):
        Composition1K(root)
    rows = Composition1K(root, limit=3)
    np.testing.assert_array_equal(np.asarray(rows[2]["image"]), picture(99))
    (root / "Test_set" / "test_bg_names.txt").write_text("b0.png\n")
    with pytest.raises(ValueError, match="got 1 for 2"):
        Composition1K(root)


def test_own_foregrounds_over_own_backgrounds(tmp_path):
    for number in range(2):
        save(tmp_path / "fg" / f"f{number}.jpg", picture(number))
        save(tmp_path / "alpha" / f"f{number}.png", matte(number))
        save(tmp_path / "bg" / f"b{number}.png", picture(20 + number, (25, 35)))
    folders = {"foregrounds": tmp_path / "fg", "alphas": tmp_path / "alpha", "backgrounds": tmp_path / "bg"}
    rows, again = (load_source("foregrounds", **folders, n=12, seed=5) for _ in range(2))
    seen = set()
    for index in range(12):
        row, same = rows[index], again[index]
        assert row["image"].tobytes() == same["image"].tobytes()
        (region,) = row["regions"]
        number = int(region["name"][1])
        alpha, flipped = matte(number) / 255, False
        if not np.allclose(region["alpha"], alpha, atol=1e-6):
            alpha, flipped = alpha[:, ::-1], True
        np.testing.assert_allclose(region["alpha"], alpha, atol=1e-6)
        opaque = alpha == 1
        with Image.open(tmp_path / "fg" / f"f{number}.jpg") as file:
            colours = np.asarray(file)[:, ::-1] if flipped else np.asarray(file)
        np.testing.assert_array_equal(np.asarray(row["image"])[opaque], colours[opaque])
        seen.add((number, flipped, row["image"].tobytes()))
    assert len(seen) > 8 and len({item[:2] for item in seen}) == 4
    small = ForegroundComposites(**folders, max_size=15)[0]
    assert small["image"].size == (15, 10)
    default = ForegroundComposites(**folders)
    assert [default[i]["regions"][0]["name"] for i in range(len(default))] == ["f0.png", "f1.png"]  # each one once
    with pytest.raises(ValueError, match="n >= 1"):
        ForegroundComposites(**folders, n=0)
    with pytest.raises(IndexError):
        rows[12]


def test_transparent_foregrounds_keep_their_colours(tmp_path):
    colours, alpha = picture(0), matte(0)
    other = np.full_like(alpha, 100)
    for index, cover in enumerate((alpha, other)):
        folder = tmp_path / str(index)
        save(folder / "fg" / "a.png", np.dstack([colours, cover]))
        save(folder / "alpha" / "a.png", alpha)
        save(folder / "bg" / "b.png", np.zeros_like(colours))
        row = ForegroundComposites(folder / "fg", folder / "alpha", folder / "bg", n=1)[0]
        mirrored = np.asarray(row["regions"][0]["alpha"])
        expected = np.minimum(alpha, cover).astype(np.float32) / 255
        turned = not np.array_equal(mirrored, expected)
        found = mirrored[:, ::-1] if turned else mirrored
        np.testing.assert_allclose(found, expected, atol=1e-6)  # not squared where both are the same
        image = np.asarray(row["image"])[:, ::-1] if turned else np.asarray(row["image"])
        np.testing.assert_allclose(image, expected[..., None] * colours, atol=0.51)  # black, and no white, below
