"""Backbones of one's own: any module whose ``forward`` gives three feature maps.

The protocol. ``module(images)`` takes float images [B, 3, H, W] and returns three maps [B, C_s, h_s, w_s], shallow to
deep, as a list, a tuple or a dict in that order (``timm.create_model(…, features_only=True)`` and torchvision's
``create_feature_extractor`` do). Their sizes and widths are free, their sides in the ratio of the image's. Optional
attributes say what the images should be:

* ``mean``, ``std``: three numbers each, of RGB in [0, 1], that images are normalised with; without them the module gets
  RGB in [0, 1] as it is;
* ``multiple``: H and W become multiples of this (the patch of a ViT), 1 by default;
* ``fixed_size``: the one size (H, W) that it takes.

In a grid such a module is named by the function that builds it, without arguments: ``"package.module:build"``, or an
entry point of group ``diffup.backbones``. The function also loads the weights. It is called in every worker process, so
it must give the same module each time. Text is read by a companion, as beside backbones of timm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from diffup.backbones.registry import OWN_WHAT
from diffup.backbones.timm import STAGES, nearest_multiple, same_aspect
from diffup.errors import UserError
from diffup.plugins import imported

MODULE = "module:"  # identity of weights that were given as a module
PROBE = 224  # side in pixels of the image that a new module is tried with
SEE = "docs/plugins.md"


class ModuleFeatures(nn.Module):
    """A module of the user's own that gives three stages; see above.

    Attributes:
        model: the module.
        heads: none: all of its weights count.
        mean, std: normalisation of its images.
        multiple, fixed_size: sizes that it takes.
    """

    heads: tuple[str, ...] = ()

    def __init__(self, module: object, name: str) -> None:
        """Wrap a module and try it with one image.

        Args:
            module: what a caller gave or a function built.
            name: of the backbone, for messages.

        Raises:
            UserError: it is no module, or does not follow the protocol; the message says in what.
        """
        super().__init__()
        self.name = name
        if not isinstance(module, nn.Module):
            raise UserError(f"backbone {name!r} is a {type(module).__name__}, not a torch.nn.Module ({SEE})")
        self.model = module.eval()
        self.mean = _three(module, "mean", (0.0, 0.0, 0.0), name)
        self.std = _three(module, "std", (1.0, 1.0, 1.0), name)
        if min(self.std) <= 0:
            raise UserError(f"backbone {name!r}: its 'std' is {self.std}; its numbers must be above 0 ({SEE})")
        self.multiple = _side(getattr(module, "multiple", 1), "multiple", name)
        size = getattr(module, "fixed_size", None)
        if size is not None and (not isinstance(size, Sequence) or len(size) != 2):
            raise UserError(f"backbone {name!r}: its 'fixed_size' is {size!r:.60}; it must be (height, width) ({SEE})")
        self.fixed_size = None if size is None else tuple(_side(side, "fixed_size", name) for side in size)
        self._try()

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The size nearest to (height, width) that the module takes."""
        if self.fixed_size:
            return self.fixed_size[0], self.fixed_size[1]
        return nearest_multiple(height, self.multiple), nearest_multiple(width, self.multiple)

    def stages(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Three maps [B, C_s, h_s, w_s] from normalised images whose size `input_size` returned.

        Raises:
            UserError: the module gives something else.
        """
        given = self.model(images_BCHW)
        maps = list(given.values()) if isinstance(given, Mapping) else given
        if complaint := _complaint(maps, images_BCHW):
            raise UserError(f"backbone {self.name!r} {complaint} ({SEE})")
        return tuple(maps)

    @torch.inference_mode()
    def _try(self) -> None:
        """One image of smooth noise, twice: a module must give finite maps, and the same ones each time."""
        place = next(iter([*self.model.parameters(), *self.model.buffers()]), torch.zeros(1)).device
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(1, 3, *self.input_size(PROBE, PROBE), generator=generator).to(place)
        try:
            first, second = self.stages(image), self.stages(image)
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            gist = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"backbone {self.name!r} fails on images {tuple(image.shape)}: {gist:.200}. If it takes certain sizes "
                f"only, give it 'multiple' or 'fixed_size' ({SEE})"
            ) from error
        for number, (one, two) in enumerate(zip(first, second, strict=True)):
            if not one.isfinite().all():
                raise UserError(f"backbone {self.name!r} gives values that are not finite in map {number} ({SEE})")
            if float(one.std()) == 0:
                raise UserError(f"backbone {self.name!r} gives the same value everywhere in map {number} ({SEE})")
            if not torch.allclose(one, two, rtol=1e-3, atol=1e-4):
                raise UserError(
                    f"backbone {self.name!r} gives other features when it sees an image again, in map {number}: take "
                    f"out what is random, such as dropout that 'eval()' does not end ({SEE})"
                )


def _three(module: nn.Module, field: str, default: tuple[float, ...], name: str) -> tuple[float, ...]:
    value: Any = getattr(module, field, default)
    try:
        found = tuple(float(each) for each in (value.flatten().tolist() if torch.is_tensor(value) else value))
    except (TypeError, ValueError):
        found = ()
    if len(found) != 3:
        raise UserError(f"backbone {name!r}: its {field!r} is {value!r:.60}; it must be three numbers ({SEE})")
    return found


def _side(value: object, field: str, name: str) -> int:
    if type(value) is not int or value < 1:
        raise UserError(f"backbone {name!r}: its {field!r} holds {value!r:.60}; sides are whole numbers ≥ 1 ({SEE})")
    return value


def _complaint(maps: object, images_BCHW: torch.Tensor) -> str:
    """What is wrong with what a module returned, ``""`` if nothing is."""
    if not isinstance(maps, list | tuple) or len(maps) != STAGES:
        got = f"{len(maps)} of them" if isinstance(maps, list | tuple) else f"a {type(maps).__name__}"
        return f"must give three maps, shallow to deep, as a list or a dict; it gives {got}"
    batch, image = images_BCHW.shape[0], (images_BCHW.shape[2], images_BCHW.shape[3])
    for number, each in enumerate(maps):
        if not torch.is_tensor(each) or not each.is_floating_point():
            kind = str(each.dtype) if torch.is_tensor(each) else type(each).__name__
            return f"must give tensors of floating-point numbers; map {number} is {kind}"
        shape = tuple(each.shape)
        if len(shape) == 3:
            return f"gives tokens {shape} as map {number}; drop class tokens and reshape them to [B, C, h, w]"
        if len(shape) != 4 or shape[0] != batch:
            return f"must give maps [B, C, h, w] of {batch} images; map {number} is {shape}"
        if not same_aspect(shape[2:], image):
            if same_aspect(shape[1:3], image):
                return f"gives map {number} channels-last, {shape}; permute it to [B, C, h, w]: x.permute(0, 3, 1, 2)"
            return f"gives map {number} as {shape}, which is not of the shape of an image of {image[0]} × {image[1]}"
    return ""


def build_own(name: str, function: str) -> ModuleFeatures:
    """The backbone that a function of the user's own builds.

    Args:
        name: of the backbone.
        function: ``"package.module:build"``, called without arguments.

    Raises:
        UserError: the function can't be imported, needs arguments, or what it builds does not follow the protocol.
    """
    return ModuleFeatures(_built(name, function), name)


def _built(name: str, function: str) -> object:
    build = imported(function, OWN_WHAT)
    try:
        return build()
    except TypeError as error:
        if "argument" in str(error) and error.__traceback__ is not None and error.__traceback__.tb_next is None:
            raise UserError(f"backbone {name!r}: {error}; it is called without arguments ({SEE})") from error
        raise


def check_steady(name: str, function: str) -> None:
    """Refuse a function that builds other weights each time: every worker process of a grid calls it.

    Where its file of weights can't be read, as on a machine that only plans, that is left to the workers.

    Args:
        name, function: as for `build_own`.

    Raises:
        UserError: two calls gave different weights; or the function can't be imported, or needs arguments.
    """
    with torch.random.fork_rng():
        try:
            made = [_built(name, function) for _ in range(2)]
        except OSError:
            return
    first, second = (module.state_dict() if isinstance(module, nn.Module) else {} for module in made)
    if first.keys() != second.keys() or not all(torch.equal(first[key], second[key]) for key in first):
        raise UserError(
            f"backbone {name!r} has other weights each time it is built, so that no two workers would have the same: "
            f"load them from a file in {function}, or call torch.manual_seed there to try random ones ({SEE})"
        )
