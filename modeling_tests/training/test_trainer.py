# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import copy

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import Trainer

from hf_segcap.data.augmentation import LargeScaleJitter
from hf_segcap.data.collator import RegionCollator
from hf_segcap.training.trainer import SegCapTrainer, caption_metrics, decode_captions
from modeling_tests.tiny import END_ID, IMAGE_SIZE, PAD_ID, tiny_processor, tiny_sam_caption
from modeling_tests.training.data import (
    ONE_STEP_OF_TWO,
    TRAIN_AND_REPORT,
    arguments,
    assert_loss_is_the_plain_mean,
    assert_ranks_agree,
    logged_losses,
    make_rows,
    run_two_processes,
)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def make_trainer(
    output, processor, trainer_class=SegCapTrainer, rows=None, collator=None, policy="text_mixer", **kwargs
):
    options = kwargs.pop("options", {})
    model = tiny_sam_caption()
    model.freeze_for(policy)
    return trainer_class(
        model=model,
        args=arguments(output, **options),
        data_collator=collator or RegionCollator(processor, max_regions=2, augmentation=LargeScaleJitter(IMAGE_SIZE)),
        train_dataset=make_rows() if rows is None else rows,
        **kwargs,
    )


def test_it_learns_to_tell_two_regions_apart(tmp_path, processor):
    rows = make_rows(2)
    for item in rows:
        left, right = (
            {"box": [1, 1, 20, 20], "phrases": ["a red disc"]},
            {"box": [35, 20, 59, 43], "phrases": ["the cat"]},
        )
        item["regions"] = [left, right]
    trainer = make_trainer(
        tmp_path,
        processor,
        rows=rows,
        collator=RegionCollator(processor, train=False),
        policy="all",
        options={"max_steps": 30, "learning_rate": 5e-3, "lr_scheduler_type": "constant"},
        eval_dataset=rows,
        compute_metrics=caption_metrics(processor),
    )
    trainer.model.config.label_smoothing = 0.0
    assert trainer.evaluate()["eval_exact_match"] < 0.5
    trainer.train()
    assert logged_losses(trainer)[-1] < 0.5
    assert trainer.evaluate()["eval_exact_match"] == 1.0


def test_only_the_text_mixer_changes(tmp_path, processor):
    trainer = make_trainer(tmp_path, processor)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(trainer.model.text_mixer_modules) for name in changed)
    assert {name.split(".")[0] for name in changed} == {"mask_decoder", "language_project", "task_tokens"}


def test_frozen_parts_stay_in_eval_mode(tmp_path, processor):
    modes = []

    class Watch(SegCapTrainer):
        def compute_loss(self, model, *args, **kwargs):
            modes.append((model.training, model.vision_encoder.training, model.language_model.training))
            return super().compute_loss(model, *args, **kwargs)

    make_trainer(tmp_path, processor, Watch, options={"max_steps": 2}).train()
    assert modes == [(True, False, False)] * 2


def test_plain_trainer_trains_and_evaluates(tmp_path, processor):
    trainer = make_trainer(
        tmp_path,
        processor,
        Trainer,
        options={"remove_unused_columns": False, "label_names": ["labels"]},
        eval_dataset=make_rows(3),
    )
    trainer.train()
    assert all(np.isfinite(logged_losses(trainer)))
    assert np.isfinite(trainer.evaluate()["eval_loss"])


def test_loss_is_the_plain_mean_with_gradient_accumulation(tmp_path, processor):
    rows, collator = make_rows(4), RegionCollator(processor, train=False)
    trainer = make_trainer(tmp_path, processor, rows=rows, collator=collator, options=ONE_STEP_OF_TWO)
    assert_loss_is_the_plain_mean(trainer, rows, collator)


def test_evaluation_uses_its_own_collator_and_pads_ragged_batches(tmp_path, processor):
    rows = make_rows(2, 1) + make_rows(3, 3, seed=1)
    seen = {}

    def compute_metrics(prediction):
        seen["predictions"], seen["labels"] = prediction.predictions, prediction.label_ids
        return {}

    trainer = make_trainer(
        tmp_path,
        processor,
        eval_dataset=rows,
        compute_metrics=compute_metrics,
        generation_kwargs={"max_new_tokens": 5},
        max_caption_length=8,
    )
    metrics = trainer.evaluate()
    assert np.isfinite(metrics["eval_loss"])
    assert seen["predictions"].shape == seen["labels"].shape == (5, 3, 8)
    references = decode_captions(processor, seen["labels"])
    assert references == [[region["phrases"][0] for region in item["regions"]] for item in rows]
    assert (seen["predictions"][:2, 1:] == -100).all() and (seen["predictions"][..., 5:] == -100).all()
    assert [len(c) for c in decode_captions(processor, seen["predictions"])] == [1, 1, 3, 3, 3]

    batch = RegionCollator(processor, train=False)(rows[2:4])
    with torch.no_grad():
        generated = trainer.model.generate(
            **{k: v for k, v in batch.items() if k not in ("labels", "input_ids", "attention_mask")}, max_new_tokens=5
        )
    expected = processor.post_process_captions(generated, batch["prompt_mask"])
    assert decode_captions(processor, seen["predictions"])[2:4] == expected


