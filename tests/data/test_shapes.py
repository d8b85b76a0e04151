"""The built-in data set: reproducible, fast to draw, and not solvable by color."""

import time

import numpy as np
import pytest

from u2pl_fast.data import DataError, Shapes
from u2pl_fast.data.base import Entry


def test_a_sample_is_a_function_of_seed_split_and_index():
    first, again = Shapes("train"), Shapes("train")
    expected = [(first.image(i).copy(), first.label(i).copy()) for i in range(5)]
    for i in (4, 0, 3, 1, 2):  # another order, another object
        np.testing.assert_array_equal(again.image(i), expected[i][0])
        np.testing.assert_array_equal(again.label(i), expected[i][1])
    assert not np.array_equal(Shapes("val").image(0), expected[0][0])
    assert not np.array_equal(Shapes("train", seed=1).image(0), expected[0][0])
    assert not np.array_equal(expected[0][0], expected[1][0])


def test_types_sizes_and_names():
    dataset = Shapes("val", size=(64, 80), length=7)
    assert len(dataset) == len(dataset.names) == len(set(dataset.names)) == 7
    assert dataset.num_classes == len(dataset.class_names) == 6
    assert dataset.image(6).shape == (64, 80, 3) and dataset.image(6).dtype == np.uint8
    assert dataset.label(6).shape == (64, 80) and dataset.label(6).dtype == np.uint8
    assert (len(Shapes("train")), len(Shapes("val"))) == (400, 100)
    with pytest.raises(IndexError):
        dataset.image(7)


def test_every_class_is_common_and_background_is_the_largest():
    dataset = Shapes("train")
    counts = sum(np.bincount(dataset.label(i).ravel(), minlength=6) for i in range(80))
    share = counts / counts.sum()
    assert len(counts) == 6 and share[1:].min() > 0.02
    assert 0.5 < share[0] < 0.85


def test_color_does_not_tell_the_class():
    """The best class for each of 512 colors, learned on 150 images, stays far from useful."""
    train, val = Shapes("train"), Shapes("val")

    def color(image):
        return (image >> 5).astype(np.int64) @ np.array([64, 8, 1])

    votes = np.zeros((512, 6))
    for i in range(150):
        np.add.at(votes, (color(train.image(i)).ravel(), train.label(i).ravel()), 1)
    best = votes.argmax(1)
    confusion = np.zeros((6, 6))
    for i in range(40):
        np.add.at(confusion, (val.label(i).ravel(), best[color(val.image(i))].ravel()), 1)
    hit = confusion.diagonal()
    miou = (hit / (confusion.sum(0) + confusion.sum(1) - hit)).mean()
    all_background = confusion[0].sum() / confusion.sum() / 6
    assert miou < all_background + 0.12


def test_drawing_is_fast():
    dataset = Shapes("train")
    dataset.image(0)
    seconds = []
    for i in range(1, 31):
        start = time.process_time()
        dataset.image(i)
        seconds.append(time.process_time() - start)
    assert np.median(seconds) < 0.02  # about 2 ms; the bound leaves room for a busy machine


def test_unknown_split_and_sample_are_named():
    with pytest.raises(DataError, match="'test'.*train, val"):
        Shapes("test")
    with pytest.raises(DataError, match="my.txt.*'train_99999'"):
        Shapes("train").include([Entry("train_99999", None)], "my.txt")
    assert Shapes("train").include([Entry("train_00007", None)], "my.txt") == [7]
