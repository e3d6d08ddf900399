# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("promptable-segmentation")` with the model of the golden data, whose masks depend on the prompt."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import SamHQConfig, SamHQModel, SamModel, pipeline

from hf_segcap import SamForPromptableSegmentation, SamPromptableProcessor
from hf_segcap.assets import bundled_model
from hf_segcap.masks import decode_rle
from hf_segcap.pipelines.promptable_segmentation import to_official_records
from hf_segcap.records import read_sa1b, write_sa1b

GOLDEN = Path(__file__).parents[1] / "fixtures" / "sam"
IMAGE = str(GOLDEN / "image0.png")
BOX, POINT = [40.0, 30.0, 160.0, 150.0], [100.0, 60.0]


@cache
def segmenter():
    return pipeline(
        "promptable-segmentation",
        model=SamForPromptableSegmentation.from_pretrained(GOLDEN / "tiny"),
        processor=SamPromptableProcessor.from_pretrained(GOLDEN / "tiny"),
    )


def same(one: list[dict], other: list[dict], atol: float = 1e-5) -> bool:
    return len(one) == len(other) and all(
        abs(a["score"] - b["score"]) < atol and (np.asarray(a["mask"]) != np.asarray(b["mask"])).sum() <= 2
        for a, b in zip(one, other)
    )


def test_results_describe_their_mask():
    (result,) = segmenter()(IMAGE, points=POINT)
    with Image.open(IMAGE) as image:
        assert result["mask"].shape == (image.height, image.width) and result["mask"].dtype == bool
    ys, xs = np.nonzero(result["mask"])
    assert result["box"] == {"xmin": xs.min(), "ymin": ys.min(), "xmax": xs.max(), "ymax": ys.max()}
    assert result["area"] == result["mask"].sum() > 0 and 0 < result["stability_score"] <= 1


def test_objects_with_different_prompts_in_one_call():
    pipe = segmenter()
    mixed = pipe(
        IMAGE, boxes=[BOX, None, BOX], points=[[], [POINT, [30.0, 40.0]], [POINT]], point_labels=[[], [1, 0], [1]]
    )
    alone = [
        *pipe(IMAGE, boxes=BOX),
        *pipe(IMAGE, points=[[POINT, [30.0, 40.0]]], point_labels=[[1, 0]]),
        *pipe(IMAGE, boxes=[BOX], points=[[POINT]]),
    ]
    assert same(mixed, alone)


def test_the_only_object_may_lack_a_kind():
    pipe = segmenter()
    assert same(pipe(IMAGE, boxes=[None], points=[POINT]), pipe(IMAGE, points=POINT))
    assert same(pipe(IMAGE, boxes=[BOX], points=[[]], masks=[None]), pipe(IMAGE, boxes=BOX))


def test_words_beside_other_prompts(tmp_path):
    words = pipeline(
        "promptable-segmentation", model=bundled_model("promptable-segmentation", "text"), dtype="float16"
    )
    assert same(words(IMAGE, text=["star"], boxes=[None]), words(IMAGE, text="star"), atol=1e-3)
    for nothing in ("", [" "]):
        with pytest.raises(ValueError, match="empty, expected words"):
            words(IMAGE, text=nothing)
    with pytest.raises(ValueError, match="image 0, prompt 1: got no prompt"):
        words(IMAGE, text=["star", None])
    assert words(IMAGE, text=[]) == [] and words(IMAGE, boxes=[], text=[]) == []
    words.save_pretrained(tmp_path)  # a tokenizer would save the dtype, which is no JSON
    assert "dtype" not in (tmp_path / "tokenizer_config.json").read_text()


def test_batches_equal_single_calls():
    items = [
        {"image": IMAGE, "points": [POINT, [20, 20]]},
        {"image": IMAGE, "boxes": [BOX]},
        {"image": IMAGE, "boxes": [BOX, [10, 10, 90, 90]]},
    ]
    batched = segmenter()(items, batch_size=3)
    assert all(same(a, segmenter()(b)) for a, b in zip(batched, items)) and [len(r) for r in batched] == [2, 1, 2]


def test_three_masks_and_their_best():
    (result,) = segmenter()(IMAGE, points=POINT, multimask_output=True)
    assert len(result["masks"]) == len(result["scores"]) == 3
    best = int(np.argmax(result["scores"]))
    assert result["score"] == result["scores"][best] and (result["mask"] == result["masks"][best]).all()
    (default,) = segmenter()(IMAGE, points=POINT)  # a single point is ambiguous: the best of the three
    assert same([default], [result]) and "masks" not in default


def test_refinement_feeds_the_mask_back():
    (plain,), (refined,) = segmenter()(IMAGE, boxes=BOX), segmenter()(IMAGE, boxes=BOX, refine_steps=2)
    assert plain["score"] != refined["score"]