def test_evaluation_encodes_every_image_once(tmp_path, processor, monkeypatch):
    rows, seen = make_rows(3), []
    collator = RegionCollator(processor, train=False)

    def compute_metrics(prediction):
        seen.append(prediction.predictions)
        return {}

    trainer = make_trainer(tmp_path, processor, collator=collator, eval_dataset=rows, compute_metrics=compute_metrics)
    encoded = []
    encode = trainer.model.vision_encoder.forward
    monkeypatch.setattr(
        trainer.model.vision_encoder, "forward", lambda x, **kwargs: encoded.append(len(x)) or encode(x, **kwargs)
    )
    loss = trainer.evaluate()["eval_loss"]
    assert encoded == [2, 1]
    # without a forward pass there is nothing to reuse, and the captions are the same
    trainer.eval_collator = lambda rows: {k: v for k, v in collator(rows).items() if k != "labels"}
    assert np.isfinite(loss) and np.array_equal(trainer.predict(rows).predictions, seen[0])


def test_a_collator_without_prompt_mask(tmp_path, processor):
    rows, collator = make_rows(3), RegionCollator(processor, train=False)
    seen = []

    def compute_metrics(prediction):
        seen.append((prediction.predictions, prediction.label_ids))
        return {}

    def without_mask(rows):
        return {name: value for name, value in collator(rows).items() if name != "prompt_mask"}

    for each in (collator, without_mask):
        make_trainer(tmp_path, processor, collator=each, eval_dataset=rows, compute_metrics=compute_metrics).evaluate()
    assert all(np.array_equal(left, right) for left, right in zip(*seen))


@pytest.mark.parametrize(
    ("policy", "given", "expected"), [("text_mixer", None, None), ("all", None, True), ("all", False, False)]
)
def test_unused_parameters_are_looked_for_where_there_are_some(tmp_path, processor, policy, given, expected):
    trainer = make_trainer(tmp_path, processor, policy=policy, options={"ddp_find_unused_parameters": given})
    assert trainer.args.ddp_find_unused_parameters is expected
    if expected is not None:
        assert trainer.accelerator.ddp_handler.find_unused_parameters is expected


def test_eval_loss_equals_the_models_loss(tmp_path, processor):
    rows = make_rows(2)
    trainer = make_trainer(tmp_path, processor, eval_dataset=rows)
    batch = RegionCollator(processor, train=False)(rows)
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_eval_loss_is_the_mean_over_tokens(tmp_path, processor):
    """Whatever the batches: images without objects do not count, those with many words count as much as their words."""
    rows = make_rows(3)
    rows[0]["regions"], rows[1]["regions"] = [], rows[1]["regions"][:1]
    rows[1]["regions"][0]["phrases"] = ["cat"]
    collator = RegionCollator(processor, train=False)
    losses = []
    for size in (1, 3):
        trainer = make_trainer(
            tmp_path, processor, eval_dataset=rows, options={"per_device_eval_batch_size": size, "eval_strategy": "no"}
        )
        losses.append(trainer.evaluate()["eval_loss"])
    with torch.no_grad():
        model = trainer.model.eval()
        batches = [collator([row]) for row in rows[1:]]
        few, many = ((batch["labels"] != -100).sum().item() for batch in batches)
        one, other = (model(**batch).loss.item() for batch in batches)
        whole = model(**collator(rows)).loss.item()
    assert many > 3 * few and abs(one - other) > 1e-3
    assert whole == pytest.approx((few * one + many * other) / (few + many), rel=1e-5)
    assert losses == pytest.approx([whole, whole], rel=1e-5)
    assert np.isnan(trainer.evaluate(rows[:1])["eval_loss"])


def test_epochs_of_data_without_a_length(tmp_path, processor):
    collator, seen = RegionCollator(processor), []
    collator.set_epoch = seen.append
    rows = make_rows(4)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(rows)

    make_trainer(tmp_path, processor, rows=Stream(), collator=collator, options={"max_steps": 6}).train()
    assert seen == [0, 1, 2]


def test_predict_without_generation_returns_the_outputs(tmp_path, processor):
    trainer = make_trainer(tmp_path, processor, predict_with_generate=False)
    logits = trainer.predict(make_rows(2)).predictions
    assert logits.shape[:2] == (2, 3) and logits.dtype == np.float32


def test_a_caption_longer_than_announced_is_an_error(tmp_path, processor):
    trainer = make_trainer(tmp_path, processor, max_caption_length=3, generation_kwargs={"max_new_tokens": 3})
    with pytest.raises(ValueError, match="max_caption_length=3"):
        trainer.predict(make_rows(1))


