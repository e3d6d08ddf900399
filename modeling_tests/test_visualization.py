# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
from PIL import Image

from hf_segcap import visualization
from hf_segcap.masks import encode_rle
from hf_segcap.visualization import distinct_colors, draw_mattes, draw_regions

BLANK = Image.new("RGB", (400, 300), (128, 128, 128))


def region(x0, y0, x1, y1, caption="a small red plain region at the top", **more):
    return {"caption": caption, "score": 0.9, "box": {"xmin": x0, "ymin": y0, "xmax": x1, "ymax": y1}, **more}


def plates(image, results, monkeypatch):
    """The plates of all captions, as rectangles x0 y0 x1 y1."""
    found = []
    arrange = visualization._arrange
    monkeypatch.setattr(visualization, "_arrange", lambda *a: found.extend(labels := arrange(*a)) or labels)
    draw_regions(image, results)
    return np.array([label.plate for label in found])


def overlaps(a):
    sides = np.minimum(a[:, None, 2:], a[None, :, 2:]) - np.maximum(a[:, None, :2], a[None, :, :2])
    area = sides.clip(0).prod(-1)
    return area[~np.eye(len(a), dtype=bool)]


def test_masks_and_boxes_are_painted_where_they_are():
    mask = np.zeros((300, 400), dtype=bool)
    mask[100:200, 100:300] = True
    color = (255, 0, 0)
    picture = np.asarray(
        draw_regions(
            BLANK, [region(50, 60, 350, 250, mask=mask)], show_captions=False, colors=[color], mask_opacity=0.5
        )
    )
    assert tuple(picture[150, 200]) == (192, 64, 64)  # half way from grey to red
    coded = draw_regions(BLANK, [region(50, 60, 350, 250, mask=encode_rle(mask))], colors=[color], mask_opacity=0.5)
    assert coded.getpixel((200, 150)) == (192, 64, 64)
    assert tuple(picture[20, 20]) == (128, 128, 128) and tuple(picture[60, 200]) == color
    plain = np.asarray(
        draw_regions(
            BLANK, [region(50, 60, 350, 250, mask=mask)], show_masks=False, show_boxes=False, show_captions=False
        )
    )
    assert (plain == 128).all()


def test_captions_do_not_overlap_when_there_is_room(monkeypatch):
    results = [region(20 + 3 * i, 30 + 2 * i, 200, 150) for i in range(8)]
    rectangles = plates(BLANK, results, monkeypatch)
    assert len(rectangles) == 8 and overlaps(rectangles).max() == 0
    assert rectangles.min() >= 0 and rectangles[:, 2].max() <= 400 and rectangles[:, 3].max() <= 300


def test_crowded_captions_get_smaller_until_they_do_not_overlap(monkeypatch):
    results = [region(10 * i, 7 * i, 10 * i + 60, 7 * i + 60) for i in range(34)]
    crowded, roomy = plates(BLANK, results, monkeypatch), plates(BLANK, results[:2], monkeypatch)
    assert overlaps(crowded).max() == 0
    assert (crowded[0, 2:] - crowded[0, :2]).prod() < (roomy[0, 2:] - roomy[0, :2]).prod()


def test_the_contour_of_a_mask_is_stronger_than_its_inside():
    mask = np.zeros((300, 400), dtype=bool)
    mask[:200, 100:300] = True  # reaches the border of the picture
    picture = draw_regions(BLANK, [{"mask": mask}], colors=[(255, 0, 0)], mask_opacity=0.5)
    inside, contour = (192, 64, 64), (242, 13, 13)
    for place, expected in (((100, 50), contour), ((200, 199), contour), ((200, 0), contour), ((200, 100), inside)):
        assert picture.getpixel(place) == expected


def test_crowded_and_tiny_images_still_work(monkeypatch):
    draw_regions(Image.new("RGB", (8, 6)), [region(0, 0, 8, 6)] * 5)
    rectangles = plates(BLANK, [region(0, 0, 400, 300)] * 80, monkeypatch)
    assert len(rectangles) == 80


def test_nothing_to_draw():
    assert np.array_equal(np.asarray(draw_regions(BLANK, [])), np.asarray(BLANK))
    draw_regions(BLANK, [{"caption": "über größe 猫"}, {"score": 0.5}], show_scores=True)


def test_long_captions_are_wrapped_inside_the_picture(monkeypatch):
    rectangles = plates(BLANK, [region(350, 250, 399, 299, caption="very " * 60 + "long" + "g" * 300)], monkeypatch)
    assert rectangles.min() >= 0 and rectangles[0, 2] <= 400 and rectangles[0, 3] <= 300


