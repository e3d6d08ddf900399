# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import json
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import ModelOutput

from hf_segcap import ZimForMatting, ZimProcessor
from hf_segcap.data.alpha import encode_alpha
from hf_segcap.data.matting_folders import MicroMat3K
from hf_segcap.evaluation.contact_sheet import contact_sheet
from hf_segcap.evaluation.matting import (
    MattePredictor,
    evaluate_mattes,
    load_data,
    main,
    markdown_tables,
    matte_objects,
    photograph_rows,
    sad_ratios,
    summarise,
    worst_mattes,
)
from hf_segcap.evaluation.matting_metrics import gaussian_gradient_error, zim_matting_scores
from hf_segcap.models.sam.prompt_processing import sam_image_processor
from modeling_tests.tiny import (
    IMAGE_SIZE,
    random_image,
    tiny_sam_processor,
    tiny_sam_promptable,
    tiny_zim,
    tiny_zim_processor,
)

pytest.importorskip("skimage")

FIXTURES = Path(__file__).parents[1] / "fixtures" / "zim"
MICROMAT = FIXTURES / "MicroMat3K_tiny"


def square(x0=10, y0=20, side=20, value=1.0):
    alpha = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    alpha[y0 : y0 + side, x0 : x0 + side] = value
    return alpha


def row(*alphas, image_id=0, **fields):
    regions = [{"alpha": None if alpha is None else encode_alpha(alpha), **fields} for alpha in alphas]
    return {"image": random_image(image_id, (IMAGE_SIZE, IMAGE_SIZE)), "image_id": image_id, "regions": regions}


class Known:
    """Gives for every prompt the same matte, of 0.5 in a square, and remembers what it was asked."""

    device = torch.device("cpu")

    def __init__(self, masks=False, version=0):
        self.asked, self.masks, self.version = [], masks, version
        vision = SimpleNamespace(image_size=IMAGE_SIZE)
        self.config = SimpleNamespace(vision_config=vision, to_dict=lambda: {"image_size": IMAGE_SIZE})

    def eval(self):
        return self

    def state_dict(self):
        return {"version": torch.tensor(self.version)}

    def __call__(self, **inputs):
        self.asked.append(inputs)
        count = inputs.get("input_boxes", inputs.get("input_points")).shape[1]
        logits = torch.full((1, count, 1, IMAGE_SIZE, IMAGE_SIZE), -50.0)
        logits[..., 20:40, 10:30] = 1.0 if self.masks else 0.0
        name = "pred_masks" if self.masks else "alphas"
        return ModelOutput({name: logits, "image_embeddings": torch.ones(1, 2, 4, 4)})


@pytest.fixture
def predictor():
    return MattePredictor(Known(), tiny_zim_processor())


def test_scores_of_a_known_matte(predictor):
    rows = [row(square(), None, square(40, 40, 4)), row(np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32), image_id=1)]
    segmenter = MattePredictor(Known(masks=True), tiny_sam_processor(), multimask_output=None)
    results = evaluate_mattes({"ZIM": predictor, "SAM": segmenter}, rows, seed=3)
    assert [(r["row"], r["region"], r["prompt"], r["model"]) for r in results] == [
        (0, region, prompt, model) for prompt in ("point", "box") for model in ("ZIM", "SAM") for region in (0, 2)
    ]
    found = square(value=0.5)
    for result in results:
        target = square() if result["region"] == 0 else square(40, 40, 4)
        alpha = found if result["model"] == "ZIM" else square()
        expected = zim_matting_scores(alpha, target)
        assert result["zim"] == pytest.approx(expected, rel=1e-5)
        assert result["benchmark"] == pytest.approx(
            {**expected, "grad": gaussian_gradient_error(alpha, target)}, rel=1e-5
        )
        assert result["ratio"] == pytest.approx((400 if result["region"] == 0 else 16) / IMAGE_SIZE**2)
    assert results[0]["zim"]["sad"] == pytest.approx(0.2)
    points, boxes = predictor.model.asked
    assert "pixel_values" in points and "pixel_values" not in boxes and "image_embeddings" in boxes
    assert points["multimask_output"] is False and segmenter.model.asked[0]["multimask_output"] is None
    assert boxes["input_boxes"].tolist() == [[[10, 20, 30, 40], [40, 40, 44, 44]]]
    assert points["point_labels"].tolist() == [[[1, 1, 1, 0]] * 2]
    for (x, y), label in zip(points["input_points"][0, 0].tolist(), (1, 1, 1, 0)):
        assert square()[int(y), int(x)] == label


