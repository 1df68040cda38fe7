"""timm models of many families at a size that is no square: three finite stages in which each place answers for itself.

A model that can't do this is refused with its reason; it never gives features of another place.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import timm
import torch

from diffup.backbones.load import Backbone, load_backbone
from diffup.backbones.shapes import channels
from diffup.backbones.timm import TimmFeatures, stage_indices
from diffup.errors import UserError

HEIGHT, WIDTH = 224, 320
CORNERS = [(top, left) for top in (True, False) for left in (True, False)]
QUICK = (
    "edgenext_xx_small", "efficientvit_b0", "efficientvit_m0", "ghostnet_100", "mobilevit_xxs", "pit_ti_224",
    "regnety_002", "shvit_s1", "starnet_s1", "swiftformer_xs", "test_resnet", "test_vit",
)  # fmt: skip
SLOW: tuple[str, ...] = (
    "convnext_atto", "crossvit_tiny_240", "eva02_tiny_patch14_224", "fastvit_t8", "halonet26t", "hiera_tiny_224",
    "levit_128", "pvt_v2_b0", "swin_tiny_patch4_window7_224", "vit_small_patch14_reg4_dinov2",
    "xcit_nano_12_p8_224",
)  # fmt: skip
# A quarter of an hour more: all of them under DIFFUP_FAMILIES=all.
MORE = (
    "bat_resnext26ts", "beit_base_patch16_224", "botnet26t_256", "cait_xxs24_224", "coat_tiny",
    "coatnet_nano_rw_224", "convit_tiny", "convmixer_768_32", "cspresnet50", "davit_tiny",
    "deit3_small_patch16_224", "densenet121", "dla34", "dpn68", "efficientformer_l1", "efficientformerv2_s0",
    "focalnet_tiny_srf", "gcvit_xxtiny", "gmlp_s16_224", "haloregnetz_b", "hgnetv2_b0", "hieradet_small",
    "hrnet_w18_small", "inception_next_atto", "inception_v3", "lambda_resnet26t", "mambaout_femto",
    "maxvit_tiny_rw_224", "mixer_s32_224", "mobilenetv4_hybrid_medium", "mvitv2_tiny", "nest_tiny", "nextvit_small",
    "nfnet_l0", "poolformer_s12", "rdnet_tiny", "repvgg_a0", "repvit_m0_9", "res2net50d", "resmlp_12_224",
    "samvit_base_patch16", "selecsls42b", "sequencer2d_s", "swinv2_tiny_window8_256", "tiny_vit_5m_224",
    "tnt_s_patch16_224", "twins_svt_small", "vgg11", "visformer_tiny", "vit_relpos_small_patch16_224",
    "vit_small_patch16_dinov3", "vitamin_small_224", "volo_d1_224", "xception41",
)  # fmt: skip
if os.environ.get("DIFFUP_FAMILIES") == "all":
    SLOW += MORE
# With fresh weights the deeper stages of these hold next to nothing of a place: mixing over the whole map, or rounding.
FIRST_STAGE_ALONE = ("convmixer_768_32", "levit_128", "repvgg_a0", "tiny_vit_5m_224")


pytestmark = pytest.mark.usefixtures("one_thread")


def answers(backbone: Backbone, top: bool, left: bool) -> list[tuple[bool, bool]]:
    """The quarter of each stage in which its features change most, when the image changes in one of its quarters."""
    generator = torch.Generator().manual_seed(0)
    before = 0.4 + 0.2 * torch.rand(1, 3, HEIGHT, WIDTH, generator=generator)
    after, y, x = before.clone(), 5 if top else 150, 10 if left else 230
    after[:, :, y : y + 70, x : x + 80] = torch.rand(3, 70, 80, generator=generator)
    found = []
    for one, two in zip(backbone.stages(before), backbone.stages(after), strict=True):
        assert torch.isfinite(one).all() and one.std() > 0
        change = (two - one).norm(dim=1)[0] / one.norm(dim=1)[0].clamp_min(1e-9)
        change = (change - change.quantile(0.7)).clamp_min(0)
        rows, columns = (torch.arange(side) + 0.5 for side in change.shape)
        middle = (
            change.sum(1) @ rows / len(rows) / change.sum(),
            change.sum(0) @ columns / len(columns) / change.sum(),
        )
        found.append((bool(middle[0] < 0.5), bool(middle[1] < 0.5)))
    return found


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_each_place_answers_for_itself(name: str) -> None:
    backbone = load_backbone(name, "random:1")
    for corner in CORNERS:
        stages = answers(backbone, *corner)
        assert stages[: 1 if name in FIRST_STAGE_ALONE else 3] == [corner] * (1 if name in FIRST_STAGE_ALONE else 3)


@pytest.mark.slow
def test_the_deeper_stages_of_a_tinyvit_are_in_place_without_its_fresh_attention() -> None:
    backbone = load_backbone("tiny_vit_5m_224", "random:1")
    with torch.no_grad():
        for name, parameter in backbone._features.model.named_parameters():
            if "attn.proj" in name:
                parameter.zero_()
    assert all(answers(backbone, *corner) == [corner] * 3 for corner in CORNERS)


class Turned(torch.nn.Module):
    """A model that gives its maps with rows and columns exchanged, or in another form, or none."""

    feature_info = ({"reduction": 8}, {"reduction": 16}, {"reduction": 32})
    pretrained_cfg = timm.get_pretrained_cfg("resnet18").to_dict()  # type: ignore[union-attr]

    def __init__(self, maps: Any) -> None:
        super().__init__()
        self.maps = maps

    def forward_intermediates(self, images: torch.Tensor, **options: Any) -> Any:
        if isinstance(self.maps, Exception):
            raise self.maps
        return self.maps


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([torch.ones(1, 4, 40, 28), torch.ones(1, 4, 20, 14), torch.ones(1, 4, 10, 7)], "no three maps of the image's"),
        ([torch.ones(1, 4, 28, 40), torch.ones(1, 4, 14, 20), torch.ones(1, 70, 4)], "no three maps of the image's"),
        ([torch.ones(1, 4, 28, 40)] * 2, "no three maps of the image's"),
        (AssertionError(), "gives no features: it takes another size"),
        (ValueError("must be divisible by 48"), "gives no features: must be divisible by 48"),
    ],
)
def test_maps_that_are_not_of_the_image_are_refused(maps: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"timm's Turned at 224 × 320 pixels .*{message}.*Choose another backbone"):
        TimmFeatures(Turned(maps)).stages(torch.ones(1, 3, HEIGHT, WIDTH))


def test_maps_of_unpadded_convolutions_are_of_the_image() -> None:
    maps = [torch.ones(1, 4, 25, 37), torch.ones(1, 4, 12, 18), torch.ones(1, 4, 5, 8)]  # as of InceptionV3
    assert len(TimmFeatures(Turned(maps)).stages(torch.ones(1, 3, HEIGHT, WIDTH))) == 3
    assert stage_indices([8, 16, 32]) == ([0, 1, 2], False)


def test_attention_in_blocks_gets_whole_blocks() -> None:
    model: Any = Turned([])
    model.block = torch.nn.Identity()
    model.block.block_size = 8
    assert TimmFeatures(model).input_size(HEIGHT, WIDTH) == (256, 256)
    assert TimmFeatures(Turned([])).input_size(HEIGHT, WIDTH) == (224, 320)


def test_what_a_model_asks_of_the_size_is_told() -> None:
    with pytest.raises(UserError, match=r"Gemma4VitEncoder at 224 × 320 pixels gives no features: .*48"):
        model = timm.create_model("gemma4_vit_167m_enc", depth=3)
        TimmFeatures(model).stages(torch.ones(1, 3, HEIGHT, WIDTH))


@pytest.mark.parametrize("name", ["skresnet18", "test_resnet"])
def test_channels_are_told_without_a_batch(name: str) -> None:
    """In training mode, batch normalisation of a single position refuses a batch of one."""
    assert channels(name)[0] == tuple(
        s.shape[1] for s in load_backbone(name, "random").stages(torch.rand(1, 3, 64, 64))
    )
