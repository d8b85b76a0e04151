"""Test the public names, functions and command of the package."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import u2pl_fast
from tests.inference.cases import make_checkpoint
from u2pl_fast.inference import load_model, predict_labels
from u2pl_fast.utils import precision


@pytest.mark.parametrize("name", u2pl_fast.__all__)
def test_every_public_name_is_there(name):
    assert getattr(u2pl_fast, name) is not None and name in dir(u2pl_fast)


def test_the_lists_of_public_names_agree():
    assert {*u2pl_fast._MODULES, *u2pl_fast._HOMES} == set(u2pl_fast.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'U2PLCriteria'"):
        _ = u2pl_fast.U2PLCriteria


@pytest.mark.slow
def test_the_import_alone_brings_no_torch():
    code = "import sys, u2pl_fast; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "import u2pl_fast.train, u2pl_fast.evaluate", "from u2pl_fast.train import run"])
def test_train_and_evaluate_can_be_called_whatever_was_imported_first(first):
    code = f"{first}\nimport u2pl_fast\nassert callable(u2pl_fast.train) and callable(u2pl_fast.evaluate)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_signatures_are_those_of_the_functions():
    assert list(inspect.signature(u2pl_fast.train).parameters) == ["config", "settings"]
    assert list(inspect.signature(u2pl_fast.evaluate).parameters) == ["checkpoint", "settings"]


@pytest.mark.slow
def test_train_load_predict_and_evaluate(tmp_path):
    run = u2pl_fast.train(
        steps=4,
        num_labeled=2,
        batch_size=2,
        crop_size=[64, 64],
        sup_only_epochs=0,
        eval_every=4,
        amp=False,
        device="cpu",
        workers=0,
        out=tmp_path / "run",
    )
    assert run.folder == tmp_path / "run" and run.checkpoint == tmp_path / "run" / "best.pt"
    assert run.miou == run.metrics["best_miou"] and run.config["steps"] == 4 and run.log
    assert run.class_names[0] == "background" and len(run.class_names) == 6
    model = run.load("cpu")
    assert model.class_names == run.class_names
    scores = u2pl_fast.evaluate(run.checkpoint, device="cpu")
    assert scores["miou"] == pytest.approx(run.miou, abs=1e-6) and scores["class_names"] == run.class_names
    image = np.zeros((40, 56, 3), np.uint8)
    assert model.predict(image).label.shape == (40, 56)
    read = u2pl_fast.Run.read(tmp_path / "run")
    assert (read.metrics, read.log) == (run.metrics, run.log)


def test_train_names_a_wrong_setting(tmp_path):
    for settings, message in [
        ({"stepz": 3}, "train: unknown setting stepz; did you mean steps\\?"),
        ({"steps": "many"}, "train: steps: expected int, got .many."),
        ({"method": "fixmatch"}, "train: method: expected .*, got 'fixmatch'"),
        ({"alpha_0": 0.1}, "train: alpha_0 has a new name; use --alpha"),
        ({"config": "folder-big"}, "config: no file and no configuration named folder-big"),
    ]:
        with pytest.raises(ValueError, match=message):
            u2pl_fast.train(**settings, out=tmp_path)
    with pytest.raises(ValueError, match="amp: expected one of off, bfloat16, float16, got True"):
        u2pl_fast.train(u2pl_fast.TrainConfig(amp=True), out=tmp_path)
    with pytest.raises(ValueError, match="evaluate: unknown setting spilt"):
        u2pl_fast.evaluate(tmp_path / "best.pt", spilt="val")


def test_settings_override_a_configuration(tmp_path):
    run = u2pl_fast.train(
        "camvid", dataset="shapes", encoder="resnet10t", encoder_weights="none", freeze_batchnorm=False, dry_run=True
    )
    assert run.config["representation_dim"] == 128 and not run.log
    assert run.miou is None


# --- prediction -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    return make_checkpoint(folder / "a.pt", folder, resize=(40, 56))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_kind_of_input_gives_the_same(checkpoint, pixels, tmp_path):
    model = u2pl_fast.load(checkpoint, "cpu")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = model.predict(pixels)
    assert expected.label.shape == expected.confidence.shape == expected.entropy.shape == (50, 70)
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), tensor):
        assert equal(model.predict(given), expected)
    batch = model.predict(torch.stack([tensor, tensor.flip(-1)]))
    assert batch.label.shape == (2, 50, 70)
    torch.testing.assert_close(batch.entropy[0], expected.entropy, rtol=1e-4, atol=1e-5)
    listed = model.predict([pixels, tmp_path / "a.png"])
    assert len(listed) == 2 and all(equal(one, expected) for one in listed)


def test_a_gray_image_is_repeated(checkpoint, pixels):
    model = u2pl_fast.load(checkpoint, "cpu")
    gray = pixels[..., 0]
    assert equal(model.predict(gray), model.predict(np.repeat(gray[..., None], 3, 2)))


def test_options_are_those_of_predict_labels(checkpoint, pixels):
    model = u2pl_fast.load(checkpoint, "cpu")
    network, config, state = load_model(checkpoint)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    direct = predict_labels(network, tensor, flip=True, scales=(1, 1.5))
    found = model.predict(pixels, flip=True, scales=(1, 1.5), resize=(0, 0))
    assert all(torch.equal(a, b[0]) for a, b in zip(found, direct, strict=True))
    direct = predict_labels(network, tensor, protocol="slide", window=(32, 32), stride=(16, 16))
    found = model.predict(pixels, protocol="slide", window=(32, 32), stride=(16, 16), resize=(0, 0))
    assert all(torch.equal(a, b[0]) for a, b in zip(found, direct, strict=True))
    assert model.num_classes == state["num_classes"] and model.config == config
    assert "classes, cpu" in repr(model)


def test_amp_is_passed_on(checkpoint, pixels, monkeypatch):
    monkeypatch.setattr(precision, "cpu_computes_in", lambda dtype: True)
    model = u2pl_fast.load(checkpoint, "cpu")
    assert not torch.equal(model.predict(pixels, amp="bfloat16").entropy, model.predict(pixels).entropy)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), TypeError, "uint8 array .*, got float32"),
        (torch.zeros(3, 4, 4), TypeError, "expected a uint8 tensor"),
        (torch.zeros(4, 4, dtype=torch.uint8), TypeError, "expected a uint8 tensor"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, "has 2 channels"),
        (None, TypeError, "expected a path, .*, got NoneType"),
        ("nowhere.jpg", ValueError, "nowhere.jpg: no such file"),
    ],
    ids=["float array", "float tensor", "two dimensions", "two channels", "nothing", "no file"],
)
def test_bad_images_are_named(checkpoint, given, error, message):
    with pytest.raises(error, match=message):
        u2pl_fast.load(checkpoint, "cpu").predict(given)


def test_load_names_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "a.pt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="a.pt"):
        u2pl_fast.load(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="device: 'tpu' is not a torch device"):
        u2pl_fast.load(tmp_path / "a.pt", "tpu")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_lists_its_commands(capsys):
    from u2pl_fast.__main__ import COMMANDS, main

    main(["--help"])
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in COMMANDS)
    main(["--version"])
    assert capsys.readouterr().out == f"u2pl_fast {u2pl_fast.__version__}\n"
    with pytest.raises(SystemExit, match="no command trian; choose one of train, "):
        main(["trian"])


def test_the_command_runs_a_command(checkpoint, tmp_path):
    from u2pl_fast.__main__ import main

    main(["export", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "a.safetensors")])
    assert equal_weights(u2pl_fast.load(tmp_path / "a.safetensors", "cpu"), u2pl_fast.load(checkpoint, "cpu"))
    with pytest.raises(SystemExit, match="error: --colour has a new name; use --color"):
        main(["predict", "a.jpg", "--checkpoint", "a.pt", "--out", "b", "--colour"])


def equal_weights(first, second):
    one, two = first.network.state_dict(), second.network.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_versions_agree():
    from pathlib import Path

    citation = Path(__file__).parents[1] / "CITATION.cff"
    if citation.exists():
        assert f"version: {u2pl_fast.__version__}" in citation.read_text()
    assert json.dumps(u2pl_fast.__version__).count(".") == 2