def test_points_are_the_same_every_time():
    first, again = (matte_objects(row(square(), square(2, 2)), (64, 64), seed=1) for _ in range(2))
    assert [each["point"] for each in first] == [each["point"] for each in again]
    other = matte_objects(row(square(), square(2, 2)), (64, 64), seed=2)
    assert first[0]["point"] != other[0]["point"]


def test_recorded_prompts_are_used():
    rows = MicroMat3K(MICROMAT, "fine")
    recorded = json.loads((MICROMAT / "prompt" / "fine" / "0000_01.json").read_text())
    (each,) = matte_objects(rows[0], (rows[0]["height"], rows[0]["width"]))
    assert each["box"]["input_boxes"] == recorded["bbox"] and each["name"] == "0000_01.png"
    points = [[*point, label] for point, label in zip(each["point"]["input_points"], each["point"]["point_labels"])]
    assert points == recorded["point"]


@pytest.mark.golden
def test_the_official_evaluation():
    """Scores that the official evaluation gave to the official predictor around a tiny pair of graphs."""
    pytest.importorskip("onnxruntime")
    from hf_segcap.models.zim.onnx_zim import ZimOnnxForMatting

    model = ZimOnnxForMatting.from_pretrained(FIXTURES / "onnx")
    predictor = MattePredictor(model, ZimProcessor(sam_image_processor(1024, 16)))
    golden = json.loads((FIXTURES / "micromat.json").read_text())
    for subset, expected in golden.items():
        results = evaluate_mattes({"ZIM": predictor}, MicroMat3K(MICROMAT, subset))
        assert len(results) == 2 * len(expected["items"])
        for item in expected["items"]:
            for prompt, official in (("point", "point"), ("box", "bbox")):
                (found,) = (r for r in results if r["name"] == item["fname"] and r["prompt"] == prompt)
                assert found["ratio"] == pytest.approx(item["ratio"], rel=1e-5)
                names = {"mae": "l1", "mse": "l2", "sad": "sad", "grad": "grad", "conn": "conn"}
                wanted = {name: item[official][key] for name, key in names.items()}
                assert found["zim"] == pytest.approx(wanted, rel=2e-4)


def test_trimaps_bound_the_benchmark_scores(predictor):
    trimap = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    trimap[20:40, 10:30] = 255
    trimap[20:30, 10:30] = 128
    rows = [row(square(), trimap=trimap)]
    whole, known = (evaluate_mattes({"ZIM": predictor}, rows, prompts=["box"], trimaps=t)[0] for t in (False, True))
    assert whole["zim"] == known["zim"]
    assert known["benchmark"]["sad"] == pytest.approx(0.1)  # half of the square
    assert known["benchmark"]["mae"] == pytest.approx(500) and whole["benchmark"]["mae"] < 60
    with pytest.raises(ValueError, match="row 0, region 0 has no trimap"):
        evaluate_mattes({"ZIM": predictor}, [row(square())], prompts=["box"], trimaps=True)


# --- stopped and continued ---------------------------------------------------------------------------------------------


def test_a_killed_evaluation_continues(tmp_path):
    rows = [row(square(), image_id=i) for i in range(4)]
    whole = evaluate_mattes({"ZIM": MattePredictor(Known(), tiny_zim_processor())}, rows)

    class Killed(list):
        def __getitem__(self, index):
            if index == 2:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    file, model = tmp_path / "results" / "a.jsonl", Known()
    predictor = MattePredictor(model, tiny_zim_processor())
    with pytest.raises(KeyboardInterrupt):
        evaluate_mattes({"ZIM": predictor}, Killed(rows), file)
    assert len(file.read_bytes().splitlines()) == 3
    with open(file, "ab") as log:
        log.write(b'{"row": 2, "res')  # half a line
    model.asked.clear()
    assert evaluate_mattes({"ZIM": predictor}, rows, file) == whole
    assert len(model.asked) == 4 and len(file.read_bytes().splitlines()) == 5
    model.asked.clear()
    assert evaluate_mattes({"ZIM": predictor}, rows, file) == whole and not model.asked


