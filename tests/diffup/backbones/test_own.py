"""Backbones of one's own: what follows the protocol works everywhere, and what does not is refused in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffup import DiffUp, Support, plugins
from diffup.backbones import registry
from diffup.backbones.load import load_backbone
from diffup.backbones.registry import check_backbone, has_text_encoder, known_names, parse_backbone
from diffup.backbones.shapes import channels
from diffup.backbones.weights import weights_file, weights_identity
from diffup.commands.backbones import Check, checked
from diffup.errors import UserError
from diffup.grid.axes import named_backbone
from diffup.models.flops import backbone_cost
from tests.helpers.own_backbone import OwnBackbone, Wrong

BUILD = "tests.helpers.own_backbone:build"
IMAGES = torch.rand(2, 3, 100, 150, generator=torch.Generator().manual_seed(0))


def test_a_module_gives_its_stages_frozen_and_normalised() -> None:
    module = OwnBackbone()
    module.train()
    backbone = load_backbone(module)
    assert backbone.name == "tests.helpers.own_backbone.OwnBackbone" and not backbone.has_text
    assert backbone.input_size(100, 150) == (96, 144)
    stages = backbone.stages(IMAGES)
    assert [tuple(stage.shape) for stage in stages] == [(2, 8, 24, 36), (2, 12, 12, 18), (2, 16, 6, 9)]
    resized = torch.nn.functional.interpolate(IMAGES, (96, 144), mode="bilinear", antialias=True)
    for stage, expected in zip(stages, module((resized - 0.5) / 0.25)):
        torch.testing.assert_close(stage, expected)
    assert not any(each.training for each in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_dict_of_maps_and_a_module_without_attributes_work() -> None:
    backbone = load_backbone(Wrong(lambda maps: dict(zip("abc", maps))))
    assert [*backbone.mean, *backbone.std] == [0, 0, 0, 1, 1, 1] and backbone.input_size(97, 33) == (97, 33)
    assert len(backbone.stages(IMAGES)) == 3


def test_other_weights_are_another_backbone() -> None:
    one, two = OwnBackbone(), OwnBackbone()
    assert load_backbone(one).loaded_hash == load_backbone(two).loaded_hash
    with torch.no_grad():
        two.mix[0][0, 0] += 1
    assert load_backbone(one).weights != load_backbone(two).weights


WRONG: dict[str, tuple[Callable[[list[Tensor]], Any], str]] = {
    "one map": (lambda maps: maps[0], "must give three maps.*a Tensor"),
    "two maps": (lambda maps: maps[:2], "2 of them"),
    "nothing": (lambda maps: None, "a NoneType"),
    "channels last": (lambda maps: [m.permute(0, 2, 3, 1) for m in maps], r"channels-last.*permute\(0, 3, 1, 2\)"),
    "tokens": (lambda maps: [m.flatten(2).mT for m in maps], "gives tokens .*reshape"),
    "no batch": (lambda maps: [m[0] for m in maps], "tokens"),
    "batches mixed": (lambda maps: [m.repeat(2, 1, 1, 1) for m in maps], "of 1 images"),
    "another shape": (lambda maps: [m[:, :, :3] for m in maps], "not of the shape of an image"),
    "NaN": (lambda maps: [maps[0], maps[1] * float("nan"), maps[2]], "not finite in map 1"),
    "constant": (lambda maps: [m * 0 for m in maps], "the same value everywhere"),
    "whole numbers": (lambda maps: [m.int() for m in maps], "map 0 is torch.int32"),
    "random": (lambda maps: [m + torch.rand_like(m) for m in maps], "other features when it sees an image again"),
    "lists": (lambda maps: [m.tolist() for m in maps], "map 0 is list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_module_that_gives_something_else_is_refused(name: str) -> None:
    change, said = WRONG[name]
    with pytest.raises(UserError, match=said) as refused:
        load_backbone(Wrong(change))
    assert "backbone 'Wrong'" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"mean": (0.5,)}, "'mean' is .*three numbers"),
        ({"std": (1, 1, 0)}, "above 0"),
        ({"std": "abc"}, "three numbers"),
        ({"multiple": 0}, "'multiple' holds 0"),
        ({"multiple": 14.0}, "'multiple' holds 14.0"),
        ({"fixed_size": 224}, r"must be \(height, width\)"),
        ({"fixed_size": (7, "x")}, "'fixed_size' holds 'x'"),
        ({"fixed_size": (2, 2)}, "fails on images .*'multiple' or 'fixed_size'"),
    ],
)
def test_attributes_that_can_not_be_meant_are_refused(attributes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_backbone(Wrong(lambda maps: maps, **attributes))


def test_a_function_is_a_backbone_by_name_and_its_source_is_its_identity() -> None:
    parsed = parse_backbone(BUILD)
    assert (parsed.kind, parsed.model) == ("own", BUILD) and check_backbone(BUILD) == parsed
    identity = weights_identity(BUILD)
    assert identity.startswith("source:") and named_backbone(BUILD).weights == identity
    assert weights_file(BUILD, Path("anywhere")) is None and not has_text_encoder(BUILD)
    backbone = load_backbone(BUILD, identity)
    assert backbone.name == BUILD and backbone.weights == identity and backbone.source == BUILD
    assert channels(BUILD) == ((8, 12, 16), 0)
    assert backbone_cost(BUILD, 96)["backbone_mparams"] == pytest.approx(36 * 3 / 1e6)


def test_a_function_that_builds_other_weights_each_time_is_refused(folder: Path) -> None:
    code = "from torch import nn\n\ndef build():\n    return nn.Conv2d(3, 4, 1)\n"
    (folder / "own_random.py").write_text(code)
    with pytest.raises(UserError, match="'own_random:build' has other weights each time"):
        named_backbone("own_random:build")
    assert named_backbone("own_random:build", check=False).weights.startswith("source:")
    (folder / "own_coloured.py").write_text(
        "import torch\nfrom tests.helpers.own_backbone import OwnBackbone\n\ndef build():\n    made = OwnBackbone()\n"
        "    torch.nn.init.normal_(made.mix[0])\n    return made\n"
    )
    with pytest.raises(UserError, match="'own_coloured:build' has other weights each time"):
        checked(Check(name="own_coloured:build"))
    seeded = code.replace("    return", "    torch.manual_seed(0)\n    return").replace(
        "from torch", "import torch\nfrom torch"
    )
    (folder / "own_seeded.py").write_text(seeded)
    before = torch.random.get_rng_state()
    assert named_backbone("own_seeded:build").name == "own_seeded:build"
    assert torch.equal(before, torch.random.get_rng_state()), "its seed is its own"
    (folder / "own_elsewhere.py").write_text(code.replace("nn.Conv2d(3, 4, 1)", "open('weights.pth')"))
    assert named_backbone("own_elsewhere:build").name, "the workers will say"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that is not on Python's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return tmp_path


def test_a_module_in_the_working_directory_is_found_and_an_edit_is_noticed(folder: Path) -> None:
    code = "from tests.helpers.own_backbone import OwnBackbone\n\ndef build():\n    return OwnBackbone()\n"
    (folder / "own_vit_7.py").write_text(code)
    before = weights_identity("own_vit_7:build")
    assert load_backbone("own_vit_7:build").name == "own_vit_7:build"
    (folder / "own_vit_7.py").write_text(code + "# edited\n")
    assert weights_identity("own_vit_7:build") != before
    with pytest.raises(UserError, match="own_vit_7:build' has changed: its file is source:"):
        load_backbone("own_vit_7:build", before)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module_7:build", "no file of a module 'no_such_module_7'"),
        ("tests.helpers.own_backbone:missing", "can't be imported.*missing"),
        ("tests.helpers.own_backbone:needs_more", "called without arguments"),
        ("tests.helpers.own_backbone:nothing", "is a NoneType, not a torch.nn.Module"),
        ("tests.helpers.own_backbone:__doc__", "is a str, which can't be called"),
    ],
)
def test_a_function_that_can_not_be_used_is_refused(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_backbone(name)


@pytest.mark.parametrize("weights", ["random", "hub", "sha256:0123456789ab"])
def test_own_backbones_load_their_weights_themselves(weights: str) -> None:
    with pytest.raises(UserError, match="loads its weights itself"):
        load_backbone(BUILD, weights)


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Entry points as if a package had them."""
    found: dict[str, str] = {"our_vit": BUILD, "resnet18": BUILD}
    for module in (plugins, registry):
        monkeypatch.setattr(module, "entry_points", lambda group: found if group == plugins.BACKBONES else {})
    return found


