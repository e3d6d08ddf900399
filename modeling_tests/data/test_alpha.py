# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import io

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segcap.data.alpha import alpha_box, alpha_region, decode_alpha, encode_alpha
from hf_segcap.images import load_image
from hf_segcap.masks import decode_rle


@pytest.fixture
def ramp():
    return np.linspace(0, 1, 300, dtype=np.float32).reshape(15, 20)


@pytest.mark.parametrize(("bits", "step"), [(8, 1 / 255), (16, 1 / 65535)])
def test_png_and_back(ramp, bits, step):
    stored = encode_alpha(ramp, bits)
    assert stored[:4] == b"\x89PNG"
    found = decode_alpha(stored)
    assert found.dtype == np.float32 and found.min() == 0 and found.max() == 1
    np.testing.assert_allclose(found, ramp, atol=0.51 * step)
    assert np.abs(found - ramp).max() > 0.4 * step  # no more bits than asked for


def test_arrays_have_the_range_of_their_type(ramp):
    np.testing.assert_array_equal(decode_alpha(ramp.astype(np.float64)), ramp)
    np.testing.assert_allclose(decode_alpha((ramp * 255).astype(np.uint8)), ramp, atol=1 / 255)
    np.testing.assert_allclose(decode_alpha((ramp * 65535).astype(np.uint16)), ramp, atol=1 / 65535)
    assert decode_alpha(ramp > 0.5).sum() == (ramp > 0.5).sum()
    np.testing.assert_array_equal(decode_alpha(torch.from_numpy(ramp)), ramp)
    np.testing.assert_allclose(decode_alpha(torch.from_numpy(ramp).bfloat16().requires_grad_()), ramp, atol=1 / 256)


def test_pictures_and_files(ramp, tmp_path):
    grey = Image.fromarray((ramp * 255).astype(np.uint8))
    expected = decode_alpha(grey)
    colour = Image.merge("RGB", [grey] * 3)
    opaque, cutout = colour.convert("RGBA"), Image.merge("RGBA", [grey.point(lambda v: 255 - v)] * 3 + [grey])
    for picture in (colour, opaque, cutout):
        np.testing.assert_allclose(decode_alpha(picture), expected, atol=1.1 / 255)
    palette = Image.fromarray((ramp > 0.5).astype(np.uint8) * 3, mode="P")
    palette.putpalette([200, 180, 160] * 4)
    palette.save(tmp_path / "palette.png", transparency=0)
    np.testing.assert_array_equal(decode_alpha(tmp_path / "palette.png"), ramp > 0.5)
    grey.save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode_alpha(tmp_path / "a.png"), expected)
    np.testing.assert_array_equal(decode_alpha(str(tmp_path / "a.png")), expected)
    assert decode_alpha(grey.convert("1")).max() == 1


@pytest.mark.parametrize("mode", ["I", "I;16"])
@pytest.mark.parametrize("top", [255, 65535])
def test_grey_values_are_those_that_images_have(ramp, mode, top):
    picture = Image.fromarray(np.rint(ramp * top).astype(np.int32 if mode == "I" else np.uint16))
    assert picture.mode == mode
    found = decode_alpha(picture)
    shown = np.asarray(load_image(picture).convert("L"))
    np.testing.assert_allclose(found * 255, shown, atol=0.51)
    assert found.max() == (1 if mode == "I" or top > 255 else np.float32(255 / 65535))


def test_unusable_mattes_are_refused(ramp, tmp_path):
    for bad, message in (
        (ramp * 255, "0.0 to 255.0"),
        (ramp - 0.1, "from -0.1"),
        (np.full((3, 3), np.nan), "nan"),
        (ramp[None], "shape"),
        ((ramp * 100).astype(np.int32), "int32"),
        (b"no image", "cannot read the matte"),
        (tmp_path / "missing.png", "cannot read the matte"),
    ):
        with pytest.raises(ValueError, match=f"region 3: .*{message}"):
            decode_alpha(bad, "region 3")
    with pytest.raises(TypeError, match="region 3: expected .* got int"):
        decode_alpha(7, "region 3")
    with pytest.raises(ValueError, match="15 x 20 .* the image 20 x 15"):
        decode_alpha(ramp, size=(20, 15))
    with pytest.raises(ValueError, match="bits"):
        encode_alpha(ramp, 12)
    with pytest.raises(ValueError, match="to 255.0"):
        encode_alpha(ramp * 255)
    damaged = io.BytesIO(encode_alpha(ramp)[:60])
    with pytest.raises(ValueError, match="cannot read"):
        decode_alpha(damaged.getvalue())


def test_box_and_mask_of_a_region():
    alpha = np.zeros((20, 30), dtype=np.float32)
    assert alpha_box(alpha) is None
    alpha[2:18, 3:25] = 0.05
    assert alpha_box(alpha) == [3, 2, 25, 18]  # nothing is above 0.1
    alpha[5:10, 6:12] = 0.3
    assert alpha_box(alpha) == [6, 5, 12, 10]
    alpha[6, 7] = 0.8
    region = alpha_region(alpha, alpha, "hair")
    assert region["box"] == [6, 5, 12, 10] and region["category"] == "hair" and region["phrases"] == []
    assert decode_rle(region["mask"]).sum() == 1 and region["alpha"] is alpha
    assert alpha_region(alpha, alpha, box=[0, 0, 9, 9])["box"] == [0, 0, 9, 9]
    with pytest.raises(ValueError, match="no object"):
        alpha_region(alpha * 0, alpha)


def test_mattes_are_upright_as_images_are(ramp, tmp_path):
    """A camera held upside down: both are turned."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(io.BytesIO(encode_alpha(ramp))).save(tmp_path / "matte.png", exif=exif)
    upright = np.asarray(load_image(tmp_path / "matte.png"))[..., 0] / 255
    np.testing.assert_allclose(decode_alpha(tmp_path / "matte.png"), upright, atol=1e-6)
    np.testing.assert_allclose(upright, ramp[::-1, ::-1], atol=1 / 255)
