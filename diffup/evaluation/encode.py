"""Encoding, the heavy half, and its cache: an image becomes features of three stages on one fixed grid, per backbone.

Letters: B batch · S side of the input · C channels · D image-text dimensions · h w feature grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from diffup.backbones.load import Backbone
from diffup.config import EncoderConfig
from diffup.data.class_names import readable
from diffup.errors import UserError
from diffup.evaluation.pixels import Square, resized, square, stacked
from diffup.evaluation.pixels import from_row as from_pixels
from diffup.evaluation.shards import ShardStore
from diffup.evaluation.superpixels import Superpixels
from diffup.lru import ByteLRU, nbytes
from diffup.models.batch import Features

INFO_GRID = 40  # side of the low-resolution RGB that query infos are computed from
STAGES = ("stage0", "stage1", "stage2")  # names of a stored row's tensors; beside them rgb, size, and apart text
GPU_BATCH = 32
GPU_READERS = 4  # threads that read images for one GPU
AHEAD_IMAGES = 512  # that are read before they are asked for, at most
OUTLINES_BYTES = 256 << 20  # of images at low resolution that are kept
HOST_BYTES, DEVICE_BYTES = 4 << 30, 8 << 30  # of features that are kept in memory
TEXT_SHARE = 4  # texts are kept up to a quarter of what features are
NAMES_BYTES = 16 << 20  # of embedded class names that are kept


class Encoder:
    """A frozen backbone, and where text is read a text model, under one `EncoderConfig`.

    Args:
        backbone: what encodes images.
        config: input size, grid, dtype, prompts.
        text_model: the backbone itself or its companion; None where no text is read.
        device: torch device.

    Attributes:
        visual: backbone, its loaded weights and what of the configuration decides its stages, in words.
        reader: the same of the text model and its dense embeddings, ``""`` without one.
        identity: both; features of equal identity go together.
        batch: images that go through a model at a time. One on a CPU, where more are no faster and an image's features
            then can't depend on its neighbours.

    Raises:
        UserError: `text_model` has no text encoder.
    """

    def __init__(
        self, backbone: Backbone, config: EncoderConfig, text_model: Backbone | None = None, device: str = "cpu"
    ) -> None:
        if text_model is not None and not text_model.has_text:
            raise UserError(f"backbone {text_model.name!r} has no text encoder; name an open_clip companion model")
        self.backbone, self.config, self.text_model, self.device = backbone, config, text_model, device
        self._names: ByteLRU[tuple[str, ...], Tensor] = ByteLRU(NAMES_BYTES, lambda names: nbytes([names]))
        size, grid, dtype = config.input_size, config.feature_grid, config.feature_dtype
        on = f"at {size} px{' in 8 bits' if config.pixel_dtype == 'uint8' else ''} on a {grid}-grid in {dtype}"
        if config.precision != "float32":
            on += f", computed in {config.precision}"
        self.visual = f"{backbone.name} [{backbone.loaded_hash}] {on}"
        self.reader = f"{text_model.name} [{text_model.loaded_hash}] {on}" if text_model is not None else ""
        text = f", text by {text_model.name} [{text_model.loaded_hash}]" if text_model is not None else ""
        self.identity = self.visual + text
        self.batch = 1 if torch.device(device).type == "cpu" else GPU_BATCH

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> list[Features]:
        """Encode RGB images [H, W, 3] of any sizes; each becomes a square of ``config.input_size``."""
        if not images:
            return []
        squares = [self.square(image) for image in images]
        visual = self.encode_visual(squares)
        texts = self.encode_text(squares) if self.text_model is not None else [None] * len(images)
        return [replace(v, text=text, made_by=self.identity) for v, text in zip(visual, texts, strict=True)]

    def square(self, image_HW3: NDArray[np.uint8]) -> Square:
        """An RGB image as the models get it."""
        return square(image_HW3, self.config.input_size, self.config.pixel_dtype)

    @torch.inference_mode()
    def encode_visual(self, squares: Sequence[Square], names: Sequence[str] = ()) -> list[Features]:
        """The features without text of one or more images, in one forward pass of the backbone.

        Args:
            squares: the images, see `square`.
            names: of the images, for messages.

        Raises:
            UserError: features that are not finite.
        """
        pixels_B3SS = self._stacked(squares)
        rgb = resized(pixels_B3SS, INFO_GRID)
        with self._autocast():
            maps = self.backbone.stages(pixels_B3SS)
        stages = [self._finished(stage, self.backbone, names) for stage in maps]
        return [
            Features(tuple(stage[i].clone() for stage in stages), None, rgb[i].clone(), square.size, self.visual)
            for i, square in enumerate(squares)
        ]

    @torch.inference_mode()
    def encode_text(self, squares: Sequence[Square], names: Sequence[str] = ()) -> list[Tensor]:
        """Dense image-text embeddings [D, h, w] of one or more images, in one forward pass of the text model.

        Raises:
            UserError: there is no text model, or embeddings that are not finite.
        """
        model = self._reader()
        with self._autocast():
            maps = model.dense_text(self._stacked(squares))
        return [text.clone() for text in self._finished(maps, model, names)]

    def _stacked(self, squares: Sequence[Square]) -> Tensor:
        return stacked(squares, self.device).contiguous(memory_format=torch.channels_last)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            torch.device(self.device).type, torch.bfloat16, enabled=self.config.precision == "bfloat16"
        )

    def _reader(self) -> Backbone:
        if self.text_model is None:
            raise UserError(f"no text model beside backbone {self.backbone.name!r}; set InputConfig.companion")
        return self.text_model

    def _finished(self, maps_BChw: Tensor, model: Backbone, names: Sequence[str]) -> Tensor:
        """Maps on the feature grid, normalised over C, in the feature dtype."""
        grid = self.config.feature_grid
        maps = maps_BChw if maps_BChw.shape[-2:] == (grid, grid) else resized(maps_BChw.float(), grid)
        maps = maps.float()
        _check_finite(maps, model, "features", names)
        return F.normalize(maps, dim=1).to(getattr(torch, self.config.feature_dtype)).contiguous()

    @torch.inference_mode()
    def embed_names(self, names: Sequence[str]) -> Tensor:
        """Prompt-averaged, L2-normalised text embeddings of class names, [N, D]."""
        model, key = self._reader(), tuple(names)
        if (known := self._names.get(key)) is not None:
            return known
        rows = []
        for name in names:
            prompts = [template.format(readable(name)) for template in self.config.prompts]
            row = model.embed_text(prompts).float().mean(0)
            _check_finite(row[None], model, "a text embedding", [name])
            rows.append(F.normalize(row, dim=0))
        return self._names.put(key, torch.stack(rows).cpu())


def _check_finite(rows_BC: Tensor, model: Backbone, what: str, names: Sequence[str]) -> None:
    """Stop at rows [B, C, …] whose length over C is not finite: normalised, they would be NaN or zero.

    Raises:
        UserError: model, weights and the first rows are named.
    """
    finite = rows_BC.norm(dim=1).reshape(len(rows_BC), -1).isfinite().all(1)
    if finite.all():
        return
    bad = (~finite).nonzero().flatten().tolist()
    called = ", ".join(repr(names[i]) if i < len(names) else f"number {i} of its batch" for i in bad[:3])
    raise UserError(
        f"backbone {model.name!r} with weights {model.source} gives {what} that are not finite, for {called}"
        f"{f' and {len(bad) - 3} more' if len(bad) > 3 else ''}: the weights are damaged or don't belong to this "
        f"architecture. Fetch them again, or take another backbone"
    )


class FeatureCache:
    """Features by image id: from shards, else encoded on first use and kept up to some bytes.

    Args:
        encoder: makes what is not there.
        read: an image [H, W, 3] by its id.
        limit_bytes: of features kept in the host's memory; mapped ones don't count, and dense text is kept up to a
            quarter more.
        device_bytes: of those kept on a GPU, from which the least recently used move to the host's memory.
        visual, text: stores of the encoder's features without text, and of its dense text embeddings; only read.
        pixels: store of squares as `Encoder.square` makes them; only read.
        readers: threads that read images while a device computes; None: some on a GPU, none on a CPU.

    Attributes:
        superpixels: of the images at their original size.
        encoded: number of forward passes of the backbone so far.
        texts_encoded: of the text model.
    """

    def __init__(
        self,
        encoder: Encoder,
        read: Callable[[str], NDArray[np.uint8]],
        *,
        limit_bytes: int = HOST_BYTES,
        device_bytes: int = DEVICE_BYTES,
        visual: ShardStore | None = None,
        text: ShardStore | None = None,
        pixels: ShardStore | None = None,
        readers: int | None = None,
    ) -> None:
        self.encoder, self.read, self.superpixels = encoder, read, Superpixels(read)
        on_gpu = torch.device(encoder.device).type != "cpu"
        readers = GPU_READERS * on_gpu if readers is None else readers
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="reader") if readers else None
        self._coming: dict[str, Future[Square]] = {}
        self.stores, self.pixels = (visual, text), pixels
        self._kept: ByteLRU[str, Features] = ByteLRU(limit_bytes, Features.nbytes)
        self._texts: ByteLRU[str, Tensor] = ByteLRU(
            (device_bytes if on_gpu else limit_bytes) // TEXT_SHARE, lambda text: nbytes([text])
        )
        self._outlines: ByteLRU[str, Features] = ByteLRU(OUTLINES_BYTES, Features.nbytes)
        self._on_device: ByteLRU[str, Features] | None = None
        if on_gpu:
            self._on_device = ByteLRU(
                device_bytes, Features.nbytes, lambda key, old: self._kept.put(key, old.to("cpu"))
            )
        self.encoded = self.texts_encoded = 0

    def get(self, image_ids: Sequence[str], *, text: bool = True) -> list[Features]:
        """Features of `image_ids`, in order; an id may repeat.

        Args:
            text: with dense text embeddings, where the encoder has a text model.
        """
        ids, text = list(dict.fromkeys(image_ids)), text and bool(self.encoder.reader)
        found = {i: features for i in ids if (features := self._known(i)) is not None}
        texts = {i: dense for i in ids if (dense := self._texts.get(i)) is not None} if text else {}
        missing = [i for i in ids if i not in found or (text and i not in texts)]
        for start in range(0, len(missing), self.encoder.batch):
            self._make(missing[start : start + self.encoder.batch], found, texts if text else None)
        return [replace(found[i], text=texts[i]) if text else found[i] for i in image_ids]

    def outlines(self, image_ids: Sequence[str]) -> list[Features]:
        """The features without stages and text: image at low resolution and size, which are kept for longer."""
        kept = ((image_id, self._outlines.get(image_id)) for image_id in dict.fromkeys(image_ids))
        found = {image_id: outline for image_id, outline in kept if outline is not None}
        lacking = [image_id for image_id in dict.fromkeys(image_ids) if image_id not in found]
        found |= {
            i: self._outline(i, features) for i, features in zip(lacking, self.get(lacking, text=False), strict=True)
        }
        return [found[image_id] for image_id in image_ids]

    def _outline(self, image_id: str, features: Features) -> Features:
        return self._outlines.put(image_id, replace(features, stages=(), text=None))

    def ahead(self, image_ids: Iterable[str]) -> None:
        """Begin to read images that `get` will be asked for next; what can't be read is met there."""
        if self._readers is None:
            return
        for image_id in dict.fromkeys(image_ids):
            if len(self._coming) >= AHEAD_IMAGES:  # one that nobody asked for
                self._coming.pop(next(iter(self._coming))).cancel()
            known = image_id in self._kept or (self._on_device is not None and image_id in self._on_device)
            if not known and image_id not in self._coming and not self._stored(image_id):
                self._coming[image_id] = self._readers.submit(self._square, image_id)

    def _stored(self, image_id: str) -> bool:
        store = self.stores[0]
        return store is not None and not store.missing([image_id])

    def _known(self, image_id: str) -> Features | None:
        if self._on_device is None:
            return self._kept.get(image_id)
        if (found := self._on_device.get(image_id)) is None and (kept := self._kept.get(image_id)) is not None:
            return self._on_device.put(image_id, kept.to(self.encoder.device))
        return found

    def _make(self, image_ids: Sequence[str], found: dict[str, Features], texts: dict[str, Tensor] | None) -> None:
        """Add what is missing in `found`, and in `texts` where given: mapped, else encoded."""
        encoder, (visual_store, text_store) = self.encoder, self.stores
        rows = _rows(visual_store, [i for i in image_ids if i not in found])
        found |= {i: from_row(row, encoder.identity) for i, row in rows.items()}
        unseen, unread = [i for i in image_ids if i not in found], list[str]()
        if texts is not None:
            texts |= {i: row["text"] for i, row in _rows(text_store, [i for i in image_ids if i not in texts]).items()}
            unread = [i for i in image_ids if i not in texts]
        squares = self._squares([i for i in image_ids if i in unseen or i in unread])
        if unseen:
            into = self._kept if self._on_device is None else self._on_device
            for i, features in zip(unseen, encoder.encode_visual([squares[i] for i in unseen], unseen), strict=True):
                found[i] = into.put(i, replace(features, made_by=encoder.identity))
                self._outline(i, found[i])
            self.encoded += len(unseen)
        if texts is not None and unread:
            for i, dense in zip(unread, encoder.encode_text([squares[i] for i in unread], unread), strict=True):
                texts[i] = self._texts.put(i, dense)
            self.texts_encoded += len(unread)

    def _squares(self, image_ids: Sequence[str]) -> dict[str, Square]:
        coming = {i: self._coming.pop(i) for i in image_ids if i in self._coming}
        return {i: coming[i].result() if i in coming else self._square(i) for i in image_ids}

    def _square(self, image_id: str) -> Square:
        row = self.pixels.get(image_id) if self.pixels is not None else None
        if row is None:
            return self.encoder.square(self.read(image_id))
        kept = from_pixels(row)
        return replace(kept, pixels=kept.pixels.clone()) if self._readers else kept  # read from the file here and now


def _rows(store: ShardStore | None, image_ids: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    rows = {i: store.get(i) for i in image_ids} if store is not None else {}
    return {i: row for i, row in rows.items() if row is not None}


def to_rows(features: Sequence[Features]) -> dict[str, Tensor]:
    """Features without text as rows of a `ShardStore`."""
    rows = {name: torch.stack([f.stages[s] for f in features]).cpu() for s, name in enumerate(STAGES)}
    sizes = torch.tensor([f.size for f in features], dtype=torch.int64)
    return rows | {"rgb": torch.stack([f.rgb for f in features]).cpu(), "size": sizes}


def from_row(row: Mapping[str, Tensor], made_by: str) -> Features:
    """Inverse of `to_rows` for one row."""
    height, width = row["size"].tolist()
    return Features(tuple(row[name] for name in STAGES), None, row["rgb"], (height, width), made_by)
