"""The bank: images that stand for whatever else there is (`diffup.models.evidence`), and how they are chosen.

They are drawn among a fold's training images, by the protocol's rule for these, without any that shows a class to be
tested well enough to be tested on. Labels of base classes say where objects are; those of other classes are not read.

Letters: N images · M positions of each · h w feature grid.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from diffup.config import EncoderConfig
from diffup.data.dataset import Dataset
from diffup.episodes.cue_source import CueSource
from diffup.episodes.protocols import Protocol
from diffup.errors import UserError
from diffup.evaluation.encode import Encoder, FeatureCache
from diffup.models.batch import Features
from diffup.models.evidence import Bank

BANK_STREAM = 2**33  # keeps the drawing of banks apart from that of episodes and of held-out classes
SHOWN = 0.5  # share of a position that an object takes for it to count as one
FEWEST = 2
NO_BANK = (
    f"fewer than {FEWEST} training images are left for a bank, in which none is that is tested on: evidence is from "
    "the supports alone"
)
JPEG_QUALITY = 90
DROP = 0.2  # share that a cue leaves out of a bank whose images nobody has looked through for its class
SAMPLES = (
    "astronaut", "brick", "camera", "chelsea", "clock", "coffee", "coins", "grass", "gravel", "moon", "page", "rocket",
)  # fmt: skip


def bank_images(
    dataset: Dataset,
    pools: Mapping[int, Sequence[str]],
    tested: Iterable[int],
    protocol: Protocol,
    fold: int,
    count: int,
) -> tuple[str, ...]:
    """Ids of `count` images, or of all there are, in an order of their own: fewer are the first of more.

    Where fewer than two are left there is none, and evidence is from the supports alone: callers say `NO_BANK`.

    Args:
        dataset: of the cell.
        pools: image ids by class that may be trained on (`diffup.episodes.sampling.training_pools`).
        tested: classes whose test images are left out.
        protocol, fold: of the cell.
        count: of images.
    """
    barred = {image for class_index in tested for image in dataset.eligible(class_index, protocol, "test")}
    images = sorted({image for pool in pools.values() for image in pool} - barred)
    if len(images) < FEWEST:
        return ()
    order = np.random.default_rng((fold, BANK_STREAM)).permutation(len(images))
    return tuple(images[place] for place in order[:count])


def encoded_bank(
    images: Sequence[str], features: FeatureCache, cues: CueSource, classes: Iterable[int], per_image: int
) -> Bank:
    """A bank in a backbone's features.

    Args:
        images: ids.
        features: of the backbone.
        cues: labels of the data set.
        classes: those whose objects are known; of other classes no label is read.
        per_image: positions of each image, M, drawn by its id; at most all.
    """
    grid, known = features.encoder.config.feature_grid, set(classes)

    def shown(image: str) -> Tensor:
        shares = [cues.truth(image, c, grid)[0] for c in sorted(known & cues.dataset.areas[image].keys())]
        return torch.stack(shares).amax(0) >= SHOWN if shares else torch.zeros(grid, grid, dtype=torch.bool)

    return _collected(((i, features.get([i], text=False)[0], shown(i)) for i in images), per_image)


def _collected(images: Iterable[tuple[str, Features, Tensor]], per_image: int) -> Bank:
    """A bank from each image's name, which its positions are drawn by, features, and where it shows objects [h, w]."""
    rows, objects = list[list[Tensor]](), list[Tensor]()
    for name, encoded, shown in images:
        places = _places(name, shown.numel(), per_image).to(encoded.stages[0].device)
        rows.append([stage.flatten(1).T[places].float() for stage in encoded.stages])
        objects.append(shown.flatten().to(places.device)[places])
    return Bank.of([torch.stack(stage) for stage in zip(*rows, strict=True)], torch.stack(objects))


