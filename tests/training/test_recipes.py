"""The configurations that come with the package: each loads, resolves, and says what it would train."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from u2pl_fast.config import RECIPE_FILES, TrainConfig, find_config, resolve
from u2pl_fast.data import DATASETS
from u2pl_fast.train import main, parse
from u2pl_fast.training.learner import build_criterion

NAMES = sorted(file.stem for file in RECIPE_FILES.glob("*.yaml"))
CLASSES = {"voc": 21, "cityscapes": 19, "ade20k": 150, "camvid": 11, "folder": 5}
# What reproduces a schedule on one GPU may change.
ONE_GPU = {"batch_size", "accumulate", "amp", "channels_last", "out"}


def config_of(name: str) -> TrainConfig:
    return TrainConfig.from_yaml(find_config(name))


def test_there_are_recipes():
    assert {"voc-blended", "voc-classic", "cityscapes", "ade20k", "camvid", "folder-small"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_resolves_and_its_loss_can_be_built(name):
    config = resolve(config_of(name))
    assert config.out == Path("runs") / name
    assert config.steps if name == "folder-small" else config.epochs and config.steps is None
    assert config.data_root is None and not config.resume
    classes = CLASSES[config.dataset]
    weight = torch.ones(classes) if config.class_weights else None
    criterion = build_criterion(config, classes, 255, class_weight=weight)
    assert criterion.bank is not None and criterion.weigh_pseudo_labels == (name == "camvid")


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_a_recipe_is_a_setting_given_once(name):
    text = find_config(name).read_text()
    lines = [line.split(":")[0] for line in text.splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(set(lines)) == len(yaml.safe_load(text))


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-1gpu")])
def test_one_gpu_has_the_same_schedule_and_global_batch(name):
    one, many = config_of(name), config_of(name.removesuffix("-1gpu"))
    changed = {f.name for f in dataclasses.fields(one) if getattr(one, f.name) != getattr(many, f.name)}
    assert changed == ONE_GPU - {"batch_size"}  # a step is as large, and there are more of them an update
    assert one.batch_size * one.accumulate == 16 and one.amp and one.channels_last
    gpus = int(find_config(name.removesuffix("-1gpu")).read_text().split("--nproc-per-node=")[1].split()[0])
    assert many.batch_size * gpus == 16


def test_names_files_and_flags(tmp_path):
    assert parse(["--config", "camvid", "--seed", "3"]) == dataclasses.replace(config_of("camvid"), seed=3)
    assert parse(["--config=camvid"]) == config_of("camvid")
    assert parse(["--config", str(RECIPE_FILES / "camvid.yaml")]) == config_of("camvid")
    config = parse(["--config", "voc-blended", "--labeled-fraction", "None", "--labeled-list", "mine.txt"])
    assert config.labeled_fraction is None and config.labeled_list == Path("mine.txt")
    own = tmp_path / "camvid"
    own.write_text("seed: 9\n")
    assert parse(["--config", str(own)]).seed == 9


def test_a_name_that_is_none_lists_those_there_are(capsys):
    with pytest.raises(ValueError, match=r"config: no file and no configuration named voc.*camvid, .*voc-blended"):
        find_config("voc")
    with pytest.raises(SystemExit) as caught:
        main(["--config", "absent.yaml"])
    assert "config: cannot read absent.yaml" in str(caught.value.code)


@pytest.mark.parametrize("name", ["camvid", "folder-small"])
def test_recipes_of_folders_say_what_they_would_train(tmp_path, name, capsys):
    """On a tiny tree, with an encoder that downloads nothing."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("val", 1)):
        for kind, shape in (("images", (8, 8, 3)), ("labels", (8, 8))):
            folder = tmp_path / kind / split
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, shape) if kind == "images" else np.full(shape, index % 5)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    flags = ["--data-root", str(tmp_path), "--encoder-weights", "none", "--num-labeled", "20", "--device", "cpu"]
    with pytest.raises(SystemExit, match="freeze_batchnorm: .*--no-freeze-batchnorm"):
        main(["--config", name, "--dry-run", "--freeze-stages", "0", *flags])
    main(["--config", name, "--dry-run", "--no-freeze-batchnorm", "--freeze-stages", "0", *flags])
    said = capsys.readouterr().out
    assert "u2pl (lean) on" in said and "20 labeled and 40 unlabeled images" in said
    config = config_of(name)
    per_epoch = 40 // (config.unlabeled_batch_size or config.batch_size)
    epochs = config.epochs or config.steps / per_epoch
    assert f"= {epochs:.1f} epochs of {per_epoch}" in said
    assert ("supervised on folder" in said) == config.labels_first
    assert "are few" not in said
    main(["--dataset", "folder", "--dry-run", *flags])
    assert "only 60 images: --config folder-small" in capsys.readouterr().out


def test_the_published_data_sets_are_known_by_these_names():
    missing = {config_of(name).dataset for name in NAMES} - set(DATASETS)
    if missing:
        pytest.skip(f"not in this build: {', '.join(sorted(missing))}")
