"""Folders of images and masks: what is read, and one message that names the file where something is wrong."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from u2pl_fast.data import DataError, FolderDataset, build_dataset, read_image, split_dataset
from u2pl_fast.data.base import Entry
from u2pl_fast.data.files import check_sizes, read_mask

SIZE = (6, 8)  # height, width


def write(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def picture(seed: int = 0, size=SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def ids(seed: int = 0, classes: int = 3, size=SIZE, dtype=np.uint8) -> np.ndarray:
    label = np.random.default_rng(seed).integers(0, classes, size).astype(dtype)
    label[-1, -1] = classes - 1
    return label


@pytest.fixture
def root(tmp_path) -> Path:
    """Four training images, three of them labeled with three classes, and two validation images."""
    for split, names in {"train": "abcd", "val": "xy"}.items():
        for seed, name in enumerate(names):
            write(tmp_path / "images" / split / f"{name}.png", picture(seed))
            if name != "d":
                write(tmp_path / "labels" / split / f"{name}.png", ids(seed))
    return tmp_path


def check_all(dataset):
    dataset.check([i for i in range(len(dataset)) if dataset.has_label(i)], range(len(dataset)))


# --- What is read -----------------------------------------------------------------------------------------------------


def test_images_and_masks_pair_by_name(root):
    dataset = build_dataset("folder", root, "train")
    assert dataset.names == ["a", "b", "c", "d"]
    assert [dataset.has_label(i) for i in range(4)] == [True, True, True, False]
    assert (dataset.num_classes, dataset.ignore_index) == (3, 255)
    np.testing.assert_array_equal(dataset.image(1), picture(1))
    np.testing.assert_array_equal(dataset.label(1), ids(1))
    assert dataset.label(1).dtype == np.uint8
    check_all(dataset)


def test_names_from_classes_txt_and_from_the_training_split(root):
    (root / "classes.txt").write_text("sky\nroad\n\ncar\nnever seen\n")
    dataset = build_dataset("folder", root, "train")
    assert dataset.class_names == ["sky", "road", "car", "never seen"]
    (root / "classes.txt").unlink()
    assert build_dataset("folder", root, "val", classes_from=dataset).num_classes == 4
    assert build_dataset("folder", root, "val", classes_from=["one", "two", "three"]).class_names[2] == "three"


def test_camvid_has_its_own_classes(root):
    dataset = build_dataset("camvid", root, "train")
    assert dataset.num_classes == 11
    assert (dataset.class_names[0], dataset.class_names[8], dataset.class_names[10]) == ("Sky", "Car", "Bicyclist")


def test_subfolders_belong_to_the_name_and_hidden_files_are_skipped(root):
    write(root / "images/train/city/a.jpg", picture(9))
    write(root / "labels/train/city/a.png", ids(9))
    (root / "images/train/.DS_Store").write_bytes(b"?")
    (root / "images/train/notes.txt").write_text("?")
    dataset = FolderDataset(root, "train")
    assert dataset.names == ["a", "b", "c", "city/a", "d"]
    np.testing.assert_array_equal(dataset.label(3), ids(9))


def test_255_is_ignored_and_palette_masks_are_read_by_index(root):
    label = ids(0)
    label[0, :3] = 255
    mask = Image.fromarray(label, "L").convert("L")
    mask = Image.frombytes("P", mask.size, mask.tobytes())
    mask.putpalette([200, 10, 10, 10, 200, 10] + [7] * 762)
    mask.save(root / "labels/train/a.png")
    dataset = FolderDataset(root, "train")
    assert dataset.num_classes == 3
    np.testing.assert_array_equal(dataset.label(0), label)


def test_more_than_255_classes_from_16_bit_masks(root):
    label = ids(0, classes=300, dtype=np.uint16)
    label[0, 0], label[0, 1] = 255, 65535
    write(root / "labels/train/a.png", label)
    dataset = FolderDataset(root, "train")
    assert (dataset.num_classes, dataset.ignore_index) == (300, -1)
    read = dataset.label(0)
    assert read.dtype == np.int16 and read[0, 0] == 255 and read[0, 1] == -1
    assert dataset.label(1).dtype == np.int16  # an 8-bit mask beside it
    np.testing.assert_array_equal(dataset.label(1), ids(1))


def test_16_bit_masks_of_few_classes(root):
    label = ids(0, dtype=np.uint16)
    label[0, :2] = (255, 65535)
    write(root / "labels/train/a.png", label)
    read = FolderDataset(root, "train").label(0)
    assert read.dtype == np.uint8 and read[0, :2].tolist() == [255, 255]
    np.testing.assert_array_equal(read[1:], label[1:])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_images_of_every_mode_become_rgb(tmp_path, mode):
    path = write(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), picture(), mode)
    image = read_image(path)
    assert image.shape == (*SIZE, 3) and image.dtype == np.uint8
    if mode in ("L", "LA"):
        np.testing.assert_array_equal(image[:, :, 0], np.asarray(Image.fromarray(picture()).convert("L")))
    if mode == "RGBA":
        np.testing.assert_array_equal(image, picture())


def test_16_bit_gray_images_are_scaled_not_clipped(tmp_path):
    path = write(tmp_path / "a.png", np.array([[0, 256, 65535]], np.uint16))
    assert read_image(path)[0].tolist() == [[0, 0, 0], [1, 1, 1], [255, 255, 255]]


def test_exif_orientation_is_applied_and_sizes_are_compared_after_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    for name in ("a.jpg", "a.png"):
        path = write(tmp_path / name, picture(size=(16, 24)), exif=exif)
        assert read_image(path).shape == (24, 16, 3)
        check_sizes(path, write(tmp_path / f"upright_{name}.png", ids(size=(24, 16))))
        with pytest.raises(DataError, match="24x16 but its image .* is 16x24"):
            check_sizes(path, write(tmp_path / f"lying_{name}.png", ids(size=(16, 24))))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(picture(size=(16, 24)), -1))


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_color_masks_are_refused_with_the_fix(root, mode):
    path = write(root / "labels/train/b.png", picture(), mode)
    with pytest.raises(DataError, match=f"{path}.*color mask.*gray"):
        FolderDataset(root, "train")
    with pytest.raises(DataError, match="color mask"):
        read_mask(path)


def test_ids_out_of_range_are_found_before_training_and_at_reading(root):
    (root / "classes.txt").write_text("a\nb\n")
    dataset = FolderDataset(root, "train")
    path = root / "labels/train/a.png"
    with pytest.raises(DataError, match=rf"{path}: class id 2 .*0 \.\. 1, or 255 for ignore"):
        split_dataset(dataset)
    with pytest.raises(DataError, match=f"{path}"):
        dataset.label(0)


def test_a_mask_of_another_size_is_found_before_training(root):
    write(root / "labels/train/c.png", ids(size=(6, 9)))
    with pytest.raises(DataError, match="c.png: the mask is 9x6 but its image .*c.png is 8x6"):
        split_dataset(FolderDataset(root, "train"))


@pytest.mark.parametrize("file", ["images/train/b.png", "labels/train/b.png", "images/train/d.png"])
def test_unreadable_files_are_found_before_training(root, file):
    (root / "classes.txt").write_text("a\nb\nc\n")
    (root / file).write_bytes(b"not an image")
    with pytest.raises(DataError, match=f"{root / file}: not a readable image"):
        split_dataset(FolderDataset(root, "train"))


def test_a_truncated_image_is_named_when_it_is_read(root):
    path = write(root / "images/train/a.png", picture(size=(60, 80)))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(DataError, match=f"{path}: not a readable image"):
        FolderDataset(root, "train").image(0)


def test_missing_masks_name_the_file_that_was_looked_for(root):
    dataset = FolderDataset(root, "train")
    with pytest.raises(DataError, match=f"d.png: has no mask .looked for {root / 'labels/train/d.png'}"):
        dataset.label(3)
    (root / "labels/val/y.png").unlink()
    with pytest.raises(DataError, match="labels/val/y.png"):
        build_dataset("folder", root, "val")


def test_missing_folders_and_arguments(root, tmp_path_factory):
    with pytest.raises(DataError, match="--data-root is missing"):
        build_dataset("folder", None, "train")
    with pytest.raises(DataError, match=r"--data-root .*nowhere: no such folder"):
        build_dataset("camvid", root / "nowhere", "train")
    with pytest.raises(DataError, match="images/test: no such folder.*splits found there: train, val"):
        build_dataset("folder", root, "test")
    with pytest.raises(ValueError, match="--dataset must be one of shapes, camvid, folder, .*, got 'coco'"):
        build_dataset("coco", root, "train")
    empty = tmp_path_factory.mktemp("empty")
    (empty / "images/train").mkdir(parents=True)
    with pytest.raises(DataError, match="images/train: no images"):
        build_dataset("folder", empty, "train")
    write(empty / "images/train/a.jpg", picture())
    with pytest.raises(DataError, match="classes.txt: no such file, and no masks in .*labels/train"):
        build_dataset("folder", empty, "train")


def test_two_images_of_one_name_are_refused(root):
    write(root / "images/train/a.jpg", picture())
    with pytest.raises(DataError, match=r"a\.(jpg|png): same name as .*a\.(jpg|png)"):
        FolderDataset(root, "train")


def test_include_finds_ids_and_paths_and_adds_what_is_new(root):
    write(root / "extra/new.jpg", picture(5))
    write(root / "extra/mask.png", ids(5))
    dataset = FolderDataset(root, "train")
    entries = [
        Entry("c", None),
        Entry("images/train/a.png", None),
        Entry("extra/new.jpg", "extra/mask.png"),
        Entry(str(root / "images/train/d.png"), "extra/mask.png"),
        Entry("extra/new.jpg", None),
    ]
    assert dataset.include(entries, "list.txt") == [2, 0, 4, 3, 4]
    assert dataset.names[4] == "extra/new" and len(dataset) == 5
    np.testing.assert_array_equal(dataset.label(4), ids(5))
    np.testing.assert_array_equal(dataset.label(3), ids(5))
    with pytest.raises(DataError, match=f"list.txt: 'gone' is neither an id .*{root / 'gone'}"):
        dataset.include([Entry("gone", None)], "list.txt")
