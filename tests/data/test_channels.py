"""Images that are not RGB: gray, RGBA and bands, from their files to predictions."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from u2pl_fast import evaluate, predict
from u2pl_fast.config import TrainConfig, resolve
from u2pl_fast.data import DataError, build_dataset, read_image, split_dataset
from u2pl_fast.data.files import check_sizes
from u2pl_fast.data.image_format import ImageFormat, mean_color, normalization, viewable
from u2pl_fast.data.views import ViewOptions, Views
from u2pl_fast.inference import predict_labels
from u2pl_fast.models import SegmentationNetwork
from u2pl_fast.saving import checkpoint
from u2pl_fast.train import main, parse, run
from u2pl_fast.training.resume import check_same_run

SIZE = (6, 9)  # height, width


def values(channels: int, dtype=np.uint8, size=SIZE, seed: int = 0) -> np.ndarray:
    highest = 255 if np.dtype(dtype).itemsize == 1 else 10_000
    return np.random.default_rng(seed).integers(0, highest + 1, (*size, channels)).astype(dtype)


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        image = Image.fromarray(pixels)
        (image if mode is None else image.convert(mode)).save(path)
    return path


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_bands_may_lie_first_or_last(tmp_path):
    pixels = values(5)
    for layout in (pixels, pixels.transpose(2, 0, 1)):
        path = save(tmp_path / "a.npy", layout)
        np.testing.assert_array_equal(read_image(path, ImageFormat(5)), pixels)
    gray = save(tmp_path / "b.npy", pixels[:, :, 0])
    np.testing.assert_array_equal(read_image(gray, ImageFormat(1)), pixels[:, :, :1])


def test_where_both_axes_fit_the_last_is_the_bands(tmp_path):
    pixels = values(4, size=(4, 9))
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.npy", pixels), ImageFormat(4)), pixels)


@pytest.mark.parametrize(
    ("dtype", "value_range", "stored", "expected"),
    [
        (np.uint8, None, [0, 7, 255], [0, 7, 255]),
        (np.uint8, (0, 100), [0, 7, 255], [0, 7, 255]),
        (np.uint16, None, [0, 256, 65535], [0, 1, 255]),
        (np.uint16, (0, 10_000), [0, 5000, 60_000], [0, 128, 255]),
        (np.int16, (-100, 100), [-200, 0, 100], [0, 128, 255]),
        (np.float32, (0.0, 1.0), [np.nan, 0.25, np.inf], [0, 64, 255]),
    ],
)
def test_values_become_bytes(tmp_path, dtype, value_range, stored, expected):
    path = save(tmp_path / "a.npy", np.array([stored], dtype))
    assert read_image(path, ImageFormat(1, value_range))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.int32])
def test_values_without_a_scale_are_refused_before_training(tmp_path, dtype):
    path = save(tmp_path / "a.npy", values(5, dtype))
    for look in (read_image, lambda path, image_format: check_sizes(path, None, image_format)):
        with pytest.raises(DataError, match=f"{path}: holds {np.dtype(dtype)} values.*--value-range LOW HIGH"):
            look(path, ImageFormat(5))


def test_photos_become_gray_and_rgba_keeps_its_alpha(tmp_path):
    pixels = values(4)
    path = save(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(read_image(path, ImageFormat(4)), pixels)
    np.testing.assert_array_equal(read_image(path), pixels[:, :, :3])
    luma = np.asarray(Image.fromarray(pixels[:, :, :3]).convert("L"))
    np.testing.assert_array_equal(read_image(path, ImageFormat(1))[:, :, 0], luma)
    gray = save(tmp_path / "gray.png", pixels[:, :, 0])
    np.testing.assert_array_equal(read_image(gray, ImageFormat(1)), pixels[:, :, :1])
    with_alpha = save(tmp_path / "la.png", pixels, "LA")
    assert read_image(with_alpha, ImageFormat(2)).shape == (*SIZE, 2)


def test_16_bit_gray_photos_take_the_range_too(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 1000, 4095]], np.uint16))
    assert read_image(path, ImageFormat(1))[0, :, 0].tolist() == [0, 3, 15]
    assert read_image(path, ImageFormat(1, (0, 4095)))[0, :, 0].tolist() == [0, 62, 255]
    assert read_image(path, ImageFormat(3, (0, 4095)))[0].tolist() == [[0] * 3, [62] * 3, [255] * 3]


@pytest.mark.parametrize(
    ("name", "pixels", "mode", "channels", "found"),
    [
        ("a.png", values(3), None, 4, r"has 3 channels \(mode RGB\)"),
        ("a.png", values(3), "L", 4, r"has 1 channel \(mode L\)"),
        ("a.jpg", values(3), "CMYK", 4, r"mode CMYK"),
        ("a.png", values(4), None, 7, r"has 4 channels \(mode RGBA\)"),
        ("a.npy", values(5), None, 4, r"has 5 channels, but in_channels is 4; its shape is \(6, 9, 5\)"),
        ("a.npy", values(5)[:, :, 0], None, 4, "has 1 channel, "),
        ("a.npy", values(5)[None], None, 5, "has 4 axes, but in_channels is 5"),
        ("a.npy", values(5)[:0], None, 5, "an empty image"),
    ],
)
def test_a_mismatch_names_file_and_channels_before_and_while_reading(tmp_path, name, pixels, mode, channels, found):
    path = save(tmp_path / name, pixels, mode)
    for look in (read_image, lambda path, image_format: check_sizes(path, None, image_format)):
        with pytest.raises(DataError, match=f"{path}: .*{found}"):
            look(path, ImageFormat(channels))


def test_broken_arrays_and_arrays_of_objects_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(b"not an array")
    with pytest.raises(DataError, match=f"{path}: not a readable image"):
        read_image(path, ImageFormat(4))
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=f"{path}: not a readable image"):
        read_image(path, ImageFormat(4))
    with pytest.raises(DataError, match="none.npy: no such file"):
        read_image(tmp_path / "none.npy", ImageFormat(4))


def test_tiff_bands(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pixels = values(6, np.uint16)
    for name, layout, options in (
        ("a.tif", pixels, {"planarconfig": "contig"}),
        ("b.tiff", pixels.transpose(2, 0, 1), {}),
    ):
        tifffile.imwrite(tmp_path / name, layout, photometric="minisblack", compression="zlib", **options)
        read = read_image(tmp_path / name, ImageFormat(6, (0, 10_000)))
        np.testing.assert_array_equal(read, np.round(pixels / np.float32(10_000) * 255).astype(np.uint8))
    check_sizes(tmp_path / "a.tif", save(tmp_path / "mask.png", pixels[:, :, 0].astype(np.uint8)), ImageFormat(6))
    with pytest.raises(DataError, match="a.tif: has 6 channels, but in_channels is 4"):
        check_sizes(tmp_path / "a.tif", None, ImageFormat(4))
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    with pytest.raises(DataError, match="a.tif: not a readable image"):
        read_image(tmp_path / "a.tif", ImageFormat(6))


def test_tiff_bands_without_tifffile_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    path = save(tmp_path / "a.tif", values(4))
    with pytest.raises(DataError, match=f"{path}: .*pip install tifffile"):
        read_image(path, ImageFormat(4))
    np.testing.assert_array_equal(read_image(path), values(4)[:, :, :3])  # PIL reads what it always has


# --- Views ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_views_of_n_channels(channels):
    color = mean_color(normalization(channels)[0])
    image = torch.from_numpy(values(channels, size=(40, 56))).permute(2, 0, 1).contiguous()
    views = Views(ViewOptions((64, 64), scale_range=(1, 1), jitter_prob=1.0, color=color), 255)
    changed = []
    for seed in range(6):
        weak, strong, valid = views.unlabeled(image, 3, seed)
        assert weak.shape == strong.shape == (channels, 64, 64) and weak.dtype == strong.dtype == torch.uint8
        assert (strong[:, ~valid] == torch.tensor(color)[:, None]).all() and valid.sum() == 40 * 56
        changed.append((strong != weak).any((1, 2)))
    assert torch.stack(changed).any(0).all()  # every band


def test_jitter_treats_all_bands_alike():
    """One draw an image: bands that were equal stay equal."""
    band = torch.from_numpy(values(1, size=(24, 24))[:, :, 0])
    views = Views(ViewOptions((24, 24), scale_range=(1, 1), jitter_prob=1.0, color=(115,) * 5), 255)
    for seed in range(5):
        strong = views.unlabeled(band.expand(5, 24, 24).contiguous(), 0, seed)[1]
        assert torch.equal(strong, strong[:1].expand_as(strong))


def test_normalization_defaults_and_what_is_shown():
    assert normalization(3) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = normalization(2)
    assert mean == pytest.approx([0.449] * 2) and std == pytest.approx([0.226] * 2)
    assert normalization(1, [0.2]) == ((0.2,), pytest.approx((0.226,)))
    assert mean_color((0.485, 0.456, 0.406)) == (124, 116, 104) and mean_color((-1, 2)) == (0, 255)
    pixels = values(5)
    np.testing.assert_array_equal(viewable(pixels), pixels[:, :, :3])
    np.testing.assert_array_equal(viewable(pixels[:, :, :2]), np.repeat(pixels[:, :, :1], 3, axis=2))


# --- Network and inference --------------------------------------------------------------------------------------------


def test_padding_and_normalization_follow_the_settings():
    torch.manual_seed(0)
    mean, std = (0.1, 0.2, 0.3, 0.4), (0.5, 0.5, 0.5, 0.25)
    net = SegmentationNetwork("fpn", "mobilenetv3_small_050", 5, in_channels=4, image_mean=mean, image_std=std).eval()
    seen = []
    net.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.full((1, 4, 30, 30), 255, dtype=torch.uint8)
    predict_labels(net, image)
    inside, padding = seen[0][0, :, 0, 0], seen[0][0, :, -1, -1]
    assert seen[0].shape[-2:] == (32, 32)
    torch.testing.assert_close(inside, (1 - torch.tensor(mean)) / torch.tensor(std))
    assert padding.abs().max() < 0.5 / 255 / 0.25 + 1e-6
    with pytest.raises(ValueError, match=r"image: expected \(B, 4, h, w\)"):
        predict_labels(net, image[:, :3])
    with pytest.raises(ValueError, match="images: expected 4 channels, got 3"):
        net(image[:, :3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_channels": 0}, "in_channels: expected at least 1"),
        ({"in_channels": 4, "image_mean": (0.5, 0.5, 0.5)}, "image_mean: .*in_channels=4 channels, got 3"),
        ({"image_std": (0.5, 0.5, 0.0)}, "image_std: expected positive"),
        ({"value_range": (1.0, 1.0)}, "value_range: expected two numbers, the lower first"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        resolve(TrainConfig(**settings))


def test_settings_from_flags_and_yaml(tmp_path):
    config = parse(["--in-channels", "2", "--image-mean", "0.1", "0.2", "--value-range", "0", "4095"])
    assert (config.image_mean, config.value_range) == ((0.1, 0.2), (0.0, 4095.0))
    file = tmp_path / "a.yaml"
    file.write_text("in_channels: 2\nimage_std: [1, 0.2]\n")
    assert TrainConfig.from_yaml(file).image_std == (1.0, 0.2)
    file.write_text("image_std: 1\n")
    with pytest.raises(ValueError, match="image_std: expected"):
        TrainConfig.from_yaml(file)


def test_the_built_in_data_is_rgb_or_gray():
    assert build_dataset("shapes", None, "val", image_format=ImageFormat(1)).image(0).shape[2] == 1
    with pytest.raises(DataError, match="val_00000: has 3 channels, but in_channels is 4"):
        build_dataset("shapes", None, "val", image_format=ImageFormat(4)).image(0)


# --- From files to predictions ----------------------------------------------------------------------------------------


def tree(root: Path, suffix: str, channels: int, dtype) -> Path:
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            save(root / "images" / split / f"{index}{suffix}", values(channels, dtype, (48, 64), index).squeeze())
            label = np.random.default_rng(index).integers(0, 3, (48, 64)).astype(np.uint8)
            save(root / "labels" / split / f"{index}.png", label)
    return root


@pytest.mark.parametrize(
    ("suffix", "channels", "dtype", "options"),
    [
        (".npy", 6, np.uint16, {"value_range": (0, 10_000)}),
        (".png", 1, np.uint8, {"resize": (40, 56)}),
        (".png", 4, np.uint8, {"image_mean": (0.4, 0.4, 0.4, 0.9), "recipe": "paper", "channels_last": True}),
    ],
    ids=["6 bands of 16 bits", "gray", "rgba"],
)
@pytest.mark.slow
def test_trains_resumes_evaluates_and_predicts_without_the_flags(tmp_path, suffix, channels, dtype, options):
    root, out = tree(tmp_path / "data", suffix, channels, dtype), tmp_path / "run"
    config = TrainConfig(
        dataset="folder", data_root=root, num_labeled=2, in_channels=channels, out=out,
        encoder="mobilenetv3_small_050", encoder_weights="none", crop_size=(64, 64), batch_size=2, steps=4,
        sup_only_epochs=0.5, representation_dim=8, projection_width=8, bank_capacity=64,
        eval_every=2, log_every=1, workers=0, threads=1, device="cpu", **options,
    )  # fmt: skip
    config.stop_after = 2
    run(config)
    config.stop_after, config.resume = None, True
    assert run(config)["steps"] == 4
    assert Image.open(out / "pictures" / "labeled-image.png").mode == "RGB"
    scores = evaluate.run(evaluate.EvaluateConfig(checkpoint=out / "last.pt", device="cpu"))
    assert scores["miou"] == pytest.approx(checkpoint.load(out / "last.pt")["scores"]["miou"])
    images = (str(root / "images" / "val"),)
    done, failures = predict.run(
        predict.PredictConfig(images=images, checkpoint=out / "last.pt", out=tmp_path / "seen", device="cpu")
    )
    assert (done, failures) == (2, [])
    assert Image.open(tmp_path / "seen" / "0_mask.png").size == (64, 48)
    assert Image.open(tmp_path / "seen" / "0_overlay.png").mode == "RGB"


def test_a_wrong_count_ends_in_one_line_before_training(tmp_path):
    root = tree(tmp_path / "data", ".npy", 6, np.uint16)
    with pytest.raises(DataError, match=r"0\.npy: has 6 channels, but in_channels is 3"):
        split_dataset(resolve(TrainConfig(dataset="folder", data_root=root)).build_dataset("train"))
    with pytest.raises(SystemExit) as caught:
        main(["--dataset", "folder", "--data-root", str(root), "--in-channels", "5", "--out", str(tmp_path / "run")])
    assert str(caught.value.code).startswith("error: ") and "in_channels is 5" in caught.value.code


def test_a_run_from_before_these_settings_goes_on_and_another_count_is_refused(tmp_path):
    config = resolve(TrainConfig())
    saved = config.to_dict()
    for name in ("in_channels", "value_range", "image_mean", "image_std", "checkpoint_encoder"):
        del saved[name]
    state = {"config": saved, "world_size": 1}
    check_same_run(state, config, 1, tmp_path)
    with pytest.raises(ValueError, match="in_channels was 3, now 1"):
        check_same_run(state, resolve(TrainConfig(in_channels=1)), 1, tmp_path)
