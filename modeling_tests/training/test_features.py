# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_segcap.data.collator import RegionCollator
from hf_segcap.training.features import FeatureCache, _ShardWriter, encoder_fingerprint
from hf_segcap.training.trainer import SegCapTrainer
from modeling_tests.tiny import random_image, tiny_processor, tiny_sam_caption
from modeling_tests.training.data import arguments, logged_losses, make_rows

FEATURE_BYTES = 32 * 8 * 8 * 2


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture
def model():
    return tiny_sam_caption().freeze_for("text_mixer")


def build(model, processor, rows, directory, **kwargs):
    return FeatureCache.build(model, processor, rows, directory, progress=False, **kwargs)


def count_encodings(monkeypatch, model):
    """Patches the model to count the images it encodes."""
    calls = []
    original = type(model).get_image_embeddings

    def counting(self, pixel_values, **kwargs):
        calls.append(len(pixel_values))
        return original(self, pixel_values, **kwargs)

    monkeypatch.setattr(type(model), "get_image_embeddings", counting)
    return calls


def test_features_are_those_of_the_model(tmp_path, model, processor):
    rows = make_rows(3)
    cache = build(model, processor, rows, tmp_path, batch_size=2)
    assert len(cache) == 3
    for row in rows:
        feature = cache.get(row["image"])
        pixel_values = processor(images=row["image"])["pixel_values"]
        with torch.no_grad():
            expected = model.get_image_embeddings(pixel_values)[0]
        assert feature.dtype == torch.float16 and feature.shape == (32, 8, 8)
        torch.testing.assert_close(feature.float(), expected, rtol=2e-3, atol=2e-3)
        assert torch.equal(cache.get(cache.key(row["image"])), feature)
        assert torch.equal(cache.get(np.asarray(row["image"])), feature)  # content counts, not the kind of object


def test_every_distinct_image_is_encoded_once(tmp_path, model, processor, monkeypatch):
    calls = count_encodings(monkeypatch, model)
    rows = make_rows(3)
    build(model, processor, [*rows, *rows, rows[0]], tmp_path, batch_size=2)
    assert sum(calls) == 3
    build(model, processor, rows, tmp_path)
    assert sum(calls) == 3
    assert len(build(model, processor, rows + make_rows(1, seed=5), tmp_path)) == 4
    assert sum(calls) == 4


def test_a_finished_cache_has_an_index_and_no_leftovers(tmp_path, model, processor):
    cache = build(model, processor, make_rows(3), tmp_path, shard_bytes=2 * FEATURE_BYTES)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["features"] == 3 and sorted(map(len, index["shards"].values())) == [1, 2]
    assert {p.name for p in tmp_path.iterdir()} == {"index.json", *index["shards"]}
    (tmp_path / "index.json").unlink()
    assert len(FeatureCache(tmp_path, cache.fingerprint)) == 3


@pytest.fixture
def log(caplog):
    logger = logging.getLogger("hf_segcap.training.features")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_the_size_is_announced(tmp_path, model, processor, log):
    build(model, processor, make_rows(3), tmp_path)
    assert f"3 images x {FEATURE_BYTES:,} bytes = 0.00 GB" in log.text


def test_another_encoder_or_image_is_not_found(tmp_path, model, processor):
    rows = make_rows(2)
    build(model, processor, rows, tmp_path)
    with torch.no_grad():
        next(model.vision_encoder.parameters()).view(-1)[0] += 1e-3
    other = FeatureCache.open(model, processor, tmp_path)
    with pytest.raises(KeyError, match="no feature of this image by this encoder"):
        other.get(rows[0]["image"])
    assert len(build(model, processor, rows, tmp_path)) == 4


def test_the_fingerprint_counts_what_decides_the_features(model, processor):
    before = encoder_fingerprint(model, processor)
    with torch.no_grad():
        model.language_project.weight.zero_()
    assert encoder_fingerprint(model, processor) == before
    changed = tiny_processor()
    changed.image_processor.image_mean = [0.5, 0.5, 0.5]
    assert encoder_fingerprint(model, changed) != before
    assert encoder_fingerprint(tiny_sam_caption(seed=1), processor) != before


def test_the_fingerprint_counts_the_encoders_configuration(tmp_path, model, processor):
    before = encoder_fingerprint(model, processor)
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path, attn_implementation="eager", dtype="float32")
    assert encoder_fingerprint(reloaded, processor) == before  # where it came from and how it is run do not count
    model.vision_encoder.config.layer_norm_eps = 1e-3
    assert encoder_fingerprint(model, processor) != before


def test_training_from_features_gives_the_same_losses(tmp_path, processor):
    rows = make_rows(4)

    def losses(with_features):
        model = tiny_sam_caption().freeze_for("text_mixer")
        features = build(model, processor, rows, tmp_path / "cache") if with_features else None
        trainer = SegCapTrainer(
            model=model,
            args=arguments(tmp_path / "out", max_steps=6, dataloader_num_workers=2 if with_features else 0),
            data_collator=RegionCollator(processor, features=features),
            train_dataset=rows,
        )
        if with_features:
            model.vision_encoder.forward = None  # it is never called
        trainer.train()
        return logged_losses(trainer)

    plain = losses(False)
    assert losses(True) == pytest.approx(plain, rel=1e-3)
    assert len(set(plain)) == 6


