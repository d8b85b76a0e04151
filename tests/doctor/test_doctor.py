"""The doctor finds each problem of a data set, lists all with their fixes, and exits with the right status."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.dataset_trees import SIZE, ade20k, cityscapes, folder, mask, picture, save, voc
from u2pl_fast import data, train
from u2pl_fast.config import TrainConfig
from u2pl_fast.data.splits import evenly
from u2pl_fast.doctor.__main__ import main
from u2pl_fast.doctor.checks import _ranges
from u2pl_fast.doctor.scan import shares
from u2pl_fast.doctor.settings import DoctorConfig, settings_of


class Diagnosis:
    """Output of one run of the doctor, on the screen and as JSON."""

    def __init__(self, code: int, text: str, result: dict) -> None:
        self.code, self.text, self.result = code, text, result

    def of(self, severity: str) -> list[str]:
        return [found["title"] for found in self.result["findings"] if found["severity"] == severity]

    def found(self, severity: str, title: str, fix: str = "") -> dict:
        """The one finding whose title and fix hold these words; it is on the screen too."""
        matches = [
            found
            for found in self.result["findings"]
            if found["severity"] == severity and title in found["title"] and fix in found["fix"]
        ]
        assert len(matches) == 1, self.result["findings"]
        assert matches[0]["title"] in self.text and matches[0]["fix"] in self.text
        return matches[0]


@pytest.fixture
def diagnose(tmp_path, capsys):
    def run(dataset: str, root: Path, *flags: str) -> Diagnosis:
        out = tmp_path / "diagnosis.json"
        capsys.readouterr()
        try:
            main(["--dataset", dataset, "--data-root", str(root), "--json", str(out), *flags])
            code = 0
        except SystemExit as stop:
            code = stop.code
        diagnosis = Diagnosis(code, capsys.readouterr().out, json.loads(out.read_text()))
        assert code == (1 if diagnosis.of("error") else 0)
        assert diagnosis.result["trainable"] == (code == 0)
        if code == 0:  # then a training takes the data too
            config = train.parse(["--dataset", dataset, "--data-root", str(root), *_without(flags, "--max-files")])
            split = data.split_dataset(config.build_dataset("train"), config.label_choice)
            config.build_dataset("val", classes_from=split.dataset)
        return diagnosis

    return run


def _without(flags: tuple[str, ...], name: str) -> list[str]:
    position = flags.index(name) if name in flags else len(flags)
    return [*flags[:position], *flags[position + 2 :]]


# --- Nothing wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [voc, cityscapes, ade20k, folder])
def test_a_healthy_tree(tmp_path, diagnose, make):
    diagnosis = diagnose(make.__name__, make(tmp_path / "data"), "--num-labeled", "3")
    assert diagnosis.code == 0 and not diagnosis.of("error")
    rare = {"voc": 18, "cityscapes": 14, "ade20k": 147, "folder": 0}[make.__name__]
    assert len(diagnosis.of("warning")) == (1 if rare else 0)
    if rare:
        assert (
            len(diagnosis.found("warning", f"{rare} classes in no training mask", "cannot be learned")["where"]) == rare
        )
    splits = {row["split"]: row for row in diagnosis.result["splits"]}
    assert splits["train"]["labeled"] == 3 and splits["val"]["checked"] == splits["val"]["images"]
    assert "no image of val is used for training" in diagnosis.text
    assert "trainable: 0 errors" in diagnosis.text


def test_the_histogram_counts_pixels_and_images(tmp_path, diagnose):
    root = folder(tmp_path / "data", train=4, val=1, unlabeled=2)
    (tmp_path / "list.txt").write_text("train1\ntrain3\n")
    rows = diagnose("folder", root, "--labeled-list", str(tmp_path / "list.txt")).result["classes"]
    labels = [np.asarray(Image.open(root / f"labels/train/train{i}.png")) for i in (1, 3)]
    assert [row["labeled_pixels"] for row in rows] == np.bincount(np.stack(labels).ravel()).tolist()
    assert [[row[k] for k in ("labeled_images", "train_images", "val_images")] for row in rows] == [[2, 4, 1]] * 3


# --- Files ------------------------------------------------------------------------------------------------------------


def test_all_broken_files_are_listed_at_once(tmp_path, diagnose):
    root = folder(tmp_path / "data", train=8, unlabeled=1)
    broken = root / "images/train/train1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    (root / "images/train/train2.png").write_bytes(b"nothing")
    save(root / "labels/train/train3.png", picture(3))
    save(root / "labels/train/train4.png", mask(4, (0, 1, 2)), format="JPEG")
    save(root / "labels/train/train5.png", mask(5, (0, 1, 2), (20, 32)))
    (root / "labels/val/val0.png").write_bytes(b"")
    diagnosis = diagnose("folder", root)
    assert diagnosis.code == 1
    assert len(diagnosis.found("error", "2 images unreadable", "download")["where"]) == 2
    assert diagnosis.found("error", "1 mask unreadable")["where"] == [str(root / "labels/val/val0.png")]
    diagnosis.found("error", "1 mask with colors instead of class ids", "class id")
    diagnosis.found("error", "1 mask compressed as JPEG", "PNG")
    (where,) = diagnosis.found("error", "1 mask of a different size", "nearest")["where"]
    assert "train5.png: 32x20, its image 32x24" in where


def test_long_lists_are_cut_on_the_screen_alone(tmp_path, diagnose):
    root = folder(tmp_path / "data", train=9)
    for i in range(9):
        (root / f"images/train/train{i}.png").write_bytes(b"")
    diagnosis = diagnose("folder", root)
    assert len(diagnosis.found("error", "9 images unreadable")["where"]) == 9
    assert "and 4 more (all of them with --json)" in diagnosis.text and "train8.png" not in diagnosis.text


def test_masks_of_unlabeled_images_are_no_error(tmp_path, diagnose):
    root = voc(tmp_path / "data", values=tuple(range(21)))
    (tmp_path / "list.txt").write_text("2007_000000\n2007_000001\n")
    save(root / "SegmentationClassAug/2007_000009.png", picture(9))
    save(root / "SegmentationClassAug/2007_000008.png", mask(8, (0, 77)))
    save(root / "SegmentationClassAug/2007_000007.png", mask(7, (0, 1), (20, 32)))
    diagnosis = diagnose("voc", root, "--labeled-list", str(tmp_path / "list.txt"))
    assert diagnosis.code == 0
    for title in ("1 mask with colors", "1 mask with value 77", "1 mask of a different size"):
        found = diagnosis.found("warning", title)
        assert found["title"].endswith("used only for metrics; training continues without them)")


def test_masks_that_are_jpeg_files(tmp_path, diagnose):
    root = folder(tmp_path / "data")
    for i in (0, 1):
        (root / f"labels/train/train{i}.png").unlink()
        save(root / f"labels/train/train{i}.jpg", mask(i, (0, 1, 2)))
    found = diagnose("folder", root).found("error", "train: 2 masks not in PNG format", "original masks as PNG")
    assert found["where"] == [str(root / f"labels/train/train{i}.jpg") for i in (0, 1)]


def test_pairs_that_do_not_match(tmp_path, diagnose):
    root = folder(tmp_path / "data", train=5)
    save(root / "labels/train/train9_mask.png", mask(0, (0, 1, 2)))
    (root / "labels/val/val1.png").unlink()
    diagnosis = diagnose("folder", root)
    diagnosis.found("warning", "train: 1 mask without an image", "name of its image")
    assert diagnosis.found("error", "val: 1 image without a mask, which evaluation needs")["where"] == [
        str(root / "labels/val/val1.png")
    ]


# --- Values -----------------------------------------------------------------------------------------------------------


def test_black_and_white_masks(tmp_path, diagnose):
    root = folder(tmp_path / "data", values=(0, 255))
    for _ in range(2):
        diagnosis = diagnose("folder", root)
        diagnosis.found("error", "masks hold only 0 and 255", "--label-map 0:0 255:1")
        assert len(diagnosis.of("error")) == 1
        (root / "classes.txt").write_text("background\nbuilding\n")
    diagnosis = diagnose("folder", root, "--label-map", "0:0", "255:1")
    assert diagnosis.code == 0 and not diagnosis.of("warning")
    diagnosis.found("ok", "2 classes: low_rank defaults to 1")


def test_black_and_white_masks_of_one_part_alone(tmp_path, diagnose):
    root = folder(tmp_path / "data")
    (root / "classes.txt").write_text("a\nb\nc\n")
    for path in (root / "labels/val").iterdir():
        save(path, mask(0, (0, 255)))
    diagnose("folder", root).found("error", "masks hold only 0 and 255")
    root = folder(tmp_path / "other")
    (root / "classes.txt").write_text("a\nb\nc\n")
    save(root / "labels/train/train4.png", mask(0, (0, 255)))
    (tmp_path / "l.txt").write_text("train4\n")
    diagnose("folder", root, "--labeled-list", str(tmp_path / "l.txt")).found("error", "masks hold only 0 and 255")


def test_values_without_a_class(tmp_path, diagnose):
    root = folder(tmp_path / "data", values=(0, 1, 2, 7, 9))
    (root / "classes.txt").write_text("a\nb\nc\n")
    found = diagnose("folder", root).found("error", "8 masks with values 7, 9, which no class has", "masks hold 0 .. 2")
    assert len(found["where"]) == 8
    diagnosis = diagnose("folder", root, "--label-map", "0-2:0-2", "7:0")
    diagnosis.found("error", "8 masks with value 9", "*:ignore")
    assert diagnose("folder", root, "--label-map", "0-2:0-2", "*:ignore").code == 0


def test_label_ids_taken_for_train_ids(tmp_path, diagnose):
    root = folder(tmp_path / "named", values=(0, 7, 11, 33))
    (root / "classes.txt").write_text("\n".join(f"c{i}" for i in range(19)))
    diagnose("folder", root).found("error", "with value 33", "--dataset cityscapes")
    root = cityscapes(tmp_path / "trees", kinds=("labelTrainIds",))
    for path in root.glob("gtFine/*/*/*.png"):
        save(path, mask(0, (7, 11, 26, 33)))
    diagnose("cityscapes", root).found("error", "9 masks with values 26, 33", "these are Cityscapes' labelIds")
    root = folder(tmp_path / "counted")
    for split, number in (("train", 6), ("val", 2)):
        for i in range(number):
            (root / f"labels/{split}/{split}{i}.png").unlink()
            (root / f"images/{split}/{split}{i}.png").rename(root / f"images/{split}/{split}{i}_labelIds.png")
            save(root / f"labels/{split}/{split}{i}_labelIds.png", mask(i, (0, 7, 11, 33)))
    diagnose("folder", root).found("warning", "read as 34 classes instead of 19", "labelTrainIds")


def test_train_ids_in_files_of_label_ids(tmp_path, diagnose):
    root = cityscapes(tmp_path / "data")
    for path in root.glob("gtFine/*/*/*.png"):
        save(path, mask(0, (0, 2, 13, 18, 255)))
    found = diagnose("cityscapes", root).found("error", "named *_labelIds.png hold train ids", "*_labelTrainIds.png")
    assert len(found["where"]) == 9


def test_ade20k_masks_off_by_one(tmp_path, diagnose):
    root = ade20k(tmp_path / "data", values=(0, 12, 149, 255))
    diagnosis = diagnose("ade20k", root)
    diagnosis.found("error", "8 masks with value 255", "shifted to 0 .. 149:")
    assert diagnose("ade20k", root, "--label-map", "0-149:0-149", "255:ignore").code == 0


def test_ids_that_count_from_one(tmp_path, diagnose):
    root = folder(tmp_path / "data", values=(1, 2, 3))
    diagnose("folder", root).found("warning", "no mask holds 0", "--label-map 1-3:0-2")
    (root / "classes.txt").write_text("a\nb\nc\n")
    diagnose("folder", root).found("error", "with value 3", "--label-map 0:ignore 1-3:0-2")
    assert diagnose("folder", root, "--label-map", "0:ignore", "1-3:0-2").code == 0


def test_255_that_may_be_a_class(tmp_path, diagnose):
    root = folder(tmp_path / "data", values=(0, 1, 255))
    diagnosis = diagnose("folder", root)
    diagnosis.found("warning", "of the masks and is ignored", "--label-map 0-1:0-1 255:2")
    assert diagnose("folder", root, "--label-map", "0-1:0-1", "255:2").result["classes"][2]["train_images"] == 6
    root = folder(tmp_path / "many", values=(0, 1, 255))
    (root / "classes.txt").write_text("\n".join(f"c{i}" for i in range(300)))
    diagnose("folder", root).found("warning", "which is a class among 300", "65535")


def test_background_that_is_missing(tmp_path, diagnose):
    root = voc(tmp_path / "data", values=(1, 15, 255))
    diagnose("voc", root).found("warning", "no training mask has background", "--label-map")


# --- Classes and splits -----------------------------------------------------------------------------------------------


def test_a_tiny_labeled_set_misses_classes(tmp_path, diagnose):
    root = folder(tmp_path / "data", values=(0, 1))
    save(root / "labels/train/train5.png", mask(5, (0, 1, 2)))
    (root / "classes.txt").write_text("road\ncar\ntrain\ntram\n")
    (tmp_path / "list.txt").write_text("train0\n")
    diagnosis = diagnose("folder", root, "--labeled-list", str(tmp_path / "list.txt"))
    assert diagnosis.code == 0
    assert diagnosis.found("warning", "1 class in no labeled image", "--num-labeled")["where"] == ["train"]
    assert diagnosis.found("warning", "1 class in no training mask", "classes.txt")["where"] == ["tram"]
    assert diagnosis.found("warning", "1 class in no mask of val", "no IoU")["where"] == ["train"]


def test_one_class_and_low_rank(tmp_path, diagnose):
    root = folder(tmp_path / "one", values=(0,))
    diagnose("folder", root).found("error", "1 class: a training needs at least 2", "--label-map")
    root = folder(tmp_path / "three")
    diagnose("folder", root, "--low-rank", "3").found("error", "--low-rank 3 with 3 classes", "its default is 2")
    assert diagnose("folder", root, "--low-rank", "2").code == 0


def test_images_in_both_splits(tmp_path, diagnose):
    root = folder(tmp_path / "data", unlabeled=2)
    shutil.copy(root / "images/val/val0.png", root / "images/train/train2.png")
    Image.open(root / "images/val/val1.png").save(root / "images/train/train6.bmp")  # equal pixels, other bytes
    (root / "images/train/train6.png").unlink()
    shutil.copy(root / "images/train/train0.png", root / "images/train/train1.png")
    diagnosis = diagnose("folder", root)
    found = diagnosis.found(
        "error", "1 labeled image with the same pixels as an image of val", "remove them from train or val"
    )
    assert found["where"] == ["train2 = val/val0"]
    found = diagnosis.found("warning", "1 unlabeled image with the same pixels as an image of val")
    assert found["where"] == ["train6 = val/val1"]
    assert diagnosis.found("warning", "more than once in train")["where"] == ["train0 = train1"]


def test_equal_names_of_different_images_are_no_leak(tmp_path, diagnose):
    root = folder(tmp_path / "data")
    for kind in ("images", "labels"):
        (root / kind / "val/val0.png").rename(root / kind / "val/train0.png")
    assert "no image of val is used for training" in diagnose("folder", root).text


def test_lists_that_name_images_of_val(tmp_path, diagnose):
    root = voc(tmp_path / "data", values=tuple(range(21)))
    (tmp_path / "l.txt").write_text("2007_000000\n2008_000001\n")
    (tmp_path / "u.txt").write_text("2008_000002\n2007_000005\n")
    diagnosis = diagnose(
        "voc", root, "--labeled-list", str(tmp_path / "l.txt"), "--unlabeled-list", str(tmp_path / "u.txt")
    )
    found = diagnosis.found("error", "1 labeled image with the same file as an image of val")
    assert found["where"] == ["2008_000001 = val/2008_000001"]
    diagnosis.found("warning", "1 unlabeled image with the same file as an image of val")


def test_all_bad_lines_of_a_list(tmp_path, diagnose):
    root = voc(tmp_path / "data")
    (tmp_path / "l.txt").write_text("2007_000000\ngone1\n2007_000001 SegmentationClass/gone.png\ngone2\n")
    diagnosis = diagnose("voc", root, "--labeled-list", str(tmp_path / "l.txt"))
    where = diagnosis.found("error", "l.txt: 3 lines of 4 cannot be used", "docs/datasets.md")["where"]
    assert [next(word for word in ("gone1", "gone.png", "gone2") if word in text) for text in where]
    assert diagnosis.result["splits"][0]["labeled"] == 1


def test_voc_without_the_masks_of_sbd(tmp_path, diagnose):
    root = voc(tmp_path / "data", values=tuple(range(21)))
    shutil.rmtree(root / "SegmentationClassAug")
    diagnosis = diagnose("voc", root)
    assert diagnosis.code == 0
    diagnosis.found("warning", "so the training set is train.txt, 6 images", "10582 images")
    (tmp_path / "l.txt").write_text("2007_000001\n2007_000008\n")
    found = diagnose("voc", root, "--labeled-list", str(tmp_path / "l.txt")).found(
        "error", "without a mask, but listed as labeled"
    )
    assert found["where"] == [str(root / "SegmentationClass/2007_000008.png")]


@pytest.mark.parametrize(("make", "hint"), [(voc, "voc"), (cityscapes, "cityscapes"), (ade20k, "ade20k")])
def test_another_layout_is_recognized(tmp_path, diagnose, make, hint):
    diagnosis = diagnose("camvid", make(tmp_path / "data"))
    assert diagnosis.code == 1 and f"try --dataset {hint}" in diagnosis.text


def test_arguments_that_a_training_would_refuse(tmp_path, diagnose):
    root = folder(tmp_path / "data")
    diagnose("folder", root, "--num-labeled", "99").found("error", "--num-labeled must be 1 .. 6")
    for flags, message in (
        (["--value-range", "5", "5"], "value_range: expected two numbers"),
        (["--num-labeled", "2", "--labeled-fraction", "1/2"], "set only one of labeled_fraction, num_labeled"),
        (["--label-map", "a:b"], "'a:b' is not VALUE:CLASS"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["--dataset", "folder", "--data-root", str(root), *flags])
    diagnose("folder", tmp_path / "gone").found("error", "gone: no such folder")


def test_images_with_other_channels_than_the_training_reads(tmp_path, diagnose):
    diagnosis = diagnose("folder", folder(tmp_path / "data"), "--in-channels", "4")
    diagnosis.found("error", "8 images that cannot be used", "has 3 channels")


def test_too_many_masks_to_count_classes_from(tmp_path, diagnose, monkeypatch):
    for module in ("data.folder", "doctor.checks"):
        monkeypatch.setattr(f"u2pl_fast.{module}.MAX_SCANNED_MASKS", 4)
    root = folder(tmp_path / "data")
    diagnose("folder", root).found("error", "6 masks are too many", "write 3 class names, one per line, to")
    (root / "classes.txt").write_text("a\nb\nc\n")
    assert diagnose("folder", root).code == 0


# --- The command ------------------------------------------------------------------------------------------------------


def test_max_files_says_what_was_left_out(tmp_path, diagnose):
    root = folder(tmp_path / "data", train=12, val=6)
    (tmp_path / "l.txt").write_text("train0\ntrain11\n")
    diagnosis = diagnose("folder", root, "--labeled-list", str(tmp_path / "l.txt"), "--max-files", "9")
    assert {row["split"]: row["checked"] for row in diagnosis.result["splits"]} == {"train": 6, "val": 3}
    assert (diagnosis.result["images_checked"], diagnosis.result["images_skipped"]) == (9, 9)
    assert "9 of 18 images were not checked (--max-files)" in diagnosis.text
    assert "trainable, as far as checked" in diagnosis.text


def test_how_images_are_sampled():
    assert shares([2, 100, 50], 12) == [2, 5, 5] and shares([3, 3], None) == [3, 3] and shares([1, 1], 9) == [1, 1]
    assert evenly(range(10), 3) == [0, 3, 6] and evenly([4, 5], 9) == [4, 5]
    assert _ranges({0, 1, 2, 7, 255}) == "0-2, 7, 255" and _ranges(set(range(0, 40, 2))).endswith("22 and 8 more")


def test_the_training_s_own_file_of_settings(tmp_path, capsys):
    root = folder(tmp_path / "data", values=(0, 255))
    config = TrainConfig(dataset="folder", data_root=root, label_map=("0:0", "255:1"), num_labeled=2, lr=0.1)
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps(config.to_dict()))
    main(["--config", str(file)])
    assert "folder in" in capsys.readouterr().out
    settings = settings_of(DoctorConfig(config=file, num_labeled=4))
    assert (settings.num_labeled, settings.label_map) == (4, ("0:0", "255:1"))


def test_refusals_of_the_command(tmp_path):
    for flags, message in (
        ([], "--dataset"),
        (["--dataset", "folder"], "--data-root is missing"),
        (["--dataset", "shapes"], "no files to check"),
        (["--dataset", "folder", "--data-root", str(tmp_path), "--max-files", "0"], "max_files"),
        (["--config", str(tmp_path / "gone.yaml")], "gone.yaml"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(flags)
        assert str(stop.value) == "1" or message in str(stop.value)


def test_training_points_to_the_doctor(tmp_path):
    root = folder(tmp_path / "a b", values=(0, 255))
    flags = ["--dataset", "folder", "--data-root", str(root), "--num-labeled", "2", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        train.main(flags)
    first, second = str(stop.value).splitlines()
    assert first.startswith("error: ") and "--label-map 0:0 255:1" in first
    assert second.endswith(f"u2pl doctor --dataset folder --data-root '{root}' --num-labeled 2")
    with pytest.raises(SystemExit) as stop:
        train.main(["--dataset", "folder", "--data-root", str(tmp_path / "gone"), "--out", str(tmp_path / "run")])
    assert "doctor" not in str(stop.value)


def test_sizes_in_the_table(tmp_path, diagnose):
    root = folder(tmp_path / "data", train=3)
    for kind, pixels in (("images", picture(77, (24, 40))), ("labels", mask(7, (0, 1, 2), (24, 40)))):
        save(root / kind / "train/train0.png", pixels)
    row = diagnose("folder", root).result["splits"][0]
    assert row["sizes"] == [f"{SIZE[1]}x{SIZE[0]}", "40x24"] and row["different_sizes"] == 2
