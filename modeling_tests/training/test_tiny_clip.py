# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import copy

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from hf_segcap.data.describe import RegionWords
from hf_segcap.data.mask_crops import MaskCropEmbedder, encode_crops
from hf_segcap.data.synthetic import SyntheticRegions
from hf_segcap.training.tiny_clip import (
    align_texts,
    build_crops,
    colour_and_shape,
    contrastive_loss,
    encode_phrases,
    false_pairs,
    make_phrase,
    normalised,
    phrase_tokenizer,
    retrieval_accuracy,
    train_tiny_clip,
)

RED_STAR = RegionWords("small", "red", "plain", "left", shape="star-shaped")
RED_DISC = RegionWords("large", "red", "striped", "top", shape="round")
BLUE_BLOB = RegionWords("large", "blue", "plain", "top")


def test_phrases_are_about_true_words_and_within_the_vocabulary():
    tokenizer, rng = phrase_tokenizer(), np.random.default_rng(0)
    phrases = [make_phrase(RED_DISC, rng) for _ in range(300)]
    for phrase, about in phrases:
        assert about.size == about.place == "" and about.colour in ("", "red") and about.shape in ("", "round")
        assert about.colour or about.texture or about.shape
        assert (about.colour == "red") == ("red" in phrase.split())
        ids = tokenizer(phrase)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in ids or "whatsit" in phrase
    assert len({phrase for phrase, _ in phrases}) > 60


def test_a_phrase_is_false_of_objects_with_other_words_only():
    red = RegionWords("", "red", "", "")
    star = RegionWords("", "", "", "", shape="star-shaped")
    striped = RegionWords("", "", "striped", "")
    wrong = false_pairs([red, star, striped], [RED_STAR, RED_DISC, BLUE_BLOB])
    # an object without a shape word may be a star
    assert wrong.tolist() == [[False, False, True], [False, True, False], [True, False, True]]


def test_loss_compares_with_false_pairs_only():
    images, texts = torch.eye(3), torch.eye(3)
    nothing_false, scale = torch.zeros(3, 3, dtype=torch.bool), torch.tensor(10.0)
    assert contrastive_loss(images, texts, nothing_false, scale).item() == 0
    everything = ~torch.eye(3, dtype=torch.bool)
    right = contrastive_loss(images, texts, everything, scale)
    swapped = contrastive_loss(images, texts[[1, 0, 2]], everything, scale)
    expected = torch.nn.functional.cross_entropy(scale * torch.eye(3), torch.arange(3))
    assert torch.allclose(right, expected, atol=1e-6) and swapped > right + 1


@pytest.fixture(scope="module")
def trained():
    return train_tiny_clip(60, seed=0, rows=SyntheticRegions(60, seed=0), batch_size=96, align_steps=0, progress=False)


def test_short_training_beats_chance_and_is_reproducible_in_form(trained, tmp_path):
    model, tokenizer = trained
    right, asked = retrieval_accuracy(model, tokenizer, SyntheticRegions(30, seed=50))
    assert asked > 60 and right / asked > 0.3  # a scene has five objects on average
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPModel.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    phrases = ["the red star", "something blue"]
    embeds = encode_phrases(phrases, *loaded)
    assert torch.allclose(embeds, encode_phrases(phrases, model, tokenizer), atol=1e-6)
    assert torch.allclose(embeds.norm(dim=-1), torch.ones(2), atol=1e-5)


def test_alignment_moves_texts_to_their_crops_and_leaves_images(trained):
    model, tokenizer = copy.deepcopy(trained[0]), trained[1]
    embedder = MaskCropEmbedder(model, min_area=40)
    data = build_crops(SyntheticRegions(30, seed=50), embedder, draws=1)
    seen = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("text")}

    def closeness() -> float:
        phrases = [colour_and_shape(words) for words in data.words]
        with torch.no_grad():
            images = encode_crops(model, normalised(data.pixels, embedder), data.inside)
            return (encode_phrases(phrases, model, tokenizer) * images).sum(-1).mean().item()

    noise = torch.randn(model.text_projection.weight.shape, generator=torch.Generator().manual_seed(0))
    model.text_projection.weight.data += 0.1 * noise
    before = closeness()
    align_texts(model, tokenizer, data, embedder, steps=40, progress=False)
    assert closeness() > before + 0.1
    for name, value in seen.items():
        assert torch.equal(model.state_dict()[name], value), name
