"""A made-up result store: a small grid whose cells share their episodes, as files that the analysis reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffup.config import InputConfig, SampleConfig
from diffup.evaluation.metrics import fb_iou, miou
from diffup.grid.cell import Cell, cell_to_dict

HOME, BETTER, CLIP = "tiny_resnet", "tiny_convnext", "tiny_clip"
CLASSES = 4
POOL = 30  # images a class
PIXELS = 160 * 160


def cell(**changes: Any) -> Cell:
    """A cell of the made-up grid, with what differs from the first one."""
    method = changes.pop("method", "diffup")
    trained = method == "diffup"
    values: dict[str, Any] = {
        "dataset": "shapes4i",
        "dataset_hash": "aaaabbbbcccc",
        "protocol_hash": "123456789abc",
        "fold": 0,
        "shots": 1,
        "annotation": "mask",
        "backbone": HOME,
        "weights": "sha256:000000000000",
        "trained_on": HOME if trained else "",
        "variant": method,
        "sample": SampleConfig(method=method),
        "episodes": 120,
        **changes,
    }
    if trained:
        values.setdefault("checkpoint", f"checkpoint{values['fold']}{values.get('train_seed', 0)}")
    return Cell(**values)


def grid(folds: Iterable[int] = (0, 1), seeds: Iterable[int] = (0,)) -> list[Cell]:
    """Three backbones; DiffUp and prior mean; mask, box and scribble with 1 and 5 shots; text and its control."""
    cells = []
    for fold in folds:
        for backbone in (HOME, BETTER, CLIP):
            for shots in (1, 5):
                for annotation in ("mask", "box", "scribble"):
                    task = {"fold": fold, "backbone": backbone, "shots": shots, "annotation": annotation}
                    cells += [cell(**task, train_seed=seed) for seed in seeds]
                    cells.append(cell(**task, method="prior_mean"))
        for seed in seeds:
            text = cell(fold=fold, backbone=CLIP, shots=0, annotation="text", train_seed=seed)
            wrong = InputConfig(class_names="deranged")
            cells += [text, replace(text, variant="wrong_names", input=wrong)]
    return cells


def quality(asked: Cell) -> float:
    """The made-up method's mean IoU."""
    base = {HOME: 0.45, BETTER: 0.6, CLIP: 0.5}.get(asked.backbone, 0.5)
    base += {"mask": 0.0, "box": -0.05, "scribble": -0.08, "text": -0.15}.get(asked.annotation, 0.0)
    base -= 0.2 if asked.input.class_names == "deranged" else 0.0
    base -= 0.1 if asked.sample.method == "prior_mean" else 0.0
    return base + 0.03 * (asked.shots > 1) + 0.01 * asked.train_seed


def episodes(asked: Cell) -> pd.DataFrame:
    """Episodes whose queries depend on fold and episode seed alone; an image is as hard for every cell."""
    own = int(asked.key(), 16) % 2**32
    rows = []
    for index in range(asked.episodes):
        rng = np.random.default_rng((asked.episode_seed, asked.fold, index))
        class_id = asked.fold * CLASSES + index % CLASSES
        image = int(rng.integers(POOL))
        hard = np.random.default_rng((asked.fold, class_id, image)).normal(0, 0.12)
        truth = int(np.random.default_rng((7, asked.fold, class_id, image)).integers(800, 6000))
        noise = np.random.default_rng((own, index)).normal(0, 0.05)
        iou = float(np.clip(quality(asked) + hard + noise, 0.02, 0.98))
        inter = int(truth * min(1.0, iou * 1.2))
        union = max(int(inter / iou), truth)
        rows.append(
            {
                "episode": index,
                "class_id": class_id,
                "class_name": f"class {class_id}",
                "query": f"image_{class_id}_{image}",
                "supports": [f"image_{class_id}_{(image + 1 + k) % POOL}" for k in range(asked.shots)],
                "inter_fg": inter,
                "union_fg": union,
                "inter_bg": PIXELS - union,
                "union_bg": PIXELS - inter,
                "predicted_iou": iou,
                "seconds": 0.01,
            }
        )
    return pd.DataFrame(rows)


def write_store(root: Path, cells: Iterable[Cell], *, missing: Callable[[Cell], bool] = lambda _: False) -> Path:
    """Write finished cells, except the missing ones, and a launch that asked for all."""
    cells = list(cells)
    for asked in cells:
        if not missing(asked):
            write_cell(root, asked)
    launch = {"started": "2025-01-01T00:00:00+00:00", "cells": [{**cell_to_dict(c), "key": c.key()} for c in cells]}
    (root / "launches").mkdir(parents=True, exist_ok=True)
    (root / "launches" / "grid.json").write_text(json.dumps(launch))
    return root


def write_cell(
    root: Path,
    asked: Cell,
    *,
    finished: str = "2025-01-01T00:00:00+00:00",
    episodes_of: Callable[[Cell], pd.DataFrame] = episodes,
    undefined: dict[str, str] | None = None,
) -> Path:
    """Write one finished cell and return its folder; figures in `undefined` are absent with their reason."""
    folder = root / asked.key()
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text(json.dumps({**cell_to_dict(asked), "key": asked.key(), "cell_version": 1}))
    table = episodes_of(asked)
    table.to_parquet(folder / "episodes.parquet", index=False)
    classes = sorted(set(table["class_id"]))
    figures = {
        "miou": miou(table["class_id"], table["inter_fg"], table["union_fg"], classes),
        "fb_iou": fb_iou(table["inter_fg"], table["union_fg"], table["inter_bg"], table["union_bg"]),
        "seconds": 1.0,
    }
    undefined = {name: reason for name, reason in (undefined or {}).items() if figures.pop(name)}
    content = (folder / "episodes.parquet").read_bytes()
    result = {
        "schema": 1,
        "key": asked.key(),
        "status": "finished",
        "metrics": figures,
        **({"undefined": undefined} if undefined else {}),
        "provenance": {"git_commit": "0123456789abcdef", "code_hash": "feedfacecafe", "manifest_hash": "m0"},
        "files": {"episodes.parquet": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}},
        "started": finished,
        "finished": finished,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder
