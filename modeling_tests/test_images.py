# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Images of every kind become the same upright RGB picture; unusable ones raise, naming the image."""

from __future__ import annotations

import base64
import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segcap import images
from hf_segcap.images import load_image, load_images


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def png(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def same(image, pixels) -> bool:
    return image.mode == "RGB" and np.array_equal(np.asarray(image), pixels)


def test_all_sources_give_the_same_picture(pixels, tmp_path):
    picture = Image.fromarray(pixels)
    data = png(picture)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    chw = torch.from_numpy(pixels).permute(2, 0, 1)
    sources = [path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), url, picture]
    sources += [pixels, pixels.transpose(2, 0, 1), torch.from_numpy(pixels), chw, pixels.astype(np.int64)]
    sources += [pixels / 255, (pixels / 255).astype(np.float32), chw / 255, pixels.astype(np.float32)]
    for source in sources:
        assert same(load_image(source), pixels), type(source)
    assert all(same(image, pixels) for image in load_images([sources[:3], sources[3:]]))


def test_url(pixels, monkeypatch):
    data = png(Image.fromarray(pixels))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/ok.png" else 404)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        assert same(load_image(f"{base}/ok.png"), pixels)
        with pytest.raises(ValueError, match="image 1.*404"):
            load_images([pixels, f"{base}/gone.png"])
        monkeypatch.setattr(images, "_MAX_DOWNLOAD_BYTES", len(data) - 1)
        with pytest.raises(ValueError, match="larger than"):
            load_image(f"{base}/ok.png")
    finally:
        server.shutdown()
        server.server_close()


def test_exif_orientation(pixels):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(pixels).save(buffer, format="PNG", exif=exif)
    turned = np.rot90(pixels, -1)
    assert same(load_image(buffer.getvalue()), turned)
    opened = Image.open(buffer)
    assert same(load_image(opened), turned)
    assert opened.size == (9, 6)  # the caller's image is left alone
    assert same(load_image(load_image(opened)), turned)  # not turned twice


def test_grey_palette_alpha_and_16_bit():
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    rgb = np.repeat(grey[..., None], 3, axis=2)
    assert same(load_image(Image.fromarray(grey)), rgb)
    assert same(load_image(grey), rgb)
    assert same(load_image(grey[..., None]), rgb)
    assert same(load_image(torch.from_numpy(grey)[None]), rgb)
    assert same(load_image(grey > 100), np.where(rgb > 100, 255, 0))
    assert same(load_image(Image.fromarray(grey).convert("P")), rgb)

    deep = grey.astype(np.uint16) * 257
    for image in (
        Image.fromarray(deep),
        png(Image.fromarray(deep)),
        deep,
        deep.astype(">u2"),
        Image.fromarray(deep.astype(np.int32)),
    ):
        assert same(load_image(image), rgb)
    assert same(load_image(Image.fromarray(grey.astype(np.float32) / 255)), rgb)  # mode "F"

    rgba = np.dstack([rgb, np.full((4, 6), 255, np.uint8)])
    rgba[0, 0] = (10, 20, 30, 0)  # fully transparent: white shows
    rgba[0, 1] = (0, 0, 0, 128)
    expected = rgb.copy()
    expected[0, 0], expected[0, 1] = 255, 127
    for image in (Image.fromarray(rgba), png(Image.fromarray(rgba)), rgba, torch.from_numpy(rgba).permute(2, 0, 1)):
        assert same(load_image(image), expected)
    palette = Image.fromarray(grey % 7, "P")
    palette.putpalette([value for colour in range(7) for value in (colour, 0, 200)])
    assert load_image(png(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_floats_that_interpolation_carried_beyond_one():
    ramp = np.linspace(-0.02, 1.004, 24).reshape(4, 6)
    assert same(load_image(ramp), np.rint(ramp.clip(0, 1) * 255).astype(np.uint8)[..., None].repeat(3, axis=2))


def test_ambiguous_layout():
    array = np.zeros((3, 5, 3), np.uint8)
    assert load_image(array).size == (5, 3)
    assert load_image(torch.from_numpy(array)).size == (3, 5)
    assert load_image(array, input_data_format="channels_first").size == (3, 5)
    with pytest.raises(ValueError, match="channels"):
        load_image(np.zeros((3, 5, 7), np.uint8), input_data_format="channels_last")
    with pytest.raises(ValueError, match="input_data_format"):
        load_image(array, input_data_format="nonsense")


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"not an image",
        png(Image.new("RGB", (64, 64), "red"))[:60],  # cut off
        "no/such/file.png",
        "data:image/png;base64,AAAA",
        "\0",
        Image.new("RGB", (0, 5)),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5, 2), np.uint8),
        np.zeros(5),
        np.zeros((2, 2, 2, 2, 3)),
        np.full((5, 5, 3), np.nan),
        np.full((5, 5, 3), np.inf),
        np.full((5, 5, 3), -0.2),
        np.full((5, 5, 3), 1.5),
        np.full((5, 5, 3), 300),
        np.full((5, 5, 3), "x"),
        np.full((5, 5, 3), 1j),
        torch.zeros(5, 5, dtype=torch.complex64),
    ],
    ids=lambda bad: f"{type(bad).__name__}{getattr(bad, 'shape', '')}",
)
def test_bad_images_name_their_index(bad):
    good = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="image 1"):
        load_images([good, bad])


@pytest.mark.parametrize("bad", [3, None, {"bytes": b""}, object()])
def test_things_that_are_no_images(bad):
    with pytest.raises(TypeError, match="image 0.*expected"):
        load_images([bad])


def test_too_deep_nesting():
    with pytest.raises(ValueError, match="deeper"):
        load_images([[[[np.zeros((4, 4, 3), np.uint8)]]]])
