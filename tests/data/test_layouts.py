"""VOC, Cityscapes and ADE20K as they are downloaded, the lists that the field uses for them, and label maps."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.data.dataset_trees import ade20k, cityscapes, folder, mask, picture, save, voc
from u2pl_fast import data, evaluate, train
from u2pl_fast.config import TrainConfig, resolve
from u2pl_fast.data import DataError, LabelChoice, build_dataset, files, pair_dataset, split_dataset
from u2pl_fast.data.ade20k import ADE20K_CLASSES
from u2pl_fast.data.cityscapes import CITYSCAPES_LABEL_IDS
from u2pl_fast.data.masks import LabelMap, label_map_entries
from u2pl_fast.doctor.__main__ import main as doctor
from u2pl_fast.saving import checkpoint


def raw(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def listed(root: Path, dataset: str, lines: list[str], out: Path, which: str = "labeled_list"):
    """The split that a list of these lines chooses."""
    file = out / f"{which}.txt"
    file.write_text("\n".join(lines) + "\n")
    return split_dataset(build_dataset(dataset, root, "train"), LabelChoice(**{which: file}))


# --- VOC --------------------------------------------------------------------------------------------------------------


def test_voc_with_sbd(tmp_path):
    root = voc(tmp_path / "VOCdevkit/VOC2012")
    for given in (root, root.parent, root.parent.parent):
        dataset = build_dataset("voc", given, "train")
        assert len(dataset) == 10 and not dataset.notes
        assert (dataset.num_classes, dataset.class_names[15], dataset.ignore_index) == (21, "person", 255)
    np.testing.assert_array_equal(dataset.label(7), raw(root / "SegmentationClassAug/2007_000007.png"))
    val = build_dataset("voc", root, "val")
    assert val.names == ["2008_000000", "2008_000001", "2008_000002"]
    np.testing.assert_array_equal(val.label(0), raw(root / "SegmentationClass/2008_000000.png"))  # a palette PNG


def test_voc_without_sbd_says_that_it_is_small(tmp_path):
    root = voc(tmp_path)
    shutil.rmtree(root / "SegmentationClassAug")
    dataset = build_dataset("voc", root, "train")
    assert len(dataset) == 6
    (note,) = dataset.notes
    assert "no masks for 4 of the 10 images of train_aug.txt" in note and "train.txt, 6 images" in note
    (root / "ImageSets/Segmentation/train_aug.txt").unlink()
    (note,) = build_dataset("voc", root, "train").notes
    assert "there is no SegmentationClassAug/" in note and "10582" in note


def test_voc_lists_by_their_other_names(tmp_path):
    root = voc(tmp_path)
    lists = root / "ImageSets/Segmentation"
    lines = [f"/JPEGImages/2007_{i:06d}.jpg /SegmentationClassAug/2007_{i:06d}.png" for i in range(8)]
    (lists / "train_aug.txt").unlink()
    (note,) = build_dataset("voc", root, "train").notes
    assert "there is no train_aug.txt" in note
    (lists / "trainaug.txt").write_text("\n".join(lines))
    dataset = build_dataset("voc", root, "train")
    assert dataset.names == [f"2007_{i:06d}" for i in range(8)] and dataset.has_label(7)


def test_sbd_masks_in_the_plain_folder_are_the_large_training_set(tmp_path):
    root = voc(tmp_path)
    shutil.rmtree(root / "SegmentationClass")
    (root / "SegmentationClassAug").rename(root / "SegmentationClass")
    dataset = build_dataset("voc", root, "train")
    assert len(dataset) == 10 and all(map(dataset.has_label, range(10))) and not dataset.notes


def test_voc_files_that_are_missing(tmp_path):
    root = voc(tmp_path / "voc")
    (root / "JPEGImages/2007_000003.jpg").unlink()
    with pytest.raises(DataError, match="JPEGImages/2007_000003.jpg: no such file"):
        split_dataset(build_dataset("voc", root, "train"))
    with pytest.raises(DataError, match="trainval.txt: no such list; found there: train, train_aug, val"):
        build_dataset("voc", root, "trainval")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty/JPEGImages: no such folder; expected JPEGImages/, Segm"):
        build_dataset("voc", tmp_path / "empty", "train")
    for masks in ("SegmentationClass", "SegmentationClassAug"):
        shutil.rmtree(root / masks)
    with pytest.raises(DataError, match="no masks; expected PNG files in SegmentationClassAug"):
        build_dataset("voc", root, "train")


@pytest.mark.parametrize(
    "line",
    [
        "2007_000002",
        "2007_000002.jpg",
        "JPEGImages/2007_000002.jpg",
        "JPEGImages/2007_000002",
        "/JPEGImages/2007_000002.jpg /SegmentationClassAug/2007_000002.png",
        "JPEGImages/2007_000002.jpg SegmentationClass/2007_000002.png",
        "JPEGImages/2007_000002.jpg\tSegmentationClassAug/2007_000002",
        "VOC2012/JPEGImages/2007_000002.jpg VOC2012/SegmentationClassAug/2007_000002.png",
    ],
)
def test_voc_list_formats(tmp_path, line):
    root = voc(tmp_path / "VOC2012")
    split = listed(root.parent, "voc", [line, "2007_000004"], tmp_path)
    assert [split.dataset.names[i] for i in split.labeled] == ["2007_000002", "2007_000004"]
    assert len(split.unlabeled) == 8
    np.testing.assert_array_equal(split.dataset.label(2), raw(root / "SegmentationClassAug/2007_000002.png"))


def test_a_listed_mask_is_found_in_the_other_folder(tmp_path):
    """The field's lists say SegmentationClass for SBD's masks too."""
    root = voc(tmp_path / "voc")
    split = listed(root, "voc", ["JPEGImages/2007_000009.jpg SegmentationClass/2007_000009.png"], tmp_path)
    np.testing.assert_array_equal(split.dataset.label(9), raw(root / "SegmentationClassAug/2007_000009.png"))
    with pytest.raises(DataError, match="labeled_list.txt: the mask 'SegmentationClass/x.png' does not exist"):
        listed(root, "voc", ["JPEGImages/2007_000009.jpg SegmentationClass/x.png"], tmp_path)
    with pytest.raises(DataError, match="labeled_list.txt: '2007_999999' is neither"):
        listed(root, "voc", ["2007_999999"], tmp_path)


def test_of_two_masks_voc_s_own_counts(tmp_path):
    root = voc(tmp_path / "voc")
    save(root / "SegmentationClassAug/2008_000001.png", mask(99, (0, 7)))
    val = build_dataset("voc", root, "val")
    np.testing.assert_array_equal(val.label(1), raw(root / "SegmentationClass/2008_000001.png"))


def test_listed_images_outside_the_split_are_added(tmp_path):
    root = voc(tmp_path / "voc")
    (root / "ImageSets/Segmentation/train_aug.txt").unlink()
    split = listed(root, "voc", ["2007_000008", "JPEGImages/2007_000009.jpg"], tmp_path)
    assert [split.dataset.names[i] for i in split.labeled] == ["2007_000008", "2007_000009"]
    np.testing.assert_array_equal(split.dataset.label(6), raw(root / "SegmentationClassAug/2007_000008.png"))


def test_masks_of_unlabeled_images_are_not_used(tmp_path):
    root = voc(tmp_path / "voc")
    split = listed(
        root, "voc", ["JPEGImages/2008_000001.jpg SegmentationClass/gone.png"], tmp_path, which="unlabeled_list"
    )
    assert [split.dataset.names[i] for i in split.unlabeled] == ["2008_000001"]


# --- Cityscapes -------------------------------------------------------------------------------------------------------


def test_cityscapes_label_ids_become_classes(tmp_path):
    dataset = build_dataset("cityscapes", cityscapes(tmp_path), "train")
    assert dataset.names[0] == "aachen/aachen_000000_000019" and len(dataset) == 6
    assert dataset.class_names[6:8] == ["traffic light", "traffic sign"] and dataset.num_classes == 19
    expected = np.array([255, 0, 2, 6, 13, 18])[mask(0, range(6))]
    np.testing.assert_array_equal(dataset.label(0), expected)


def test_each_cityscapes_id_has_its_class(tmp_path):
    """The published table: 34 ids, 19 of them classes, in the order of the train ids."""
    classes = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
    classes |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    assert list(CITYSCAPES_LABEL_IDS.values()) == list(classes)
    root = cityscapes(tmp_path)
    path = root / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    save(path, np.arange(34, dtype=np.uint8).repeat(24).reshape(34, 24).T.copy())
    label = build_dataset("cityscapes", root, "train").label(0)
    assert {i: int(label[0, i]) for i in range(34) if label[0, i] != 255} == classes


def test_cityscapes_train_ids_are_read_where_only_they_exist(tmp_path):
    root = cityscapes(tmp_path, kinds=("labelTrainIds",))
    expected = np.array([255, 0, 2, 6, 13, 18])[mask(0, range(6))]
    np.testing.assert_array_equal(build_dataset("cityscapes", root, "train").label(0), expected)
    path = root / "gtFine/train/aachen/aachen_000003_000019_gtFine_labelTrainIds.png"
    save(path, np.full((24, 32), 26, np.uint8))
    with pytest.raises(DataError, match=f"{path}: class id 26 .*name the file \\*_labelIds.png"):
        split_dataset(build_dataset("cityscapes", root, "train"))


FRAME = "aachen/aachen_000002_000019"


@pytest.mark.parametrize(
    "line",
    [
        FRAME,
        "aachen_000002_000019",
        f"train/{FRAME}_leftImg8bit.png",
        f"leftImg8bit/train/{FRAME}_leftImg8bit.png",
        f"/leftImg8bit/train/{FRAME}_leftImg8bit.png",
        f"leftImg8bit/train/{FRAME}_leftImg8bit.png gtFine/train/{FRAME}_gtFine_labelTrainIds.png",
        f"leftImg8bit/train/{FRAME}_leftImg8bit.png gtFine/train/{FRAME}_gtFine_labelIds.png",
    ],
)
@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes_list_formats(tmp_path, line, kind):
    root = cityscapes(tmp_path / "cityscapes", kinds=(kind,))
    split = listed(root, "cityscapes", [line], tmp_path)
    assert [split.dataset.names[i] for i in split.labeled] == [FRAME] and len(split.unlabeled) == 5
    np.testing.assert_array_equal(split.dataset.label(2), np.array([255, 0, 2, 6, 13, 18])[mask(2, range(6))])


@pytest.mark.parametrize(
    "line", ["leftImg8bit/train_extra/bonn/bonn_000001_000019_leftImg8bit.png", "bonn/bonn_000001_000019"]
)
def test_train_extra_serves_as_unlabeled(tmp_path, line):
    root = cityscapes(tmp_path / "cityscapes")
    split = listed(root, "cityscapes", [line], tmp_path, which="unlabeled_list")
    assert split.labeled == tuple(range(6)) and len(split.unlabeled) == 1
    np.testing.assert_array_equal(split.dataset.image(6), picture(201))
    assert split.dataset.names[6] == "bonn/bonn_000001_000019"


def test_cityscapes_folders_that_are_missing(tmp_path):
    root = cityscapes(tmp_path / "cityscapes")
    with pytest.raises(DataError, match="leftImg8bit/trainval: no images named"):
        build_dataset("cityscapes", root, "trainval")
    with pytest.raises(DataError, match="leftImg8bit: no such folder; expected leftImg8bit/<split>/CITY"):
        build_dataset("cityscapes", root / "gtFine", "train")
    shutil.rmtree(root / "gtFine/val")
    with pytest.raises(DataError, match="has no mask .looked for .*gtFine/val/lindau/.*_gtFine_labelIds.png"):
        build_dataset("cityscapes", root, "val")


# --- ADE20K -----------------------------------------------------------------------------------------------------------


def test_ade20k_counts_from_one_and_ignores_zero(tmp_path):
    root = ade20k(tmp_path / "ADEChallengeData2016")
    for given in (root, tmp_path):
        dataset = build_dataset("ade20k", given, "train")
        assert len(dataset) == 6 and len(build_dataset("ade20k", given, "val")) == 2
    assert (dataset.num_classes, dataset.class_names[12], dataset.ignore_index) == (150, "person", 255)
    np.testing.assert_array_equal(dataset.label(0), raw(root / "annotations/training/ADE_train_00000000.png") - 1)
    assert set(np.unique(dataset.label(0))) == {0, 12, 149, 255}


def test_ade20k_masks_that_were_shifted_are_refused(tmp_path):
    root = ade20k(tmp_path, values=(0, 12, 149, 255))
    with pytest.raises(DataError, match="value 255 .*shifted by one.*--label-map 0-149:0-149 255:ignore"):
        build_dataset("ade20k", root, "val")
    dataset = build_dataset("ade20k", root, "val", label_map=("0-149:0-149", "255:ignore"))
    assert dataset.class_names == list(ADE20K_CLASSES)
    assert set(np.unique(dataset.label(0))) == {0, 12, 149, 255}


def test_ade20k_names_come_from_its_table(tmp_path):
    root = ade20k(tmp_path)
    header = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    rows = [f"{i}\t0.1\t9\t9\t1\tthing {i}, object {i}\n" for i in range(1, 151)]
    (root / "objectInfo150.txt").write_text(header + "".join(rows))
    assert build_dataset("ade20k", root, "val").class_names[149] == "thing 150"
    (root / "objectInfo150.txt").write_text(header + "".join(rows[:-1]))
    with pytest.raises(DataError, match="objectInfo150.txt: expected 150 rows"):
        build_dataset("ade20k", root, "val")


@pytest.mark.parametrize("line", ["ADE_train_00000002", "images/training/ADE_train_00000002.jpg", "training/../x"])
def test_ade20k_lists(tmp_path, line):
    root = ade20k(tmp_path / "ade")
    if line.endswith("x"):
        with pytest.raises(DataError, match="neither an id"):
            listed(root, "ade20k", [line], tmp_path)
        return
    pair = f"{line} annotations/training/ADE_train_00000002.png"
    for text in (line, pair):
        assert listed(root, "ade20k", [text], tmp_path).labeled == (2,)


# --- One more ---------------------------------------------------------------------------------------------------------


def test_the_data_set_that_the_docs_add(tmp_path, monkeypatch, capsys):
    """As printed there: it trains with lists and label maps, and the doctor knows it."""
    page = (Path(__file__).parents[2] / "docs/datasets.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class MyDataset" in block]
    names = vars(pair_dataset) | vars(files)
    exec(code, names)
    monkeypatch.setitem(data.DATASETS, "mine", data._on_disk(names["MyDataset"]))
    root = folder(tmp_path / "data", values=(0, 1))
    (root / "images").rename(root / "pictures")
    (root / "labels").rename(root / "masks")
    split = listed(root, "mine", ["pictures/train/train2.png masks/train/train2.png", "train4"], tmp_path)
    assert split.labeled == (2, 4) and split.dataset.class_names == ["sky", "land"]
    doctor(["--dataset", "mine", "--data-root", str(root), "--label-map", "0:1", "1:0"])
    assert "trainable: 0 errors, 0 warnings" in capsys.readouterr().out


# --- Label maps -------------------------------------------------------------------------------------------------------


def test_label_map_entries():
    label_map = LabelMap.parse(("0:0", "1-3:1", "10-12:2-4", "7:ignore", "*:ignore"))
    assert label_map.num_classes == 5
    values = label_map.mask_values(5)
    np.testing.assert_array_equal(
        values.labels(np.array([0, 1, 3, 10, 12, 7, 200], np.uint8)), [0, 1, 1, 2, 4, 255, 255]
    )
    strict = LabelMap.parse(("0:0", "255:1")).mask_values(2)
    assert strict.known(np.array([0, 1, 255, 300, -1], np.int32)).tolist() == [True, False, True, False, False]
    everything = LabelMap.parse(("0:0", "*:1")).mask_values(2)
    np.testing.assert_array_equal(everything.labels(np.array([0, 9], np.uint8)), [0, 1])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (("0",), "neither VALUE:CLASS nor a readable file"),
        (("15301",), r"in YAML \{0: 0, 255: 1\}"),
        (("0:0", "a:1"), "'a:1' is not VALUE:CLASS"),
        (("0:-1",), "not VALUE:CLASS"),
        (("-1:0",), "not VALUE:CLASS"),
        (("65536:0",), "not VALUE:CLASS"),
        (("0:32767",), "not VALUE:CLASS"),
        (("0-2:0-1",), "not VALUE:CLASS"),
        (("3-1:0",), "not VALUE:CLASS"),
        (("0:0", "0:1"), "value 0 has two classes, 0 and 1"),
        (("0:ignore",), "every value is ignored"),
        (("",), "neither VALUE:CLASS"),
    ],
)
def test_label_maps_that_cannot_be_used(entries, message):
    with pytest.raises(ValueError, match=f"label_map: .*{message}"):
        label_map_entries(entries)


def test_black_and_white_masks_name_the_flag(tmp_path):
    root = folder(tmp_path, values=(0, 255))
    with pytest.raises(DataError, match="labels/train: masks hold only 0 and 255.*--label-map 0:0 255:1"):
        build_dataset("folder", root, "train")
    (root / "classes.txt").write_text("background\nbuilding\n")
    with pytest.raises(DataError, match="--label-map 0:0 255:1"):
        split_dataset(build_dataset("folder", root, "train"))
    with pytest.raises(DataError, match="labels/val: masks.*--label-map 0:0 255:1"):
        build_dataset("folder", root, "val")
    dataset = build_dataset("folder", root, "train", label_map=("0:0", "255:1"))
    assert dataset.class_names == ["background", "building"]
    np.testing.assert_array_equal(dataset.label(0), raw(root / "labels/train/train0.png") // 255)


def test_values_that_a_label_map_does_not_list_are_named(tmp_path):
    root = folder(tmp_path, values=(0, 7, 255))
    with pytest.raises(DataError, match=r"train0.png: value 7 \(row .*--label-map: VALUE:CLASS"):
        split_dataset(build_dataset("folder", root, "train", label_map=("0:0", "255:1")))
    dataset = build_dataset("folder", root, "train", label_map=("0:0", "255:1", "*:ignore"))
    assert dataset.class_names == ["class 0", "class 1"]
    assert set(np.unique(dataset.label(0))) == {0, 1, 255}
    with pytest.raises(ValueError, match="label_map: names class 4, but there are 2 classes"):
        (root / "classes.txt").write_text("a\nb\n")
        build_dataset("folder", root, "train", label_map=("0:4", "7:0"))


def test_a_label_map_regroups_the_classes_of_a_known_data_set(tmp_path):
    root = cityscapes(tmp_path)
    dataset = build_dataset("cityscapes", root, "train", label_map=("7:0", "26:1", "*:2"))
    assert dataset.class_names == ["class 0", "class 1", "class 2"]
    np.testing.assert_array_equal(dataset.label(0), np.array([2, 0, 2, 2, 1, 2])[mask(0, range(6))])
    with pytest.raises(ValueError, match="shapes draws its own labels"):
        build_dataset("shapes", None, "train", label_map=("0:0",))


def test_label_map_from_flags_yaml_and_a_file(tmp_path):
    file = tmp_path / "map.txt"
    file.write_text("# value class\n0:0\n255 1\n\n9:ignore  # glass\n")
    expected = ("0:0", "255:1", "9:ignore")
    flags = train.parse(["--label-map", "0:0", "255:1", "9:ignore", "--steps", "3"])
    assert flags.label_map == expected and flags.steps == 3
    assert resolve(TrainConfig(label_map=(str(file),))).label_map == expected
    for text in ("{0: 0, 255: 1, 9: ignore}", "['0:0', '255:1', '9:ignore']", str(file)):
        (tmp_path / "c.yaml").write_text(f"label_map: {text}\n")
        assert resolve(TrainConfig.from_yaml(tmp_path / "c.yaml")).label_map == expected
    config = resolve(TrainConfig(label_map=expected))
    assert TrainConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config


def test_many_masks_without_names_are_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("u2pl_fast.data.folder.MAX_SCANNED_MASKS", 4)
    root = folder(tmp_path)
    with pytest.raises(DataError, match="classes.txt: no such file, and .* holds 6 masks, too many.*doctor"):
        build_dataset("folder", root, "train")
    (root / "classes.txt").write_text("a\nb\nc\n")
    assert build_dataset("folder", root, "train").num_classes == 3


@pytest.mark.parametrize(("name", "limit"), [("MAX_SCANNED_MASKS", 3), ("MAX_SCANNED_PIXELS", 3 * 24 * 32)])
def test_only_so_many_masks_are_decoded_before_training(tmp_path, monkeypatch, name, limit):
    """Those after them are refused when they are read."""
    root = folder(tmp_path)
    (root / "classes.txt").write_text("a\nb\nc\n")
    save(root / "labels/train/train3.png", mask(3, (0, 9)))
    with pytest.raises(DataError, match="train3.png: class id 9"):
        split_dataset(build_dataset("folder", root, "train"))
    monkeypatch.setattr(f"u2pl_fast.data.pair_dataset.{name}", limit)
    dataset = split_dataset(build_dataset("folder", root, "train")).dataset
    with pytest.raises(DataError, match="train3.png: class id 9"):
        dataset.label(3)


# --- Training on them -------------------------------------------------------------------------------------------------


def two_steps(dataset: str, root: Path, out: Path, *flags: str) -> dict:
    settings = ["--encoder", "mobilenetv3_small_050", "--encoder-weights", "none", "--crop-size", "32", "32"]
    settings += ["--batch-size", "2", "--steps", "2", "--eval-every", "2", "--workers", "0", "--threads", "1"]
    settings += ["--representation-dim", "16", "--projection-width", "16", "--device", "cpu", "--out", str(out)]
    train.main(["--dataset", dataset, "--data-root", str(root), *settings, *flags])
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.slow
def test_two_steps_on_voc(tmp_path, capsys):
    root = voc(tmp_path / "voc")
    (tmp_path / "labeled.txt").write_text("2007_000001\n2007_000003\n")
    metrics = two_steps("voc", root, tmp_path / "run", "--labeled-list", str(tmp_path / "labeled.txt"))
    assert metrics["steps"] == 2 and len(metrics["iou_per_class"]) == 21
    assert "voc: 2 labeled and 8 unlabeled images" in capsys.readouterr().out
    saved = checkpoint.load(tmp_path / "run/last.pt")
    assert saved["class_names"][20] == "tvmonitor" and saved["config"]["bank_capacity"] == ["30000", "0:50000"]


@pytest.mark.slow
def test_two_steps_on_cityscapes(tmp_path):
    metrics = two_steps("cityscapes", cityscapes(tmp_path / "data"), tmp_path / "run", "--num-labeled", "2")
    scored = [index for index, iou in enumerate(metrics["iou_per_class"]) if iou is not None]
    assert {0, 2, 6, 13, 18} <= set(scored)
    confusion = np.array(metrics["confusion"])
    assert set(np.flatnonzero(confusion.sum(1))) == {0, 2, 6, 13, 18}  # rows are the truth


def test_the_classes_of_a_known_data_set_are_its_own(tmp_path):
    """Those of a training on something else would give its masks another meaning; evaluate compares the numbers."""
    for dataset, root, number in (("cityscapes", cityscapes(tmp_path / "c"), 19), ("voc", voc(tmp_path / "v"), 21)):
        val = build_dataset(dataset, root, "val", classes_from=["a", "b"])
        assert val.num_classes == number
    mapped = build_dataset("voc", root, "val", classes_from=["road", "car"], label_map=("0:0", "*:1"))
    assert mapped.class_names == ["road", "car"]


def test_a_label_map_decides_how_many_classes_there_are(tmp_path):
    root = folder(tmp_path)
    (root / "classes.txt").write_text("a\nb\nc\n")
    assert build_dataset("folder", root, "train").class_names == ["a", "b", "c"]
    mapped = build_dataset("folder", root, "train", label_map=("2:1", "*:0"))
    assert mapped.class_names == ["class 0", "class 1"]
    (root / "classes.txt").write_text("rest\nthing\n")
    assert build_dataset("folder", root, "train", label_map=("2:1", "*:0")).class_names == ["rest", "thing"]


def test_label_map_entries_that_yaml_takes_for_numbers(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("label_map: [0:0, 255:1]\n")
    with pytest.raises(ValueError, match="label_map: expected a mapping such as .* quoted"):
        TrainConfig.from_yaml(file)
    for text in ("label_map: ['0:0', '255:1']", "label_map: {0: 0, 255: 1}"):
        file.write_text(text)
        assert TrainConfig.from_yaml(file).label_map == ("0:0", "255:1")


@pytest.mark.slow
def test_a_label_map_is_kept_by_evaluate_and_resume(tmp_path):
    root, file = folder(tmp_path / "data", values=(0, 255)), tmp_path / "map.txt"
    file.write_text("0:0\n255:1\n")
    run = tmp_path / "run"
    metrics = two_steps("folder", root, run, "--label-map", str(file), "--stop-after", "1")
    metrics = two_steps("folder", root, run, "--label-map", "0:0", "255:1", "--resume")
    file.unlink()
    result = evaluate.run(evaluate.EvaluateConfig(checkpoint=run / "last.pt", device="cpu"))
    assert result["confusion"] == metrics["confusion"] and len(result["confusion"]) == 2
    with pytest.raises(SystemExit, match="label_map was .* now "):
        two_steps("folder", root, run, "--label-map", "0:1", "255:0", "--resume")