def test_tokens_behind_the_end_are_dropped(processor):
    from hf_segcap.training.trainer import _mask_after_end

    ids = torch.tensor([[[5, END_ID, PAD_ID, 7], [END_ID, END_ID, 6, 6], [5, 6, 7, 8]]])
    masked = _mask_after_end(ids, END_ID)
    assert masked.tolist() == [[[5, END_ID, -100, -100], [END_ID, -100, -100, -100], [5, 6, 7, 8]]]
    assert torch.equal(_mask_after_end(ids, [END_ID, 5])[0, 2], torch.tensor([5, -100, -100, -100]))
    assert _mask_after_end(ids, None) is ids


def test_caption_metrics_by_hand(processor):
    def ids(*texts):
        rows = [processor.tokenizer(text)["input_ids"] + [END_ID] for text in texts]
        return [row + [-100] * (6 - len(row)) for row in rows]

    class Prediction:
        predictions = np.array([ids("a red cup", "the dog"), [*ids("a cat"), [-100] * 6]])
        label_ids = np.array([ids("a red cup", "the red cat"), [*ids("a blue cat"), [-100] * 6]])

    metrics = caption_metrics(processor)(Prediction())
    assert metrics["exact_match"] == pytest.approx(1 / 3)
    assert metrics["word_f1"] == pytest.approx((1 + 2 / 5 + 4 / 5) / 3)


def test_weight_decay_spares_biases_and_norms_only(tmp_path, processor):
    trainer = make_trainer(tmp_path, processor, options={"weight_decay": 0.1})
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    spared = trained - decayed
    assert spared == {name for name in trained if name.endswith("bias") or "norm" in name}
    assert {"mask_decoder.caption_tokens.weight", "task_tokens.weight", "language_project.weight"} <= decayed


def test_batches_without_regions_train_nothing(tmp_path, processor):
    rows = [{**row, "regions": []} for row in make_rows(4)]
    trainer = make_trainer(tmp_path, processor, rows=rows, options={"max_steps": 2})
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    assert logged_losses(trainer) == [0.0, 0.0]
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_gives_the_same_losses(tmp_path, processor, workers):
    options = {"max_steps": 7, "save_strategy": "steps", "save_steps": 4, "dataloader_num_workers": workers}
    collator = RegionCollator(
        processor,
        max_regions=2,
        augmentation=LargeScaleJitter(IMAGE_SIZE),
        prompt_kinds={"box": 0.5, "point": 0.5},
    )
    whole = make_trainer(tmp_path / "a", processor, collator=collator, options=options)
    whole.train()
    assert len(set(logged_losses(whole))) == 7
    # Step 4 is inside the second epoch of 3 steps.
    resumed = make_trainer(tmp_path / "b", processor, collator=RegionCollator(**_settings(collator)), options=options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert logged_losses(resumed) == pytest.approx(logged_losses(whole), rel=1e-5)
    for (name, left), right in zip(whole.model.named_parameters(), resumed.model.parameters()):
        torch.testing.assert_close(left, right, msg=name)


def _settings(collator):
    names = ("processor", "max_regions", "augmentation", "prompt_kinds")
    return {name: getattr(collator, name) for name in names}


_SCRIPT = """
import json, sys
from hf_segcap.data.collator import RegionCollator
from hf_segcap.training.trainer import SegCapTrainer, caption_metrics
from modeling_tests.tiny import tiny_processor, tiny_sam_caption
from modeling_tests.training.data import arguments, logged_losses, make_rows

if __name__ == "__main__":
    processor, model = tiny_processor(), tiny_sam_caption()
    everything = sys.argv[2] == "all"
    model.freeze_for(sys.argv[2])
    rows = make_rows(8)
    for row in rows[:3]:
        row["regions"] = []  # some processes meet batches without regions
    trainer = SegCapTrainer(
        model=model, args=arguments(sys.argv[1], ddp_backend="gloo", per_device_train_batch_size=1, max_steps=4,
                                    per_device_eval_batch_size=1,
                                    activation_checkpointing=everything),
        data_collator=RegionCollator(processor, prompt_kinds={"box": 0.5, "point": 0.5} if everything else None),
        train_dataset=rows, eval_dataset=make_rows(3, 2, seed=1),
        compute_metrics=caption_metrics(processor), generation_kwargs={"max_new_tokens": 5},
    )
    with open(f"{sys.argv[1]}/untrained{trainer.args.process_index}", "w") as file:
        file.write(str(trainer.evaluate()["eval_loss"]))
"""


@pytest.mark.parametrize("policy", ["text_mixer", "all"])
def test_two_processes_train_one_model(tmp_path, policy, processor):
    run_two_processes(tmp_path, _SCRIPT + TRAIN_AND_REPORT, tmp_path, policy)
    assert max(assert_ranks_agree(tmp_path, 4, "eval_word_f1")) > 0
    if policy == "text_mixer":  # the same boxes whatever the batches, while the other one draws its prompts
        one = make_trainer(tmp_path, processor, eval_dataset=make_rows(3, 2, seed=1), options={"eval_strategy": "no"})
        expected = one.evaluate()["eval_loss"]  # of three images, one of which the second process sees again
        found = [float((tmp_path / f"untrained{rank}").read_text()) for rank in (0, 1)]
        assert found == pytest.approx([expected] * 2, rel=1e-5)