def test_an_entry_point_names_a_backbone(entries: dict[str, str]) -> None:
    assert parse_backbone("our_vit").model == BUILD and "our_vit" in known_names()
    assert load_backbone("our_vit").name == "our_vit" and weights_identity("our_vit") == weights_identity(BUILD)
    with pytest.raises(UserError, match="both a model of timm and an entry point"):
        check_backbone("resnet18")


def test_entry_points_of_installed_packages_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, function in enumerate(("ours.vit:build", "theirs.vit:build")):
        package = tmp_path / f"package_{number}-1.0.dist-info"
        package.mkdir()
        (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: package_{number}\nVersion: 1.0\n")
        (package / "entry_points.txt").write_text(f"[diffup.backbones]\nsome_vit = {function}\n")
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
        plugins.entry_points.cache_clear()
        if number == 0:
            assert plugins.entry_points(plugins.BACKBONES)["some_vit"] == "ours.vit:build"
    with pytest.raises(UserError, match="two installed packages have an entry point 'some_vit'"):
        plugins.entry_points(plugins.BACKBONES)
    plugins.entry_points.cache_clear()


def test_a_checkpoint_segments_with_a_module(model: DiffUp, results: Path) -> None:
    swapped = model.swap_backbone(OwnBackbone(), companion="")
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    result = swapped.segment(image, [Support(image, [(5, 5, 30, 30)], "box")])
    assert result.mask.shape == (40, 50) and "OwnBackbone" in repr(swapped)
    loaded = DiffUp.load(next(results.glob("*/checkpoint")), backbone=OwnBackbone(), companion="")
    again = loaded.segment(image, [Support(image, [(5, 5, 30, 30)], "box")])
    assert (again.probability == result.probability).all()
    with pytest.raises(UserError, match="'Identity' must give three maps"):
        model.swap_backbone(nn.Identity())
