"""The commands: from a checkpoint to scores in a JSON file and to pictures."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.inference.cases import NAMES, failure, make_checkpoint, run_predict
from u2pl_fast import evaluate, predict
from u2pl_fast.data import build_dataset, evaluation_samples
from u2pl_fast.inference import evaluate_model, load_model, predict_labels
from u2pl_fast.inference.input_files import result_names
from u2pl_fast.pictures.palette import colorize, heat, palette
from u2pl_fast.pictures.prediction import with_legend
from u2pl_fast.saving import checkpoint
from u2pl_fast.utils import precision

# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluate_writes_the_score_of_the_network_that_was_trained(trained, root, tmp_path, capsys):
    out = tmp_path / "new" / "scores.json"
    evaluate.main(["--checkpoint", str(trained), "--json", str(out), "--device", "cpu"])
    result = json.loads(out.read_text())
    assert set(result) >= {"miou", "iou_per_class", "confusion", "protocol", "network", "images"}
    assert (result["network"], result["protocol"], result["images"]) == ("teacher", "whole", 4)
    matrix = np.array(result["confusion"])
    assert matrix.sum() == 3 * 50 * 69 + 33 * 63
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    expected = matrix.diagonal()[union > 0] / union[union > 0]
    assert result["miou"] == pytest.approx(expected.mean())

    model, config, state = load_model(trained)
    dataset = build_dataset("folder", root, "val", classes_from=state["class_names"])
    direct = evaluate_model(model, evaluation_samples(dataset, config.resize), num_classes=4)
    assert direct["confusion"] == result["confusion"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES) and f"{result['miou']:.4f}" in printed
    assert os.listdir(out.parent) == ["scores.json"]


def test_evaluate_options_change_what_they_should(trained, root, monkeypatch, capsys):
    def confusion(**options):
        return evaluate.run(evaluate.EvaluateConfig(checkpoint=trained, device="cpu", **options))["confusion"]

    teacher = confusion()
    assert confusion(network="teacher", data_root=root, dataset="folder", batch_size=1) == teacher
    variants = [
        confusion(network="student"),
        confusion(protocol="slide"),
        confusion(protocol="slide", window=(32, 32), stride=(16, 16)),
        confusion(resize=(32, 32)),
        confusion(flip=True),
    ]
    for variant in variants:
        assert variant != teacher
        assert np.sum(variant) == np.sum(teacher)  # labels are never resized
    monkeypatch.setattr(precision, "cpu_computes_in", lambda dtype: True)
    rounded = confusion(channels_last=True, amp="bfloat16")
    monkeypatch.setattr(precision, "cpu_computes_in", lambda dtype: False)
    capsys.readouterr()
    assert confusion(channels_last=True, amp="bfloat16") == confusion(channels_last=True) != rounded
    assert capsys.readouterr().err.strip() == "--amp ignored: this CPU has no native bfloat16; using float32"


def test_evaluate_takes_size_and_protocol_from_the_training(root, tmp_path):
    path = make_checkpoint(tmp_path / "a.pt", root, resize=(40, 56), protocol="slide", teacher=False)
    default = evaluate.run(evaluate.EvaluateConfig(checkpoint=path, device="cpu"))
    assert (default["protocol"], default["network"]) == ("slide", "student")
    explicit = evaluate.EvaluateConfig(
        checkpoint=path, resize=(40, 56), protocol="slide", window=(48, 48), device="cpu"
    )
    assert evaluate.run(explicit)["confusion"] == default["confusion"]
    own_size = evaluate.EvaluateConfig(checkpoint=path, resize=(0, 0), device="cpu")
    assert evaluate.run(own_size)["confusion"] != default["confusion"]


def test_evaluate_refuses_bad_input_in_one_line(trained, root, tmp_path):
    folder = tmp_path
    (folder / "text.pt").write_text("hello")
    student_only = make_checkpoint(folder / "student.pt", root, teacher=False)
    cases = [
        (["--checkpoint", folder / "none.pt"], "no checkpoint at"),
        (["--checkpoint", folder / "text.pt"], "text.pt is truncated, damaged"),
        (["--checkpoint", trained, "--split", "test"], "test: no such folder"),
        (["--checkpoint", trained, "--dataset", "coco"], "--dataset must be one of"),
        (["--checkpoint", trained, "--dataset", "shapes"], "shapes has 6 classes"),
        (["--checkpoint", trained, "--data-root", folder / "x"], "no such folder"),
        (["--checkpoint", trained, "--resize", "-1", "5"], "resize: expected"),
        (["--checkpoint", trained, "--device", "cuda:99"], "device"),
        (["--checkpoint", trained, "--batch-size", "0"], "batch_size"),
        (["--checkpoint", student_only, "--network", "teacher"], "holds no teacher"),
        (["--checkpoint", trained, "--protocol", "slide", "--stride", "99", "1"], "stride: expected"),
        (["--checkpoint", trained, "--window", "32", "32"], "no windows; add --protocol slide"),
        (["--checkpoint", trained, "--json", folder / "text.pt" / "a.json"], "text.pt"),
    ]
    for arguments, message in cases:
        assert message in failure(evaluate, arguments), message


def test_a_checkpoint_of_another_network_is_refused(trained, tmp_path):
    state = checkpoint.load(trained)
    del state["teacher"]["classifier.weight"]
    checkpoint.save(tmp_path / "a.pt", state)
    assert "missing from the file: classifier.weight" in failure(evaluate, ["--checkpoint", tmp_path / "a.pt"])
    checkpoint.save(tmp_path / "b.pt", state | {"config": state["config"] | {"new_option": 1}})
    assert "unknown setting new_option" in failure(evaluate, ["--checkpoint", tmp_path / "b.pt"])


@pytest.mark.slow
def test_as_a_program_on_the_built_in_data(tmp_path):
    make_checkpoint(tmp_path / "a.pt", None, num_classes=6, class_names=list("abcdef"), dataset="shapes")
    package = os.path.dirname(evaluate.__file__)
    environment = os.environ | {"PYTHONPATH": os.path.dirname(package), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "u2pl_fast.evaluate",
        "--checkpoint",
        "a.pt",
        "--device",
        "cpu",
        "--json",
        "a.json",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "a.json").read_text())["images"] == 100


# --- predict ----------------------------------------------------------------------------------------------------------


def test_predict_writes_mask_overlay_and_entropy(trained, root, tmp_path):
    source = root / "images" / "val" / "2.png"
    assert run_predict(trained, tmp_path, source) == (1, [])
    kinds = ("entropy", "mask", "overlay", "reliability")
    assert sorted(os.listdir(tmp_path)) == [*(f"2_{kind}.png" for kind in kinds), "gallery.html"]
    model, _, _ = load_model(trained)
    pixels = np.array(Image.open(source))
    stats = predict_labels(model, torch.from_numpy(pixels).permute(2, 0, 1)[None])

    mask = Image.open(tmp_path / "2_mask.png")
    assert mask.mode == "L" and np.array_equal(np.array(mask), stats.label[0].numpy())
    assert len(np.unique(np.array(mask))) > 1
    overlay = np.array(Image.open(tmp_path / "2_overlay.png"))
    blend = 0.45 * pixels + 0.55 * palette(4)[np.array(mask)]
    assert overlay.shape[0] > 33 and np.abs(overlay[:33, :64] - blend).max() <= 0.5 + 1e-6
    entropy = np.array(Image.open(tmp_path / "2_entropy.png"))
    assert np.array_equal(entropy, heat(stats.entropy[0].numpy() / math.log(4)))


def test_predict_turns_images_upright_and_keeps_their_size(trained, tmp_path):
    source = tmp_path / "in" / "phone.jpg"
    source.parent.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 61, 3)).astype(np.uint8)).save(source, exif=exif)
    run_predict(trained, tmp_path / "out", source, resize=(24, 24))
    for kind in ("mask", "entropy"):
        assert Image.open(tmp_path / "out" / f"phone_{kind}.png").size == (40, 61)


def test_predict_goes_on_after_unreadable_images(trained, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "a.png")
    Image.new("LA", (20, 20)).save(folder / "z.png")
    Image.new("I;16", (20, 20)).save(folder / "deep.png")
    Image.new("RGB", (1, 1)).save(folder / "pixel.webp")
    (folder / "broken.jpg").write_bytes((folder / "a.png").read_bytes()[:50])
    (folder / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    message = failure(
        predict, [folder, tmp_path / "gone.png", "--checkpoint", trained, "--out", out, "--device", "cpu"]
    )
    assert message == "error: 2 inputs could not be used; they are listed above"
    errors = capsys.readouterr().err.splitlines()
    assert (
        len(errors) == 2 and "broken.jpg: not a readable image" in errors[0] and "gone.png: no such file" in errors[1]
    )
    assert {path.name for path in out.glob("*_mask.png")} == {f"{x}_mask.png" for x in ("a", "z", "deep", "pixel")}


def test_predict_takes_patterns_and_never_its_own_results(trained, root, tmp_path):
    for name in ("0", "1"):
        (tmp_path / f"{name}.png").write_bytes((root / "images" / "val" / f"{name}.png").read_bytes())
    assert run_predict(trained, tmp_path, f"{tmp_path}/[01].png", tmp_path / "0.png") == (2, [])
    before = sorted(os.listdir(tmp_path))
    assert run_predict(trained, tmp_path, tmp_path) == (2, [])
    assert sorted(os.listdir(tmp_path)) == before
    done, failures = run_predict(trained, tmp_path, f"{tmp_path}/*.gif")
    assert done == 0 and "no image matches" in failures[0]


def test_predict_refuses_bad_input_in_one_line(trained, root, tmp_path):
    image = root / "images" / "val" / "0.png"
    (tmp_path / "file").write_text("")
    common = ["--checkpoint", trained, "--out", tmp_path]
    assert "images: name at least one" in failure(predict, common)
    assert "opacity" in failure(predict, [image, *common, "--opacity", "2"])
    assert "no checkpoint" in failure(predict, [image, "--checkpoint", tmp_path / "x.pt", "--out", tmp_path])
    assert "file" in failure(predict, [image, "--checkpoint", trained, "--out", tmp_path / "file" / "out"])


def test_masks_of_many_classes_have_16_bits(root, tmp_path):
    names = [f"class {index}" for index in range(300)]
    path = make_checkpoint(tmp_path / "a.pt", root, num_classes=300, class_names=names)
    model, _, _ = load_model(path)
    source = root / "images" / "val" / "0.png"
    run_predict(path, tmp_path / "out", source)
    mask = np.array(Image.open(tmp_path / "out" / "0_mask.png"))
    stats = predict_labels(model, torch.from_numpy(np.array(Image.open(source))).permute(2, 0, 1)[None])
    assert np.array_equal(mask, stats.label[0].numpy()) and mask.max() > 255


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/x.png", "/a/y.jpg"], ["x", "y"]),
        (["/a/x.png", "/b/x.png", "/b/y.png"], ["a_x", "b_x", "y"]),
        (["/a/c/x.png", "/b/c/x.png"], ["a_c_x", "b_c_x"]),
        (["/a/x.png", "/a/x.jpg"], ["a_x", "a_x_2"]),
        (["/a/x.png", "/b/x.png", "/c/a_x.png"], None),
        (["/a/b_x.png", "/a_b/x.png", "/q/x.png", "/q/b_x.png"], None),
        (["/x.png", "/x.jpg", "/x_2.png"], None),
        (["/p/x.jpg", "/p/x.png", "/q/r/s/y.jpg"], ["p_x", "p_x_2", "y"]),
    ],
)
def test_no_result_overwrites_another(paths, names):
    got = result_names([Path(path) for path in paths])
    assert len(set(got)) == len(paths) and not any("/" in name for name in got)
    if names is not None:
        assert got == names


def test_the_legend_names_the_classes_that_occur(root):
    label = np.zeros((60, 300), np.uint8)
    label[:, :10] = 2
    picture = Image.new("RGB", (300, 60))
    strip = np.array(with_legend(picture, np.bincount(label.ravel(), minlength=4), NAMES))[60:]
    colors = {tuple(color) for color in strip.reshape(-1, 3).tolist()}
    for index in range(4):
        assert (tuple(palette(4)[index].tolist()) in colors) == (index in (0, 2))
    assert with_legend(Image.new("RGB", (10, 8)), np.full(4, 20), NAMES).size[0] == 240
    assert with_legend(picture, np.full(4, 20), []) is picture


# --- colors ----------------------------------------------------------------------------------------------------------


def test_the_palette_is_distinct_and_keeps_a_classes_color():
    colors = palette(1024)
    assert len(np.unique(colors, axis=0)) == 1024
    assert np.array_equal(palette(21), colors[:21])
    assert np.array_equal(palette(1030)[1024:], colors[:6])
    gap = np.abs(colors[:21, None].astype(int) - colors[None, :21]).sum(-1)
    assert gap[~np.eye(21, dtype=bool)].min() > 60


def test_ignored_pixels_are_black():
    labels = np.array([[0, 3, 255, -1]], np.int16)
    assert colorize(labels, 4)[0].tolist() == [*palette(4)[[0, 3]].tolist(), [0, 0, 0], [0, 0, 0]]
    assert colorize(labels[:, :3].astype(np.uint8), 300).shape == (1, 3, 3)


def test_heat_grows_lighter_evenly():
    colors = heat(np.linspace(0, 1, 256)).astype(float) / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = 116 * np.cbrt(luminance.clip(0.008856)) - 16
    assert (np.diff(luminance) > -1e-4).all()
    assert np.diff(lightness[32::32]).min() > 4 and lightness[-1] > 90 > 15 > lightness[0]
    assert heat(np.array([-1.0, 2.0, np.nan])).tolist() == [
        heat(np.array(0.0)).tolist(),
        heat(np.array(1.0)).tolist(),
        [0, 0, 0],
    ]
