"""What a plan takes by the rates of a machine: the estimate before any cell like its own has finished."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.options import Cache
from cluster.planning.architectures import SIDE, architecture
from cluster.planning.counts import (
    IMAGES,
    TESTED,
    Pass,
    Place,
    distinct,
    draws_key,
    encoded,
    mean_shots,
    passes,
    place_of,
    squares,
    steps_drawn,
)
from cluster.planning.estimate import duration, wall_seconds
from cluster.planning.rates import COMMAND, Rates
from diffup.config import parse_annotation
from diffup.errors import UserError
from diffup.grid.cell import AnyCell, TrainingCell

PARTS = "photographs read", "images encoded", "prior maps", "episodes decoded", "training steps"
READ, ENCODE, MATCH, DECODE, STEPS = PARTS


@dataclass(kw_only=True)
class Forecast:
    """Seconds of a plan's work, of one worker each.

    Attributes:
        cells: by key; what cells of a pass share counts in equal parts.
        stage: of the stage before the cells.
        photographs: of that stage on CPU cores, where it keeps pixels.
        parts: all of it, by kind of work (`PARTS`).
        counts: how often.
        unknown: cells whose cost is unknown: of foreign methods, or of backbones that can't be built.
    """

    cells: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    stage: float = 0.0
    photographs: float = 0.0
    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: Counter[str] = field(default_factory=Counter)
    unknown: int = 0

    def wall(self, cells: Sequence[AnyCell], workers: int, cores: int) -> float:
        """Seconds until all cells are done."""
        known = [cell for cell in cells if cell.key() in self.cells]
        return self.photographs / cores + self.stage / workers + wall_seconds(known, self.cells, workers)

    def did(self, part: str, count: float, seconds: float) -> float:
        """Count work; returns its seconds."""
        self.counts[part] += round(count)
        self.parts[part] += seconds
        return seconds


def forecast(
    cells: Sequence[AnyCell],
    rates: Rates,
    cache: Cache,
    *,
    images: Mapping[str, int] = IMAGES,
    tested: Mapping[str, int] = TESTED,
) -> Forecast:
    """What cells take, each image, triple, episode and step counted as often as a launch computes it.

    Args:
        cells: of a plan, with none finished.
        rates: of the device that they run on.
        cache: what is kept on disk: with features, each image is encoded once a backbone; else once a pass over a
            fold's episodes, and more often where a worker's memory does not keep it.
        images, tested: number of images by data set, where it is known; of them, those that episodes are drawn from.
    """
    made = Forecast()
    found = passes(cells)
    trainings = [cell for cell in cells if isinstance(cell, TrainingCell)]
    known = {place: shape for place in {*(each.place for each in found), *map(place_of, trainings)}
             if (shape := _channels(place)) is not None}  # fmt: skip
    if cache == "features":
        _features(made, found, trainings, rates, known, images, tested)
    elif cache == "pixels":
        photographs = sum(squares(found, tested).values())
        made.photographs = made.did(READ, photographs, photographs * rates.decode)
    for each in found:
        if each.place in known:
            _evaluate(made, each, rates, cache, known[each.place], tested.get(each.place.dataset))
    drawn: set[object] = set()
    for cell in trainings:
        if place_of(cell) in known:
            again = draws_key(cell) in drawn
            drawn.add(draws_key(cell))
            _train(made, cell, rates, cache, known[place_of(cell)], images.get(cell.dataset), again=again)
    made.unknown = sum(cell.key() not in made.cells for cell in cells)
    return made


def _channels(place: Place) -> int | None:
    try:
        return architecture(place.backbone).channels
    except UserError:
        return None


def _encode(rates: Rates, backbone: str, side: int) -> float:
    try:
        return rates.encode(backbone, architecture(backbone).gflops * (side / SIDE) ** 2)
    except UserError:
        return 0.0


def _features(
    made: Forecast, found: Sequence[Pass], trainings: Sequence[TrainingCell], rates: Rates, known: Mapping[Place, int],
    images: Mapping[str, int], tested: Mapping[str, int],
) -> None:  # fmt: skip
    """The stage that encodes each image once a backbone and computes each triple once."""
    drawn: dict[Place, int] = defaultdict(int)
    texts: dict[tuple[str, int, str], dict[object, int]] = defaultdict(dict)
    for each in found:
        drawn[each.place] += each.draws
        if each.texts:
            texts[each.place.dataset, each.place.side, each.reader][each.draw] = each.texts
    count = {place: distinct(draws, tested.get(place.dataset)) for place, draws in drawn.items()}
    count |= {place: images.get(place.dataset, count.get(place, 0)) for place in map(place_of, trainings)}
    for place, number in count.items():
        if place in known:
            made.stage += made.did(READ, number, number * rates.decode)
            made.stage += made.did(ENCODE, number, number * _encode(rates, place.backbone, place.side))
    for (name, side, reader), draws in texts.items():
        number = distinct(sum(draws.values()), tested.get(name))
        made.stage += made.did(READ, number, number * rates.decode)
        made.stage += made.did(ENCODE, number, number * _encode(rates, reader, side))
    for each in found:
        if each.place in known:
            made.stage += _match(made, each, rates, known[each.place])


def _match(made: Forecast, each: Pass, rates: Rates, channels: int) -> float:
    """Seconds of a pass's prior maps."""
    triples = sum(each.triples.values()) + each.texts
    queries, pairs = sum(each.queries.values()), sum(each.pairs.values())
    return made.did(MATCH, triples, rates.match(channels, each.place.grid, queries, pairs, triples))