@pytest.mark.parametrize("setting", ["grid", "crops", "point_list"])
def test_everything_gives_the_official_records(setting):
    golden = json.loads((GOLDEN / f"amg_{setting}.json").read_text())
    image = GOLDEN / golden["image"] if isinstance(golden["image"], str) else IMAGE
    results = segmenter()(str(image), **golden["settings"], output_mode="coco_rle")
    expected = golden["records_coco_rle"]
    assert len(results) == len(expected)
    for result, record in zip(to_official_records(results), expected):
        assert result["bbox"] == record["bbox"] and result["crop_box"] == record["crop_box"]
        assert np.allclose(result["point_coords"], record["point_coords"])
        assert abs(result["predicted_iou"] - record["predicted_iou"]) < 1e-5
        assert (decode_rle(result["segmentation"]) != decode_rle(record["segmentation"])).sum() <= 2


def test_everything_survives_the_sa1b_file(tmp_path):
    results = segmenter()(IMAGE, points_per_side=4, pred_iou_thresh=0.5, stability_score_thresh=0.5)
    assert results and all(r["area"] == r["mask"].sum() for r in results)
    with Image.open(IMAGE) as image:
        size = {"width": image.width, "height": image.height}
    write_sa1b(tmp_path / "a.json", to_official_records(results), image_id=3, file_name="a.png", **size)
    regions = read_sa1b(tmp_path / "a.json")[0]["regions"]
    assert all((decode_rle(r["mask"]) == e["mask"]).all() for r, e in zip(regions, results, strict=True))


def test_transformers_checkpoints_load_by_folder(tmp_path):
    peer = SamModel.from_pretrained(GOLDEN / "tiny")
    peer.save_pretrained(tmp_path)
    segmenter().processor.image_processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({**json.loads((tmp_path / "config.json").read_text()), "model_type": "sam"})
    )
    pipe = pipeline("promptable-segmentation", model=str(tmp_path))
    assert isinstance(pipe.model, SamForPromptableSegmentation)
    assert isinstance(pipe.processor, SamPromptableProcessor)
    assert same(pipe(IMAGE, boxes=BOX), segmenter()(IMAGE, boxes=BOX))


def test_save_and_load(tmp_path):
    segmenter().save_pretrained(tmp_path)
    pipe = pipeline("promptable-segmentation", model=str(tmp_path))
    assert same(pipe(IMAGE, points=POINT), segmenter()(IMAGE, points=POINT))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"points": [[1000, 10]]}, "outside"),
        ({"boxes": [[10, 10, 5, 5]]}, "inverted"),
        ({"text": "a dog"}, "tokenizer"),
        ({"points": [[10, 10]], "output_mode": "png"}, "output_mode"),
        ({"points_per_side": 0}, "points_per_side"),
        ({"boxes": [BOX], "refine_steps": -1}, "refine_steps"),
    ],
)
def test_bad_arguments_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        segmenter()(IMAGE, **arguments)


def test_unknown_arguments_are_refused_with_a_hint():
    with pytest.raises(TypeError, match="points_per_side"):
        segmenter()(IMAGE, point_per_side=4)


def test_options_that_change_nothing_are_named(caplog):
    segmenter()(IMAGE, boxes=[BOX], points_per_side=2, pred_iou_thresh=0.1)
    assert "points_per_side, pred_iou_thresh: only everything mode heeds this" in caplog.text
    caplog.clear()
    segmenter()(IMAGE, points_per_side=1, refine_steps=3)
    assert "refine_steps: only prompts heed this" in caplog.text
    caplog.clear()
    segmenter()(IMAGE, points_per_side=1, return_logits=True)
    assert "return_logits: only prompts heed this" in caplog.text
    caplog.clear()
    segmenter()(IMAGE, boxes=[BOX], refine_steps=1)
    segmenter()(IMAGE, points_per_side=1)
    assert not caplog.text


def test_settings_of_the_pipeline_stay_when_a_call_has_others():
    loose = {"pred_iou_thresh": -1.0, "stability_score_thresh": -1.0, "box_nms_thresh": 1.0}
    model, processor = segmenter().model, segmenter().processor
    pipe = pipeline("promptable-segmentation", model=model, processor=processor, **loose)
    assert same(pipe(IMAGE, points_per_side=2), segmenter()(IMAGE, points_per_side=2, **loose))
    assert pipe.generator_settings({"point_grids": [[(0.5, 0.5)]]}).points_per_side is None
    assert pipe.generator_settings({"pred_iou_thresh": 0.7}).pred_iou_thresh == 0.7
    assert pipe.generator_settings() == pipe.generator_settings(loose)


def test_as_many_prompts_as_images_are_not_one_for_each(caplog):
    segmenter()([IMAGE, IMAGE], boxes=[BOX, [0, 0, 30, 30]])
    assert "Every one of 2 images gets all 2 `boxes`" in caplog.text
    with pytest.raises(ValueError, match=r'of their own are items \{"image": ..., "boxes": ...\}'):
        segmenter()([IMAGE, IMAGE], boxes=[[BOX], [BOX]])
    caplog.clear()
    segmenter()([IMAGE, IMAGE], points=[20, 30])  # one point
    segmenter()([{"image": IMAGE, "boxes": [BOX]}] * 2, boxes=[BOX, BOX])  # prompts of their own
    assert "Every one" not in caplog.text


def test_an_object_without_any_prompt_is_refused():
    with pytest.raises(ValueError, match="Every object needs a prompt"):
        segmenter()(IMAGE, boxes=[None])
    assert segmenter()(IMAGE, boxes=[]) == []
    assert len(segmenter()(IMAGE, boxes=[None], points=[[[30, 30]]])) == 1
    for prompts in ({"boxes": [BOX, None]}, {"points": [[POINT], []]}, {"boxes": [None, BOX], "masks": [None, None]}):
        with pytest.raises(ValueError, match=r"image 0, prompt [01]: got no prompt"):
            segmenter()(IMAGE, **prompts)
    with pytest.raises(ValueError, match="image 0, prompt 1: got no prompt"):
        segmenter().processor(IMAGE, input_boxes=[BOX, None])


def test_no_object_needs_a_mask():
    points = [POINT, [30.0, 40.0]]
    assert same(segmenter()(IMAGE, points=points, masks=[None, None]), segmenter()(IMAGE, points=points))


def test_labels_of_the_call_hold_for_points_of_items():
    points, labels = [[POINT, [30.0, 40.0]]], [[1, 0]]
    expected = segmenter()(IMAGE, points=points, point_labels=labels)
    assert not same(expected, segmenter()(IMAGE, points=points))
    for item in ({"image": IMAGE, "points": points}, {"image": IMAGE, "points": points, "point_labels": labels}):
        (found,) = segmenter()([item], point_labels=labels if "point_labels" not in item else [[1, 1]])
        assert same(found, expected)


def test_logits_of_an_answer_are_a_prompt():
    pipe = segmenter()
    (first,) = pipe(IMAGE, points=[[POINT]], return_logits=True)
    assert first["low_res_logits"].shape == (64, 64) and first["low_res_logits"].dtype == np.float32
    (refined,) = pipe(IMAGE, points=[[POINT]], masks=[first["low_res_logits"]], multimask_output=False)
    (fed_back,) = pipe(IMAGE, points=[[POINT]], refine_steps=1)
    assert refined["score"] == pytest.approx(fed_back["score"], abs=1e-6)
    assert (refined["mask"] == fed_back["mask"]).all()


def test_other_models_are_refused(tmp_path):
    model = SamModel.from_pretrained(GOLDEN / "tiny")
    with pytest.raises(ValueError, match="takes a SamForPromptableSegmentation, got SamModel"):
        pipeline("promptable-segmentation", model=model, processor=segmenter().processor)


def test_masks_of_prompts_survive_the_sa1b_file(tmp_path):
    results = segmenter()(IMAGE, boxes=[BOX, [0, 0, 30, 30]])
    with Image.open(IMAGE) as image:
        size = {"width": image.width, "height": image.height}
    records = to_official_records(results)
    assert records[0]["bbox"][2] == results[0]["box"]["xmax"] - results[0]["box"]["xmin"]
    write_sa1b(tmp_path / "a.json", records, image_id=3, file_name="a.png", **size)
    regions = read_sa1b(tmp_path / "a.json")[0]["regions"]
    assert all((decode_rle(r["mask"]) == e["mask"]).all() for r, e in zip(regions, results, strict=True))


def test_models_that_contain_a_sam_are_not_taken_for_one(tmp_path):
    SamHQModel(SamHQConfig(**tiny_parts())).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a model of type 'sam_hq'"):
        SamForPromptableSegmentation.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no SAM: it has a SamHQConfig"):
        SamForPromptableSegmentation.from_pretrained(tmp_path, config=SamHQConfig.from_pretrained(tmp_path))


def tiny_parts():
    """Sizes for a configuration of transformers."""
    vision = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 32,
        "global_attn_indexes": [],
    }
    return {
        "vision_config": {**vision, "output_channels": 8, "mlp_dim": 8},
        "prompt_encoder_config": {"hidden_size": 8, "image_size": 32, "mask_input_channels": 4},
        "mask_decoder_config": {
            "hidden_size": 8,
            "mlp_dim": 8,
            "num_attention_heads": 1,
            "iou_head_hidden_dim": 8,
            "vit_dim": 8,
        },
    }
