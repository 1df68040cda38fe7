"""How much narrower are paired intervals? On a store's own cells: DiffUp minus each baseline, by backbone and task.

    python benchmarks/pairing.py --results DIR

Unpaired: both sides resampled by themselves, as if they had been measured on other episodes of the same pools.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis.results import load_results
from analysis.tables.scores import Study, studies


def widths(study: Study, other: Study) -> list[tuple[str, float, float]]:
    """Names, paired and unpaired widths; `other` has the same cells and other resamples."""
    found = []
    for ours in (m for m in study.shown if m.variant == "diffup" and not m.control):
        for theirs in (m for m in study.shown if not m.trained_on and not m.control and ours.beside(m)):
            for task in study.folds_by_task:
                gap = study.difference((ours, task), (theirs, task))
                one, two = study.estimates(ours, task), other.estimates(theirs, task)
                if gap is None or not one or not two:
                    continue
                draws = np.mean([a.draws - b.draws for a in one for b in two], axis=0)
                low, high = np.quantile(draws, [0.025, 0.975])
                found.append((f"{ours.backbone}, {task}: − {theirs.variant}", gap.high - gap.low, float(high - low)))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    for study in studies(load_results(options.results)):
        fresh = replace(study, seed=study.seed + 1, scores={})
        rows = widths(study, fresh)
        if not rows:  # nothing trained beside something that is not
            continue
        for name, paired, unpaired in rows:
            print(f"{name:60} {paired:5.2f} {unpaired:5.2f} {paired / unpaired:5.2f}")
        ratios = np.array([paired / unpaired for _, paired, unpaired in rows])
        print(
            f"{len(rows)} differences: the paired interval has {np.median(ratios):.2f} of the unpaired width (median; "
            f"{ratios.min():.2f} to {ratios.max():.2f})"
        )


if __name__ == "__main__":
    main()