def test_results_of_something_else_are_not_taken(predictor, tmp_path):
    rows, file = [row(square())], tmp_path / "a.jsonl"
    evaluate_mattes({"ZIM": predictor}, rows, file, about={"data": "x"})
    with pytest.raises(ValueError, match=r"another evaluation \(data, seed differ\)"):
        evaluate_mattes({"ZIM": predictor}, rows, file, about={"data": "y"}, seed=5)
    newer = MattePredictor(Known(version=1), tiny_zim_processor())
    with pytest.raises(ValueError, match=r"\(models differ\)"):
        evaluate_mattes({"ZIM": newer}, rows, file, about={"data": "x"})
    attending, blind = (
        MattePredictor(tiny_zim(masked_attention=m), tiny_zim_processor()) for m in (["token_to_image"], [])
    )
    assert attending.fingerprint() == MattePredictor(tiny_zim(), tiny_zim_processor()).fingerprint()
    assert attending.fingerprint() != blind.fingerprint()  # the same weights
    file.write_text("something\n")
    with pytest.raises(ValueError, match="is not a file of results"):
        evaluate_mattes({"ZIM": predictor}, rows, file)


def test_bad_settings_are_refused(predictor):
    with pytest.raises(ValueError, match="prompts among"):
        evaluate_mattes({"ZIM": predictor}, [row(square())], prompts=["text"])
    with pytest.raises(ValueError, match="nothing to measure"):
        evaluate_mattes({"ZIM": predictor}, [row(None)])
    with pytest.raises(ValueError, match="unknown data 'coco'"):
        load_data("coco")
    with pytest.raises(ValueError, match="needs --root"):
        load_data("am2k")


# --- what is made of the results ---------------------------------------------------------------------------------------


def result(model, prompt, ratio, sad):
    scores = dict.fromkeys(("mse", "sad", "mae", "grad", "conn"), 0.0)
    fields = {"row": 0, "region": 0, "image_id": 0, "name": None}
    zim = {**scores, "sad": sad}
    return {**fields, "model": model, "prompt": prompt, "ratio": ratio, "zim": zim, "benchmark": {**zim, "sad": 9.0}}


def test_means_by_size_and_ratios():
    results = [result("ZIM", "box", ratio, sad) for ratio, sad in ((0.005, 1.0), (0.01, 2.0), (0.1, 3.0), (0.5, 6.0))]
    results += [result("SAM", "box", ratio, 6.0) for ratio in (0.005, 0.01, 0.1, 0.5)]
    entries = {(e["group"], e["model"]): (e["num_objects"], e["zim"]["sad"]) for e in summarise(results)}
    assert entries == {
        ("all", "ZIM"): (4, 3.0),
        ("S", "ZIM"): (1, 1.0),
        ("M", "ZIM"): (1, 2.0),
        ("L", "ZIM"): (2, 4.5),
        **{(group, "SAM"): (count, 6.0) for group, count in (("all", 4), ("S", 1), ("M", 1), ("L", 2))},
    }
    assert sad_ratios(results) == {"box": {"SAM": pytest.approx(0.5)}}
    first, second = markdown_tables({"set": summarise(results)}).split("\n\nDefinitions of the matting benchmarks")
    assert "| set | box | S | 1 | ZIM | 1.0000 | 0.0000 |" in first and "| ZIM | 9.0000 |" in second


def test_the_worst_mattes_come_first(predictor):
    rows = [row(square(side=4), image_id=0), row(square(side=30), image_id=1), row(square(), image_id=2)]
    results = evaluate_mattes({"ZIM": predictor}, rows, prompts=["box"])
    data = {"set": rows}
    two = worst_mattes({"ZIM": predictor}, data, {"set": results}, count=2)
    alone = [worst_mattes({"ZIM": predictor}, data, {"set": [results[i]]}, count=1) for i in (1, 0)]
    half = two.width // 2
    for place, single in enumerate(alone):
        left = np.asarray(two)[16:, place * half : (place + 1) * half]
        assert np.array_equal(left, np.asarray(single)[16:, :half])


def test_a_contact_sheet_shows_prompt_and_mattes():
    alpha = square(20, 20, 20)
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "blue")
    items = [
        ("box", image, {"input_boxes": [20, 20, 40, 40]}, {"truth": alpha, "ZIM": 1 - alpha}),
        (
            "points",
            image,
            {"input_points": [[30, 30], [16, 16]], "point_labels": [1, 0]},
            {"truth": alpha, "ZIM": alpha},
        ),
    ]
    pixels = np.asarray(contact_sheet(items, columns=1)).astype(int)
    tile, height = 154, len(pixels) // 2
    middle = (16 + 16 + 75, 4 + 75)  # of the first tile
    assert pixels[middle].tolist() == [0, 0, 255]
    assert pixels[middle[0], middle[1] + tile].tolist() == [255, 255, 255]
    assert pixels[middle[0], middle[1] + 2 * tile].tolist() == [0, 0, 0]
    assert pixels[middle[0] + height - 8, middle[1]].tolist() == [40, 220, 90]  # the point inside
    with pytest.raises(ValueError, match="nothing to show"):
        contact_sheet([])


def test_a_contact_sheet_holds_one_object_at_full_size():
    seen = []

    def items():
        for index in range(6):
            assert [ref() for ref in seen[: max(0, index - 1)]] == [None] * max(0, index - 1)
            alpha = square()
            seen.append(weakref.ref(alpha))
            image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE))
            yield str(index), image, {"input_boxes": [10, 20, 30, 40]}, {"truth": alpha}

    contact_sheet(items())
    assert len(seen) == 6


def test_the_fingerprint_of_graphs_is_that_of_their_files(tmp_path):
    pytest.importorskip("onnxruntime")
    from hf_segcap.models.zim.onnx_zim import ZimOnnxForMatting

    def fingerprint(folder):
        return MattePredictor(ZimOnnxForMatting.from_pretrained(folder), tiny_zim_processor()).fingerprint()

    official = fingerprint(FIXTURES / "onnx")
    copied = Path(shutil.copytree(FIXTURES / "onnx", tmp_path / "copy"))
    assert fingerprint(copied) == official  # wherever they are
    weights = copied / "encoder.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    changed = fingerprint(copied)
    with open(copied / "decoder.onnx", "ab") as file:
        file.write(b"\x32\x00")  # an empty text for the documentation of the graph
    assert len({official, changed, fingerprint(copied)}) == 3


def test_models_of_the_package_are_measured(tmp_path, monkeypatch, capsys):
    tiny_zim(spread=0.2).save_pretrained(tmp_path / "zim")
    tiny_zim_processor().save_pretrained(tmp_path / "zim")
    tiny_sam_promptable(spread=0.2).save_pretrained(tmp_path / "sam")
    tiny_sam_processor().save_pretrained(tmp_path / "sam")
    options = ["--model", tmp_path / "zim", "--segmenter", tmp_path / "sam", "--output", tmp_path / "out"]
    options += ["--data", "micromat3k", "--root", MICROMAT]
    scores = main([str(option) for option in options])
    printed = capsys.readouterr().out
    assert set(scores) == {"fine", "coarse"}
    assert "| fine | box | all | 2 | SAM, mask 0 |" in printed and "SAD, coarse, point: " in printed
    assert scores == json.loads((tmp_path / "out" / "scores.json").read_text())
    assert Image.open(tmp_path / "out" / "worst.png").size[1] > 300
    # the paper's rule, by hand: matte 0 at the size of the image
    row = MicroMat3K(MICROMAT, "coarse")[0]
    processor, model = tiny_zim_processor(), ZimForMatting.from_pretrained(tmp_path / "zim").eval()
    inputs = processor(row["image"], input_boxes=[row["regions"][0]["box"]])
    sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
    with torch.no_grad():
        alphas = processor.post_process_alphas(model(**inputs).alphas, *sizes)[0][0, 0].numpy()
    expected = zim_matting_scores(alphas, row["regions"][0]["alpha"])
    (entry,) = (
        e for e in scores["coarse"]["scores"] if (e["prompt"], e["group"], e["model"]) == ("box", "all", "ZIM")
    )
    assert entry["zim"] == pytest.approx(expected, rel=1e-4)


def test_the_bundled_data():
    data = load_data("bundled", rows=3)
    assert data["generated"].split == "held_out" and len(data["generated"]) == 3
    ((photograph,),) = ([row] for row in photograph_rows())
    (each,) = matte_objects(photograph, (440, 680))
    assert 0.3 < each["alpha"].mean() < 0.4 and 0 < ((each["alpha"] > 0.05) & (each["alpha"] < 0.95)).mean() < 0.1


def test_points_without_labels_are_inside():
    """As regions of SA-1B have them, and the mattes made of those."""
    (found,) = matte_objects(row(square(), points=[[20.0, 30.0]]), (IMAGE_SIZE, IMAGE_SIZE))
    assert found["point"] == {"input_points": [[20.0, 30.0]], "point_labels": [1]}
