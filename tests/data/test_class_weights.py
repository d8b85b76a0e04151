"""Weights of the classes: read from a file, or computed from the labeled masks alone."""

import math

import numpy as np
import pytest
import torch

from u2pl_fast.data.class_weights import balanced, class_weights
from u2pl_fast.data.splits import Split


class Masks:
    """Masks of one row; the third is unlabeled to the split, and would change every number."""

    num_classes, ignore_index = 3, 255
    rows = ([0, 0, 0, 1], [0, 0, 255, 255], [2, 2, 2, 2])

    def label(self, index: int) -> np.ndarray:
        return np.array([self.rows[index]], np.uint8)


SPLIT = Split(Masks(), labeled=(0, 1), unlabeled=(2,))


def test_balanced_is_the_formula_over_labeled_pixels_that_are_not_ignored():
    raw = [1 / math.log(1.02 + share) for share in (5 / 6, 1 / 6)]
    mean = 5 / 6 * raw[0] + 1 / 6 * raw[1]
    torch.testing.assert_close(class_weights("balanced", SPLIT), torch.tensor([raw[0] / mean, raw[1] / mean, 1]))


def test_of_many_masks_some_are_read(monkeypatch):
    monkeypatch.setattr("u2pl_fast.data.class_weights.MASKS", 1)
    everything = balanced(SPLIT)
    monkeypatch.undo()
    torch.testing.assert_close(everything, balanced(Split(Masks(), labeled=(0,), unlabeled=())))


def test_masks_that_are_all_ignored_weigh_alike():
    masks = Masks()
    masks.rows = ([255, 255],)
    assert class_weights("balanced", Split(masks, (0,), ())).tolist() == [1, 1, 1]


def test_a_file_holds_a_number_a_class(tmp_path):
    assert class_weights(None, SPLIT) is None
    file = tmp_path / "weights.txt"
    file.write_text("1\n2.5\n0\n")
    assert class_weights(str(file), SPLIT).tolist() == [1, 2.5, 0]
    for text, message in (("1 2", "must hold 3"), ("1 2 nan", "finite"), ("1 2 -1", "≥ 0"), ("a b c", "cannot read")):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"class_weights: .*{message}"):
            class_weights(str(file), SPLIT)
    with pytest.raises(ValueError, match="cannot read balancd: .*; name a file, or use balanced"):
        class_weights("balancd", SPLIT)
