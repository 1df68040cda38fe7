"""Folds are proposed with about as many images each, of classes that can be tested."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from diffup.data.importers.write import LEAST, proposed_folds


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_every_class_that_can_be_tested_is_in_one_fold(counts: list[int]) -> None:
    images, notes = dict(enumerate(counts)), list[str]()
    folds = proposed_folds(images, 0, notes, [f"c{c}" for c in images])
    tested = [c for c in images if images[c] >= LEAST] or list(images)
    assert sorted(c for fold in folds for c in fold) == tested
    assert all(folds) and len(folds) == min(len(tested), 4 if len(tested) >= 8 else 2)
    sizes = [len(fold) for fold in folds]
    assert max(sizes) - min(sizes) <= max(1, len(folds) - 1)
    assert any("in no fold" in note for note in notes) == (0 < len(tested) < len(images))


def test_images_are_balanced() -> None:
    images = {0: 90, 1: 30, 2: 30, 3: 30}
    folds = proposed_folds(images, 2, [], ["a", "b", "c", "d"])
    assert [sum(images[c] for c in fold) for fold in folds] == [120, 60]
    images = {c: 10 + c for c in range(20)}
    sums = [sum(images[c] for c in fold) for fold in proposed_folds(images, 4, [], [str(c) for c in images])]
    assert max(sums) - min(sums) <= 12