@pytest.mark.parametrize(
    ("results", "options", "message"),
    [
        ([region(0, 0, 9, 9, mask=np.ones((3, 3), bool))], {}, "region 0"),
        ([], {"mask_opacity": 2}, "mask_opacity"),
        ([], {"font_size": 0}, "font_size"),
    ],
)
def test_bad_arguments(results, options, message):
    with pytest.raises(ValueError, match=message):
        draw_regions(BLANK, results, **options)


def test_colors_differ():
    colors = np.array(distinct_colors(30), dtype=float)
    assert len(np.unique(colors, axis=0)) == 30
    assert np.abs(np.diff(colors, axis=0)).sum(1).min() > 80


# --- mattes -----------------------------------------------------------------------------------------------------------


def soft_square(x0, y0, x1, y1, alpha=255):
    matte = np.zeros((300, 400), np.uint8)
    matte[y0:y1, x0:x1] = alpha
    return {"alpha": Image.fromarray(matte), "score": 0.9}


def test_overlays_tint_objects_and_darken_the_rest():
    results = [soft_square(50, 60, 150, 160), soft_square(200, 60, 300, 160, alpha=128)]
    picture = draw_mattes(BLANK, results, style="overlay", colors=[(255, 0, 0), (0, 0, 255)])
    assert picture.size == BLANK.size
    outside, first, second = (np.array(picture.getpixel(at), int) for at in ((10, 10), (100, 100), (250, 100)))
    assert outside.tolist() == [45, 45, 45]
    assert first[0] > 150 > first[1] == first[2] > 80
    assert second[2] > second[0] and outside.sum() < second.sum() < first.sum()  # half as strong
    assert np.array_equal(np.asarray(draw_mattes(BLANK, [], style="overlay")), np.asarray(BLANK))


def test_cut_outs_lie_over_a_checkerboard_in_panels_of_their_own():
    results = [soft_square(50, 60, 150, 160), soft_square(200, 10, 390, 290, alpha=128)]
    sheet = draw_mattes(BLANK, results, columns=3, panel_size=200, colors=[(255, 0, 0), (0, 0, 255)])
    gap = 4
    assert sheet.size == (3 * 200 + 4 * gap, 150 + 2 * gap)
    panels = [
        np.asarray(sheet.crop((gap + i * 204, gap, gap + i * 204 + 200, gap + 150))).astype(int) for i in range(3)
    ]
    assert panels[1][0, 0].tolist() == [255, 0, 0] and panels[2][0, 0].tolist() == [0, 0, 255]  # frames
    assert panels[1][75, 100].tolist() == [128, 128, 128]  # solid, enlarged to the height of the panel
    assert set(np.unique(panels[1][10:140, 5:15])) == {208, 255}  # beside it: two kinds of squares
    middle = np.unique(panels[2][60:90, 90:110])
    assert len(middle) == 2 and abs(middle[0] - 168) <= 1 and abs(middle[1] - 191) <= 1  # half transparent
    assert draw_mattes(BLANK, results, panel_size=200).height > 150  # about as wide as high


def test_estimated_foregrounds_and_sixteen_bits_are_drawn():
    result = soft_square(0, 0, 400, 300)
    red = Image.new("RGBA", (400, 300), (250, 0, 0, 255))
    sheet = draw_mattes(BLANK, [{**result, "foreground": red}], columns=2, panel_size=200)
    assert sheet.getpixel((4 + 204 + 100, 75)) == (250, 0, 0)
    deep = {"alpha": Image.fromarray(np.asarray(result["alpha"]).astype(np.uint16) * 257)}
    assert draw_mattes(BLANK, [deep]).tobytes() == draw_mattes(BLANK, [result]).tobytes()
    empty = draw_mattes(BLANK, [soft_square(0, 0, 0, 0)], columns=2, panel_size=200)
    assert set(np.unique(np.asarray(empty)[20:130, 230:380])) == {208, 255}


@pytest.mark.parametrize(
    ("results", "options", "message"),
    [
        ([{"alpha": np.ones((3, 3))}], {}, "result 0"),
        ([{"mask": np.ones((300, 400), bool)}], {}, 'Result 0 has no "alpha"'),
        ([], {"style": "comic"}, "style"),
        ([], {"panel_size": 0}, "panel_size"),
    ],
)
def test_bad_mattes(results, options, message):
    with pytest.raises(ValueError, match=message):
        draw_mattes(BLANK, results, **options)