@dataclass(frozen=True, eq=False)
class BankImages:
    """Images that a bank is encoded from, as a checkpoint carries them: small, and ready for any backbone.

    Attributes:
        pictures: each as JPEG.
        objects_Nhw: where each shows an object, of whatever kind; nowhere without labels.
        drop: see `diffup.config.BankConfig`.
        packaged: whether they are `samples`, which a checkpoint need not hold.
    """

    pictures: tuple[bytes, ...]
    objects_Nhw: Tensor
    drop: float = 0.0
    packaged: bool = False

    @staticmethod
    def of(
        images: Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_] | None]], config: EncoderConfig, drop: float = 0.0
    ) -> BankImages:
        """From RGB images [H, W, 3] with masks [H, W] of the objects they show, at the size that models get them.

        Raises:
            UserError: fewer than two.
        """
        if len(images) < FEWEST:
            raise UserError(f"a bank needs {FEWEST} images at least, and a few dozen to be of use; got {len(images)}")
        pictures, objects = list[bytes](), list[Tensor]()
        grid, side = config.feature_grid, config.input_size
        for image, mask in images:
            kept = io.BytesIO()
            small = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
            small.save(kept, "JPEG", quality=JPEG_QUALITY)
            pictures.append(kept.getvalue())
            shown = torch.zeros(image.shape[:2]) if mask is None else torch.from_numpy(mask).float()
            objects.append(F.adaptive_avg_pool2d(shown[None], grid)[0] >= SHOWN)
        return BankImages(tuple(pictures), torch.stack(objects), drop)

    def encoded(self, encoder: Encoder, per_image: int) -> Bank:
        """The bank in a backbone's features, on the CPU; `per_image` positions of each image."""
        visual = []
        for picture in self.pictures:
            square = encoder.square(np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")))
            visual += encoder.encode_visual([square])
        named = zip(map(str, range(len(visual))), (f.to("cpu") for f in visual), self.objects_Nhw, strict=True)
        return _collected(named, per_image)

    def dumped(self) -> bytes:
        """As the content of a safetensors file."""
        pictures = {
            f"{i:04d}.jpg": torch.frombuffer(bytearray(p), dtype=torch.uint8) for i, p in enumerate(self.pictures)
        }
        return save({**pictures, "drop": torch.tensor(self.drop), "objects": self.objects_Nhw})

    @staticmethod
    def loaded(content: bytes) -> BankImages:
        """From `dumped`.

        Raises:
            OSError, KeyError, SafetensorError: it is no such content, or one of its pictures is damaged.
            ValueError: fewer than two pictures, or objects that are not one square map for each.
        """
        tensors = load(content)
        objects, drop = tensors.pop("objects"), float(tensors.pop("drop", torch.tensor(0.0)))
        pictures = tuple(bytes(tensors[name].numpy()) for name in sorted(tensors))
        for picture in pictures:
            Image.open(io.BytesIO(picture)).load()
        square = objects.ndim == 3 and objects.shape[1] == objects.shape[2]
        if len(pictures) < FEWEST or not square or len(objects) != len(pictures):
            raise ValueError(f"{len(pictures)} pictures, with objects of shape {tuple(objects.shape)}")
        return BankImages(pictures, objects, drop)

    @staticmethod
    def samples(config: EncoderConfig) -> BankImages:
        """Photographs that come with scikit-image: better than none for a checkpoint without images of its own."""
        from skimage import data

        shown = [getattr(data, name)() for name in SAMPLES]
        colour = [np.stack([image] * 3, -1) if image.ndim == 2 else image for image in shown]
        return replace(BankImages.of([(image, None) for image in colour], config), packaged=True)


def _places(image: str, positions: int, count: int) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(f"bank {image}".encode()).digest()[:7], "big")
    order = np.random.default_rng(seed).permutation(positions)
    return torch.from_numpy(np.sort(order[:count]))


@dataclass(frozen=True)
class GivenBank:
    """A bank for training episodes.

    Attributes:
        bank: itself.
        without: by class, which images do not show it, [N].
        images: their ids.
        drop: see `diffup.config.BankConfig`.
    """

    bank: Bank
    without: Mapping[int, Tensor]
    images: tuple[str, ...]
    drop: float = 0.0


def without(dataset: Dataset, images: Sequence[str], classes: Iterable[int]) -> dict[int, Tensor]:
    """By class, which images do not show it, [N]: what a training episode of that class may take for negatives."""
    return {c: torch.tensor([c not in dataset.areas[image] for image in images]) for c in classes}
