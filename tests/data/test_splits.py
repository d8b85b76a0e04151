"""Labeled and unlabeled images by fraction, number and lists."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from u2pl_fast.data import DataError, FolderDataset, LabelChoice, Shapes, measured_masks, split_dataset, usable_masks
from u2pl_fast.data.splits import parse_fraction, read_list


@pytest.fixture
def root(tmp_path):
    """Ten training images, the first six with masks."""
    for i in range(10):
        for kind in ("images", "labels")[: 2 if i < 6 else 1]:
            (tmp_path / kind / "train").mkdir(parents=True, exist_ok=True)
            pixels = np.full((4, 4, 3) if kind == "images" else (4, 4), i % 3, np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / "train" / f"s{i}.png")
    return tmp_path


def test_published_counts_of_the_usual_fractions():
    """Fractions round up, as the field's lists of Pascal VOC (10 582 images) and Cityscapes (2 975) do."""
    for total, counts in {10_582: (662, 1323, 2646, 5291), 2975: (186, 372, 744, 1488)}.items():
        for fraction, count in zip(("1/16", "1/8", "1/4", "1/2"), counts, strict=True):
            split = split_dataset(Shapes("train", length=total), LabelChoice(labeled_fraction=fraction))
            assert len(split.labeled) == count and len(split.unlabeled) == total - count


def test_a_split_is_seeded_disjoint_and_nested():
    def draw(seed, number):
        return split_dataset(Shapes("train"), LabelChoice(seed=seed, num_labeled=number))

    small, large = draw(3, 20), draw(3, 50)
    assert small == draw(3, 20) or small.labeled == draw(3, 20).labeled
    assert set(small.labeled) < set(large.labeled)
    assert small.labeled != draw(4, 20).labeled
    assert small.labeled != tuple(range(20))
    assert sorted(small.labeled + small.unlabeled) == list(range(400))
    assert not small.labels_hidden
    assert small.describe() == "20 labeled and 380 unlabeled images"


def test_only_images_with_masks_are_drawn_and_the_rest_is_unlabeled(root):
    split = split_dataset(FolderDataset(root, "train"))
    assert (split.labeled, split.unlabeled) == (tuple(range(6)), tuple(range(6, 10)))
    half = split_dataset(FolderDataset(root, "train"), LabelChoice(seed=1, labeled_fraction="1/2"))
    assert len(half.labeled) == 3 and set(half.labeled) < set(range(6))
    assert len(half.unlabeled) == 7
    assert [half.steps_per_epoch(b) for b in (1, 4, 7, 8)] == [7, 2, 1, 1]


def test_all_labeled_means_the_whole_split_with_labels_hidden():
    split = split_dataset(Shapes("train"), LabelChoice(labeled_fraction="1"))
    assert split.labels_hidden and split.unlabeled == split.labeled == tuple(range(400))
    assert "labels hidden" in split.describe()


def test_lists(root, tmp_path):
    labeled, unlabeled = tmp_path / "labeled.txt", tmp_path / "unlabeled.txt"
    labeled.write_text("# chosen by hand\ns2\n\nimages/train/s8.png labels/train/s3.png\n")
    Image.new("RGB", (5, 5)).save(tmp_path / "web photo.jpg")
    unlabeled.write_text("web photo.jpg\t\ns4\n")
    split = split_dataset(FolderDataset(root, "train"), LabelChoice(labeled_list=labeled, unlabeled_list=unlabeled))
    assert split.labeled == (2, 8)
    assert split.unlabeled == (0, 1, 3, 4, 5, 6, 7, 9, 10)
    assert split.dataset.names[10] == "web photo"
    np.testing.assert_array_equal(split.dataset.label(8), split.dataset.label(3))


def test_an_unlabeled_list_is_enough_where_every_image_of_the_split_is_labeled(root, tmp_path):
    for i in range(6, 10):
        (root / f"images/train/s{i}.png").rename(root / f"s{i}.png")
    more = tmp_path / "more.txt"
    more.write_text("s6.png\ns7.png\n")
    split = split_dataset(FolderDataset(root, "train"), LabelChoice(unlabeled_list=more))
    assert (split.labeled, split.unlabeled, split.labels_hidden) == (tuple(range(6)), (6, 7), False)


def test_hidden_masks_are_those_of_unlabeled_images(root, tmp_path):
    (tmp_path / "list.txt").write_text("s0\ns3\n")
    split = split_dataset(FolderDataset(root, "train"), LabelChoice(labeled_list=tmp_path / "list.txt"))
    assert split.hidden_masks == [1, 2, 4, 5]
    assert split_dataset(FolderDataset(root, "train")).hidden_masks == []
    assert split_dataset(Shapes("train", length=5)).hidden_masks == []  # labels hidden, but trained on
    assert measured_masks(split) == [1, 2, 4, 5] and measured_masks(split, 2) == [1, 4]


def test_a_mask_that_cannot_be_used_is_reported_and_skipped(root):
    (root / "labels/train/s4.png").write_bytes(b"")
    problems = []
    assert usable_masks(FolderDataset(root, "train", class_names="abc"), (1, 4, 5), problems.append) == [1, 5]
    assert [problem.kind for problem in problems] == ["unreadable"] and "s4.png" in str(problems[0])


def test_a_listed_image_without_a_mask_is_named(root, tmp_path):
    (tmp_path / "list.txt").write_text("s1\ns7\n")
    with pytest.raises(DataError, match="s7.png: has no mask"):
        split_dataset(FolderDataset(root, "train"), LabelChoice(labeled_list=tmp_path / "list.txt"))


def test_lists_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="gone.txt: not a readable UTF-8 list file"):
        read_list(tmp_path / "gone.txt")
    (tmp_path / "a.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="a.txt: lists no images"):
        read_list(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("one two\none two three\n")
    with pytest.raises(DataError, match="b.txt, line 2"):
        read_list(tmp_path / "b.txt")


def test_no_labeled_image_at_all(root):
    for i in range(6):
        (root / f"labels/train/s{i}.png").unlink()
    (root / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="no image of the training split has a mask"):
        split_dataset(FolderDataset(root, "train"))


def test_arguments_are_checked():
    dataset = Shapes("train")
    with pytest.raises(ValueError, match="--labeled-fraction and --num-labeled cannot be combined"):
        split_dataset(dataset, LabelChoice(labeled_fraction="1/8", num_labeled=3))
    for number in (0, 401):
        with pytest.raises(ValueError, match=rf"--num-labeled must be 1 \.\. 400 .*got {number}"):
            split_dataset(dataset, LabelChoice(num_labeled=number))
    for value in ("0", "9/8", "1/0", "half", "nan", -0.5):
        with pytest.raises(ValueError, match="--labeled-fraction"):
            parse_fraction(value)
    assert parse_fraction("1/8") == parse_fraction(0.125) == parse_fraction("0.125") == Fraction(1, 8)