def test_a_damaged_shard_is_named_and_computed_again(tmp_path, model, processor, monkeypatch):
    rows = make_rows(4)
    cache = build(model, processor, rows, tmp_path, shard_bytes=2 * FEATURE_BYTES)
    intact = {row["image_id"]: cache.get(row["image"]).clone() for row in rows}  # not a view of the file
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{shard.name} is damaged"):
        FeatureCache(tmp_path, cache.fingerprint)
    calls = count_encodings(monkeypatch, model)
    again = build(model, processor, rows, tmp_path)
    assert sum(calls) == 2
    for row in rows:
        torch.testing.assert_close(again.get(row["image"]), intact[row["image_id"]], rtol=1e-2, atol=1e-3)


def test_several_processes_share_the_work(tmp_path, model, processor, monkeypatch):
    calls = count_encodings(monkeypatch, model)
    rows = make_rows(5)
    for rank in (1, 0):
        build(model, processor, rows, tmp_path, process_index=rank, num_processes=2)
    assert sum(calls) == 5
    assert len(FeatureCache.open(model, processor, tmp_path)) == 5


def test_every_process_skips_damaged_shards_and_only_the_first_deletes_them(tmp_path, model, processor, log):
    rows = make_rows(4)
    build(model, processor, rows, tmp_path, shard_bytes=4 * FEATURE_BYTES)
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-100])
    build(model, processor, rows, tmp_path, process_index=1, num_processes=2)  # faster than process 0
    assert f"{shard.name} is damaged" in log.text and shard.exists()
    build(model, processor, rows, tmp_path, process_index=0, num_processes=2)
    assert not shard.exists()
    assert len(FeatureCache.open(model, processor, tmp_path)) == 4


def test_a_rebuilt_shard_has_a_new_name(tmp_path, model, processor):
    # With the same content; process 0 may just be about to delete the damaged one.
    rows = make_rows(2)
    build(model, processor, rows[1:], tmp_path)
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(b"damaged")
    build(model, processor, rows, tmp_path, process_index=1, num_processes=2)
    assert shard.read_bytes() == b"damaged" and len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("name", ["features-1.safetensors", ".features-1.safetensors.7.tmp"])
@pytest.mark.parametrize("process_index", [0, 1])
def test_files_may_vanish_during_the_build(tmp_path, model, processor, name, process_index):
    (tmp_path / name).symlink_to(tmp_path / "deleted")  # listed, but not there when it is opened
    build(model, processor, make_rows(2), tmp_path, process_index=process_index, num_processes=2)
    assert len(FeatureCache.open(model, processor, tmp_path)) == 1


def test_the_writer_looks_at_each_tensor_once(tmp_path):
    class Counted(torch.Tensor):
        looks = 0

        def numel(self):
            Counted.looks += 1
            return super().numel()

    writer = _ShardWriter(tmp_path, 20 * FEATURE_BYTES)
    for index in range(50):
        writer.add(str(index), torch.zeros(FEATURE_BYTES // 2, dtype=torch.float16).as_subclass(Counted))
    sizes = sorted(path.stat().st_size // FEATURE_BYTES for path in tmp_path.iterdir())
    assert sizes == [20, 20] and Counted.looks <= 50 * 2


def test_an_open_cache_can_be_sent_to_a_worker(tmp_path, model, processor):
    rows = make_rows(1)
    cache = build(model, processor, rows, tmp_path)
    feature = cache.get(rows[0]["image"])
    assert torch.equal(pickle.loads(pickle.dumps(cache)).get(rows[0]["image"]), feature)


_SCRIPT = """
import sys, time
from hf_segcap.training.features import FeatureCache
from modeling_tests.tiny import tiny_processor, tiny_sam_caption
from modeling_tests.training.data import make_rows
from modeling_tests.training.test_features import FEATURE_BYTES

class SlowRows(list):
    def __getitem__(self, index):
        time.sleep(0.05)
        return super().__getitem__(index)

FeatureCache.build(tiny_sam_caption(), tiny_processor(), SlowRows(make_rows(200)), sys.argv[1],
                   shard_bytes=2 * FEATURE_BYTES, progress=False)
"""


def test_it_survives_a_kill(tmp_path, model, processor, monkeypatch):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", _SCRIPT, str(tmp_path)], env=environment, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.safetensors"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = tmp_path / ".features-0.safetensors.1.tmp"  # what a kill in the middle of writing leaves behind
    left.write_bytes(b"unfinished")
    os.utime(left, (0, 0))

    there = len(FeatureCache.open(model, processor, tmp_path))
    assert 4 <= there < 200
    calls = count_encodings(monkeypatch, model)
    rows = make_rows(200)[: there + 3]
    cache = build(model, processor, rows, tmp_path)
    assert sum(calls) == 3 and len(cache) == there + 3 and not left.exists()
    assert cache.get(random_image(0)).isfinite().all()
