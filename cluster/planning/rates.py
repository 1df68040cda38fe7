"""Rates of a machine, as `benchmarks.accelerator` writes them: what a plan is estimated from before cells finished."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffup.errors import UserError

FORMAT = "diffup rates 1"
COMMAND = "python -m benchmarks.accelerator --out FILE"
PACKAGED = Path(__file__).with_name("cpu_rates.json")
PRECISION = "float32"  # that cells run in
READ_BYTES = 500e6  # a second, where no disk was measured: a SATA SSD's
SUPPORTS, ANNOTATIONS = 10, 3  # of a query in the benchmark's shared prior maps


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds of one worker: one GPU, or on a CPU as many threads as were measured.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        hardware: in words.
        decode: of a photograph that is read and resized, on one core.
        encoding: of a GFLOP, by backbone.
        query, pair, triple: of prior maps, for each query, pair of images, and annotation of a pair.
        matched: channels × positions² of the features that these were measured with.
        episode, cue: of an episode that is decoded and scored, and of each of its cues.
        train: of an episode of a training step, its prior maps apart.
        disk: bytes read a second.
    """

    device: str
    hardware: str
    decode: float
    encoding: Mapping[str, float]
    query: float
    pair: float
    triple: float
    matched: float
    episode: float
    cue: float
    train: float
    disk: float = READ_BYTES

    def encode(self, backbone: str, gflops: float) -> float:
        """Seconds of an image of so many GFLOPs; a backbone that was not measured is as fast as those that were."""
        known = self.encoding.get(backbone) or sum(self.encoding.values()) / len(self.encoding)
        return gflops * known

    def match(self, channels: int, grid: int, queries: float, pairs: float, triples: float) -> float:
        """Seconds of prior maps: their products of features grow with channels × positions²."""
        one = queries * self.query + pairs * self.pair + triples * self.triple
        return one * channels * grid**4 / self.matched

    def decode_episode(self, cues: int) -> float:
        """Seconds of an episode whose prior maps are at hand."""
        return self.episode + cues * self.cue


def read_rates(path: Path | None = None) -> Rates:
    """Rates from a file.

    Args:
        path: None: those that are shipped, of a CPU.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    place = path or PACKAGED
    try:
        document = json.loads(place.read_bytes())
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"it does not name the format {FORMAT!r}")
        return rates_of(document)
    except OSError as error:
        raise UserError(f"--rates {place}: {error.strerror or error}; {COMMAND} writes one") from error
    except KeyError as error:
        raise UserError(f"--rates {place} lacks {error}; {COMMAND} writes it anew") from error
    except (ValueError, TypeError, AttributeError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"--rates {place} holds no rates ({why}); {COMMAND} writes them") from error


def rates_of(document: dict[str, Any], precision: str = PRECISION) -> Rates:
    """The rates of one precision in such a document.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is none.
    """
    device = document["device"]
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}, not cpu or cuda")
    encoding = {
        row["backbone"]: _seconds(row["images_per_s"]) / _positive(row["gflops"])
        for row in document["encode"]
        if row["precision"] == precision
    }
    if not encoding:
        raise ValueError(f"no backbone was measured in {precision}")
    priors, grid = document["priors"][precision], int(_positive(document["input"]["grid"]))
    # A triple of its own query takes query + pair + triple; with a query of many supports, and all annotations of a
    # pair, the shares of query and pair fall.
    alone, shared, annotated = (_seconds(priors[name]) for name in ("distinct", "shared", "annotated"))
    query = max(0.0, (alone - shared) * SUPPORTS / (SUPPORTS - 1))
    triple = max(0.0, (ANNOTATIONS * annotated - shared) / (ANNOTATIONS - 1))
    pair = max(0.0, shared - query / SUPPORTS - triple)
    decoded = {int(row["shots"]): _seconds(row["decoding"]) for row in document["episodes"][precision]}
    few, many = min(decoded), max(decoded)
    cue = max(0.0, (decoded[many] - decoded[few]) / (many - few)) if many > few else 0.0
    return Rates(
        device=device,
        hardware=str(document["hardware"]),
        decode=_seconds(document["decode"]["one"]),
        encoding=encoding,
        query=query,
        pair=pair,
        triple=triple,
        matched=_positive(document["priors"]["channels"]) * grid**4,
        episode=max(0.0, decoded[few] - few * cue),
        cue=cue,
        train=_seconds(document["training"]["episodes_per_s"]),
        disk=_positive(document["disk"]["bytes_per_s"]) if document.get("disk") else READ_BYTES,
    )


def _positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{value!r} is no positive number")
    return float(value)


def _seconds(per_second: object) -> float:
    return 1 / _positive(per_second)