def _evaluate(made: Forecast, each: Pass, rates: Rates, cache: Cache, channels: int, tested: int | None) -> None:
    place, shared = each.place, 0.0
    if cache != "features":
        number = encoded(each.draws, tested, place.feature_bytes(channels))
        texts = distinct(each.texts, tested)
        shared += made.did(ENCODE, number, number * _encode(rates, place.backbone, place.side))
        shared += made.did(ENCODE, texts, texts * _encode(rates, each.reader, place.side)) if texts else 0.0
        if cache == "none" or not each.rounded:
            shared += made.did(READ, number + texts, (number + texts) * rates.decode)
        shared += _match(made, each, rates, channels)
    for cell in each.cells:
        cues = cell.shots + ("text" in parse_annotation(cell.annotation))
        own = made.did(DECODE, cell.episodes, cell.episodes * rates.decode_episode(cues))
        made.cells[cell.key()] += own + shared / len(each.cells)


def _train(
    made: Forecast, cell: TrainingCell, rates: Rates, cache: Cache, channels: int, images: int | None, *, again: bool
) -> None:
    """A training; `again`: an earlier one has drawn its steps."""
    train, place = cell.train, place_of(cell)
    seconds = made.did(STEPS, train.steps, train.steps * train.episodes * rates.train)
    if not again:
        episodes, shots = steps_drawn(cell) * train.episodes, mean_shots(cell)
        pairs = episodes * shots
        seconds += made.did(MATCH, pairs, rates.match(channels, place.grid, episodes, pairs, pairs))
        if cache != "features":
            number = encoded(round(episodes * (1 + shots)), images, place.feature_bytes(channels))
            seconds += made.did(READ, number, number * rates.decode)
            seconds += made.did(ENCODE, number, number * _encode(rates, place.backbone, place.side))
    made.cells[cell.key()] += seconds


def steps_within(cell: TrainingCell, seconds: float, rates: Rates) -> int:
    """How many of a training's steps fit into so many seconds by the rates of a machine, its images encoded before.

    Raises:
        UserError: not one fits, or the backbone can't be built.
    """

    def taken(steps: int) -> float:
        shorter = replace(cell, train=replace(cell.train, steps=steps))
        return forecast([shorter], rates, "features").cells[shorter.key()]

    if not _channels(place_of(cell)):
        raise UserError(f"--time-budget: what a step takes on {cell.backbone} is not known; give --steps")
    steps = bisect_right(range(1, cell.train.steps + 1), seconds, key=taken)
    if not steps:
        raise UserError(f"--time-budget {seconds:g}: a step takes {taken(1):.1f} s on {rates.hardware}")
    return steps


def completed(seconds: Mapping[str, float], made: Forecast) -> dict[str, float]:
    """Expected seconds by key; those that past cells don't tell are by rates, on the scale of the others."""
    both = seconds.keys() & made.cells.keys()
    by_rates = sum(made.cells[key] for key in both)
    scale = sum(seconds[key] for key in both) / by_rates if by_rates else 1.0
    return {**{key: scale * value for key, value in made.cells.items()}, **seconds}


def in_words(made: Forecast, cells: Sequence[AnyCell], rates: Rates, *, workers: int, cores: int, gpu: bool) -> str:
    """Lines of a plan.

    Args:
        made: of these cells.
        rates: that it was made from.
        workers: that run cells: GPUs, or CPUs.
        cores: CPUs that read photographs.
        gpu: whether this machine has one, which cells would run on.
    """
    lines = []
    if gpu and rates.device == "cpu":
        lines.append(f"  no rates of a GPU are given, what follows is for CPUs; measure: {COMMAND}, then --rates FILE")
    total = sum(made.parts.values())
    if not total:
        return "\n".join([*lines, "  no estimate of time: these cells' methods or backbones are not ours"])
    on = f"{workers} {'GPU' if rates.device == 'cuda' else 'worker'}{'s' if workers > 1 else ''}"
    lines.append(
        f"  about {duration(made.wall(cells, workers, cores))} on {on}, from rates measured on {rates.hardware}, not "
        "from cells (no cell like these has finished)"
    )
    trained = [made.cells[cell.key()] for cell in cells if isinstance(cell, TrainingCell) and cell.key() in made.cells]
    kinds = [(made.stage, "encoding once for all cells"), (sum(trained), f"{len(trained)} trainings"),
             (sum(made.cells.values()) - sum(trained), f"{len(made.cells) - len(trained)} evaluations")]  # fmt: skip
    told = ", ".join(f"{duration(seconds)} for {what}" for seconds, what in kinds if seconds)
    lines.append(f"    {duration(total)} of one {on.split()[1].rstrip('s')}'s work: {told}")
    parts = [f"{made.counts[part]:,} {part} {made.parts[part] / total:.0%}" for part in PARTS if made.counts[part]]
    lines.append(f"    of it: {', '.join(parts)}")
    if made.unknown:
        lines.append(f"    without {made.unknown} cells whose method or backbone is not known here")
    return "\n".join(lines)
