"""The public API: loading, encoding, segmenting, swapping, saving; what it refuses and how it says so."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffup import DiffUp, Result, Support, Text
from diffup.config import ModelConfig, SampleConfig
from diffup.data.dataset import Dataset, open_dataset
from diffup.episodes.cue_source import CueSource
from diffup.episodes.episode import Episode
from diffup.evaluation.encode import Encoder, FeatureCache
from diffup.evaluation.evaluate import Evaluation, predict
from diffup.models.batch import Features
from diffup.models.diffup import DiffUpNet
from tests.helpers.trained import CELL, INPUT, example, of_class, same

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_package_loads_nothing_until_the_api_is_used() -> None:
    code = (
        "import sys, diffup\n"
        "from diffup.evaluation import metrics\n"
        "assert 'torch' not in sys.modules and 'huggingface_hub' not in sys.modules\n"
        "from diffup import DiffUp\n"
        "assert DiffUp.__module__ == 'diffup.api' and 'torch' in sys.modules\n"
        "assert not hasattr(diffup, 'DiffUpp')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_store_folder_gives_the_training_backbone_and_its_configuration(model: DiffUp) -> None:
    assert model.encoder.backbone.name == "tiny_resnet"
    assert model.encoder.config == INPUT
    assert model.encoder.text_model is not None and model.encoder.text_model.name == "tiny_clip"
    assert "tiny_resnet" in repr(model)


def test_results_have_the_querys_size_and_sane_values(model: DiffUp, data: Dataset) -> None:
    query, support, mask = example(data)
    result = model.segment(query, [Support(support, mask)])
    size = query.shape[:2]
    assert result.mask.shape == result.probability.shape == result.variance.shape == size
    assert result.mask.dtype == np.bool_
    assert ((result.probability >= 0) & (result.probability <= 1)).all()
    assert (result.mask == (result.probability > 0.5)).all()
    assert (result.variance > 0).all()
    assert 0 <= result.predicted_iou <= 1
    assert result.spread is None


@pytest.mark.parametrize(("annotation", "shots"), [("mask", 1), ("box", 2), ("scribble+mask", 2), ("text", 0)])
def test_the_api_and_the_evaluation_are_one_path(model: DiffUp, data: Dataset, annotation: str, shots: int) -> None:
    """The same cues, seed and episode give the same map as the evaluation that tables are made of."""
    model = lively(model)
    query, *supports = of_class(data, 0)[: shots + 1]
    source = CueSource(data, INPUT)
    what = Evaluation(
        model=model.net, sample=SampleConfig(steps=3), annotation=annotation,
        shots=shots, class_indices=(0,), seed=7,
    )  # fmt: skip
    features = FeatureCache(model.encoder, data.image)
    expected = predict(what, [Episode(0, 0, query, tuple(supports))], source, features)[0]

    cues: list[Support | Text] = []
    for k, image_id in enumerate(supports):
        kind = annotation.split("+")[k % len(annotation.split("+"))]
        drawn = source.annotation(image_id, 0, kind)
        given: Any = drawn == 1
        if kind == "box":
            rows, columns = np.where(drawn == 1)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert drawn[box[1] : box[3], box[0] : box[2]].all(), "this test needs an object of one component"
            given = [box]
        cues.append(Support(features.get([image_id])[0], given, kind))
    if annotation == "text":
        cues = [Text(data.classes[0], others=data.classes[1:])]
    result = model.segment(features.get([query])[0], cues, steps=3, seed=7)
    assert expected.variance is not None
    same(
        result,
        Result(result.mask, expected.probability.numpy(), expected.variance.numpy(), expected.predicted_iou),
        1e-6,
    )
    other = model.segment(features.get([query])[0], cues, steps=3, seed=8)
    assert np.abs(other.probability - result.probability).max() > 1e-3, "this test needs a decoder that noise reaches"


def test_every_form_of_an_image_is_the_same_image(model: DiffUp, data: Dataset, tmp_path: Path) -> None:
    query, support, mask = example(data)
    path = tmp_path / "query.png"
    Image.fromarray(query).save(path)
    encoded = model.encode([query, Image.fromarray(query), path, str(path)])
    for other in encoded[1:]:
        assert all(torch.equal(a, b) for a, b in zip(encoded[0].stages, other.stages, strict=True))
        assert other.size == query.shape[:2]
    shot = model.encode([support])[0]
    same(model.segment(query, [Support(support, mask)]), model.segment(encoded[0], [Support(shot, mask)]), 1e-4)


def test_a_batch_gives_what_single_queries_give(model: DiffUp, data: Dataset) -> None:
    ids = of_class(data, 0)
    queries = model.encode([data.image(i) for i in ids[1:]], batch_size=2)
    cues: list[Support | Text] = [
        Support(data.image(ids[0]), data.mask(ids[0], 0) == 1),
        Text("striped red ring", others=["plain blue cross"]),
    ]
    batch = model.segment_batch(queries, cues, samples=2, seed=3, batch_size=2)
    assert len(batch) == len(queries)
    for query, result in zip(queries, batch, strict=True):
        same(model.segment(query, cues, samples=2, seed=3), result, 1e-4)
    assert model.segment_batch([], cues) == []


def lively(model: DiffUp) -> DiffUp:
    """The model with output layers that noise reaches, as after a long training."""
    net = DiffUpNet(model.net.config)
    net.load_state_dict(model.net.state_dict())
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in net.uqdd.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return DiffUp(model.encoder, net, model.facts)


def test_samples_are_averaged_and_their_spread_is_told(model: DiffUp, data: Dataset) -> None:
    model = lively(model)
    query, support, mask = example(data)
    given, shown = model.encode([query, support])
    cues = [Support(shown, mask)]
    several = model.segment(given, cues, samples=3, seed=5)
    again = model.segment(given, cues, samples=3, seed=5)
    assert several.probability.tobytes() == again.probability.tobytes()
    assert several.spread is not None and several.spread.shape == query.shape[:2]
    assert several.spread.max() > 0
    other = model.segment(given, cues, samples=3, seed=6)
    assert not np.array_equal(several.probability, other.probability)
    first = model.segment(given, cues, seed=5)
    assert not np.array_equal(first.probability, several.probability)
    same(first, dataclasses.replace(first, probability=model.segment(given, cues, samples=1, seed=5).probability))


def test_boxes_are_half_open_rounded_outwards_and_cut_at_the_image() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    drawn = Support(image, [(1, 0, 3, 1), (4.2, 2.5, 99, 99)], "box").drawn((4, 6))
    assert drawn.tolist() == [[0, 1, 1, 0, 0, 0], [0] * 6, [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert Support(image, (0, 0, 6, 4), "box").drawn((4, 6)).all()


def test_what_is_not_scribbled_is_unknown_and_masks_keep_their_unknown() -> None:
    image, strokes = np.zeros((2, 3, 3), np.uint8), np.array([[True, False, False], [False, False, False]])
    assert Support(image, strokes, "scribble").drawn((2, 3)).tolist() == [[1, 2, 2], [2, 2, 2]]
    assert Support(image, [[0, 1, 2], [0, 0, 0]], "mask").drawn((2, 3)).tolist() == [[0, 1, 2], [0, 0, 0]]


@pytest.mark.parametrize(
    ("annotation", "kind", "message"),
    [
        (np.ones((5, 5), bool), "mask", r"cues\[0\]: the mask has shape \(5, 5\), but its image is 160 × 160"),
        (np.zeros((160, 160), bool), "mask", r"cues\[0\]: the mask of a support is empty"),
        (np.full((160, 160), 255, np.uint8), "mask", "holds values 255.*picture > 0"),
        (np.full((160, 160), 2, np.uint8), "scribble", "the scribble holds values 2"),
        (np.zeros((160, 160), bool), "scribble", "the scribble of a support is empty"),
        ([(5, 5, 5, 9)], "box", r"box \(5, 5, 5, 9\) covers nothing of its image, which is 160 wide"),
        ([(200, 0, 210, 9)], "box", "covers nothing"),
        ([(1, 2, 3)], "box", "rows of four numbers"),
        ([(0, 0, float("nan"), 9)], "box", "rows of four numbers"),
        ([], "box", "rows of four numbers"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(model: DiffUp, annotation: Any, kind: str, message: str) -> None:
    image = np.zeros((160, 160, 3), np.uint8)
    with pytest.raises(ValueError, match=message):
        model.segment(image, [Support(image, annotation, kind)])


def test_cues_that_are_none_are_refused(model: DiffUp) -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    whole = Support(image, (0, 0, 32, 32), "box")
    bad: Any
    for bad, message in (
        ([], "needs a cue"),
        (whole, "put a single cue in brackets"),
        ([whole, "wren"], r"cues\[1\] is a str"),
        ([Text("wren"), Text("owl")], "one Text cue at most"),
    ):
        with pytest.raises(ValueError, match=message):
            model.segment(image, bad)
    with pytest.raises(ValueError, match="must be one of mask, box, scribble, points; not 'lasso'"):
        Support(image, (0, 0, 1, 1), "lasso")
    for name, others, message in (
        ("", (), "empty name"),
        ("owl", ("wren", "owl"), "and among the others"),
        ("owl", "wren", "is a list of names"),
    ):
        with pytest.raises(ValueError, match=message):
            Text(name, others)
    for steps, samples in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="must be 1 or more"):
            model.segment(image, [whole], steps=steps, samples=samples)


def test_images_that_are_none_are_refused(model: DiffUp, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    bad: Any
    for bad, message in (
        (np.zeros((8, 8), np.uint8), r"images\[1\] is uint8 \(8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), r"images\[1\] is float32"),
        (np.zeros((0, 8, 3), np.uint8), "no pixel"),
        (tmp_path / "none.jpg", r"none\.jpg: image is missing"),
        (tmp_path / "text.jpg", r"text\.jpg: image can't be decoded"),
        (None, "is NoneType"),
    ):
        with pytest.raises(ValueError, match=message):
            model.encode([np.zeros((8, 8, 3), np.uint8), bad])
    with pytest.raises(ValueError, match="takes a list of images"):
        model.encode("query.jpg")
    with pytest.raises(ValueError, match="takes a list of queries"):
        model.segment_batch(np.zeros((8, 8, 3), np.uint8), [])  # type: ignore[arg-type]


def test_swapping_shares_the_trained_part_and_refuses_old_features(model: DiffUp, data: Dataset) -> None:
    better = model.swap_backbone("tiny_regnet")
    assert better.net is model.net
    assert better.encoder.config == model.encoder.config
    assert better.encoder.text_model is model.encoder.text_model
    assert model.encoder.backbone.name == "tiny_resnet"
    query, support, mask = example(data)
    old = model.encode([query, support])
    for given, shown, place in ((old[0], support, r"queries\[0\]"), (query, old[1], r"cues\[0\]")):
        with pytest.raises(ValueError, match=rf"{place} was encoded by tiny_resnet .*has tiny_regnet .*again"):
            better.segment(given, [Support(shown, mask)])
    new = better.encode([query, support])
    assert better.segment(new[0], [Support(new[1], mask)]).mask.shape == query.shape[:2]
    same(model.segment(old[0], [Support(old[1], mask)]), model.segment(query, [Support(support, mask)]), 1e-4)
    unknown = Features(stages=old[0].stages, text=None, rgb=old[0].rgb, size=old[0].size)
    with pytest.raises(ValueError, match="something unknown"):
        model.segment(unknown, [Support(support, mask)])


def test_loading_with_another_backbone_is_swapping(model: DiffUp, results: Path, data: Dataset) -> None:
    query, support, mask = example(data)
    cues: list[Support | Text] = [Support(support, mask), Text("striped red ring", ("plain green star",))]
    loaded = DiffUp.load(str(results / CELL.key()), "tiny_regnet")
    same(loaded.segment(query, cues), model.swap_backbone("tiny_regnet").segment(query, cues))
    clip = model.swap_backbone("tiny_clip")
    assert clip.encoder.text_model is clip.encoder.backbone
    assert clip.encoder.config.companion == ""


def test_text_can_be_left_out(results: Path, model: DiffUp) -> None:
    silent = DiffUp.load(results / CELL.key(), companion="")
    image = np.zeros((32, 32, 3), np.uint8)
    assert silent.encode([image])[0].text is None
    with pytest.raises(ValueError, match=r"'tiny_resnet' has none.*companion="):
        silent.segment(image, [Text("wren")])
    spoken = silent.swap_backbone("tiny_regnet", companion="tiny_clip")
    assert spoken.segment(image, [Text("wren")]).mask.shape == (32, 32)
    with pytest.raises(ValueError, match="no text encoder"):
        silent.swap_backbone("tiny_regnet", companion="tiny_resnet")


def test_photographs_on_an_upgraded_backbone(model: DiffUp, shared_data: Path, shared_weights: Path) -> None:
    """The whole path on real weights: a cow found by another cow, on a backbone that was never trained on."""
    data = open_dataset(shared_data / "msrc15" / "dataset.json")
    cow = data.classes.index("cow")
    ids = of_class(data, cow)[:3]
    untrained = DiffUpNet(ModelConfig())  # draws the mean of the priors
    big = dataclasses.replace(INPUT, input_size=320, feature_grid=20, companion="", companion_weights="")
    source = DiffUp(Encoder(model.encoder.backbone, big), untrained)
    better = source.swap_backbone("deit_tiny_patch16_224", weights_dir=shared_weights)
    query, *shots = better.encode([data.image(i) for i in ids])
    cues = [Support(shot, data.mask(i, cow) == 1) for shot, i in zip(shots, ids[1:], strict=True)]
    result = better.segment(query, cues)
    truth, valid = data.mask(ids[0], cow) == 1, data.mask(ids[0], cow) != 255
    iou = (result.mask & truth & valid).sum() / ((result.mask | truth) & valid).sum()
    assert iou > 0.5


def absolute(model: DiffUp) -> DiffUp:
    """An untrained net that reads evidence, on the same backbone."""
    torch.manual_seed(0)
    return DiffUp(model.encoder, DiffUpNet(ModelConfig(decoder_grid=16, width=16, base="evidence")))


def photographs(data: Dataset, count: int = 24) -> tuple[list[Any], list[Any]]:
    """Images with the masks of their first class, the last without one."""
    ids = sorted(data.areas)[:count]
    masks = [data.mask(i, min(data.areas[i])) == 1 for i in ids]
    return [data.image(i) for i in ids], [*masks[:-1], None]


def test_a_bank_changes_what_a_model_of_evidence_says_and_nothing_else(model: DiffUp, data: Dataset) -> None:
    query, support, mask = example(data)
    cues, (images, masks) = [Support(support, mask)], photographs(data)
    plain = absolute(model)
    unlabelled, labelled = plain.calibrate(images), plain.calibrate(images, masks)
    made = [one.segment(query, cues).probability for one in (plain, unlabelled, labelled)]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(made[one] - made[other]).max() > 0.01
    assert plain.bank is None, "the model it is made from stays as it is"
    same(model.calibrate(images).segment(query, cues), model.segment(query, cues))


def test_a_bank_goes_along_when_the_backbone_is_swapped(model: DiffUp, data: Dataset) -> None:
    query, support, mask = example(data)
    cues, (images, masks) = [Support(support, mask)], photographs(data)
    swapped = absolute(model).calibrate(images, masks).swap_backbone("tiny_regnet")
    same(
        swapped.segment(query, cues),
        absolute(model).swap_backbone("tiny_regnet").calibrate(images, masks).segment(query, cues),
    )
    unlabelled = absolute(model).swap_backbone("tiny_regnet", bank=images)
    assert np.abs(unlabelled.segment(query, cues).probability - swapped.segment(query, cues).probability).max() > 0.01


def test_a_bank_is_saved_and_loaded_with_the_checkpoint(model: DiffUp, data: Dataset, tmp_path: Path) -> None:
    query, support, mask = example(data)
    cues, (images, masks) = [Support(support, mask)], photographs(data)
    made = absolute(model).calibrate(images, masks)
    made.save(tmp_path)
    same(DiffUp.load(tmp_path).segment(query, cues), made.segment(query, cues))
    kept = (tmp_path / "bank.safetensors").read_bytes()
    made.save(tmp_path)
    assert (tmp_path / "bank.safetensors").read_bytes() == kept
    for damaged in (kept[:-9], kept.replace(b"\xff\xd8\xff", b"\x00\x00\x00")):  # cut off; pictures that are none
        (tmp_path / "bank.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"bank.safetensors cannot be read.*remove this file"):
            DiffUp.load(tmp_path)
    absolute(model).save(tmp_path)
    loaded = DiffUp.load(tmp_path)
    assert loaded.bank is not None and loaded.bank.packaged, "one that was saved before would be taken for this model's"
    loaded.save(tmp_path)
    assert not (tmp_path / "bank.safetensors").exists(), "it comes with scikit-image already"


def test_a_share_of_the_bank_that_looks_most_like_the_object_is_left_out(model: DiffUp, data: Dataset) -> None:
    query, support, mask = example(data)
    cues, same_class = [Support(support, mask)], [support] * 2 + [query] * 2  # a bank of nothing but the class
    spared, given = (absolute(model).calibrate(same_class, drop=drop).segment(query, cues) for drop in (0.5, 0.0))
    assert np.abs(spared.probability - given.probability).max() > 0.01
    with pytest.raises(ValueError, match="bank_drop must be in"):
        model.calibrate(same_class, drop=1.0)


def test_banks_that_are_none_are_refused(model: DiffUp) -> None:
    image, mask = np.zeros((32, 40, 3), np.uint8), np.ones((32, 40), bool)
    for images, masks, message in (
        ("photographs/", None, "takes a list of images"),
        ([image], None, "2 images at least"),
        ([image, "gone.jpg"], None, r"images\[1\]"),
        ([image] * 2, [mask], "2 images and 1 masks"),
        ([image] * 2, [None, mask.T], r"masks\[1\]: .*transposed"),
    ):
        with pytest.raises(ValueError, match=message):
            model.calibrate(images, masks)  # type: ignore[arg-type]
