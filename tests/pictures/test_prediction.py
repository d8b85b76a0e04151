"""Test the inputs, pictures and gallery of predict."""

import base64
import io
import math
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.inference.cases import failure, make_checkpoint, run_predict
from u2pl_fast import predict
from u2pl_fast.data.files import read_mask
from u2pl_fast.inference import load_model, predict_labels, predictor
from u2pl_fast.inference.input_files import find_images
from u2pl_fast.pictures import gallery, prediction
from u2pl_fast.pictures.gallery import Gallery
from u2pl_fast.pictures.palette import palette
from u2pl_fast.reference import PixelStats


def stats_of(entropy, label=None):
    entropy = torch.as_tensor(entropy, dtype=torch.float32)
    label = torch.zeros_like(entropy, dtype=torch.uint8) if label is None else torch.as_tensor(label)
    return PixelStats(label, torch.ones_like(entropy), entropy)


# --- inputs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    for name in ("a.png", "b.JPG", "notes.txt", "scan.jp2", "x/c.png", "x/y/d.tif", ".hidden/e.png", "x/.f.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.png", ["a.png"]),
        ("**/*.png", ["a.png", "x/c.png"]),
        ("**", ["a.png", "b.JPG", "x/c.png", "x/y/d.tif"]),
        ("x/**/*", ["x/c.png", "x/y/d.tif"]),
        ("[ab].*", ["a.png", "b.JPG"]),
        ("*.jp2", ["scan.jp2"]),
        ("", ["a.png", "b.JPG", "x/c.png", "x/y/d.tif"]),
        ("notes.txt", ["notes.txt"]),  # named one by one: read, and refused then
    ],
)
def test_folders_and_patterns(tree, pattern, names):
    paths, failures = find_images([str(tree / pattern)])
    assert [path.relative_to(tree).as_posix() for path in paths] == names and not failures


def test_an_image_that_is_named_twice_is_taken_once(tree):
    paths, _ = find_images([str(tree / "x" / "c.png"), str(tree), f"{tree}/x/../x/*.png"])
    assert len(paths) == 4 and paths[0] == tree / "x" / "c.png"


def test_a_pattern_from_home(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree))
    assert find_images(["~/*.png"]) == ([tree / "a.png"], [])


@pytest.mark.parametrize("pattern", ["*.gif", "no*", "**/*.txt.png", "notes.*"])
def test_a_pattern_without_an_image_is_named(tree, pattern):
    paths, failures = find_images([str(tree / pattern)])
    assert paths == [] and len(failures) == 1 and f"{tree / pattern}: no image matches this pattern" in failures[0]


# --- maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.2, 0.5, 1.0])
def test_alpha_is_the_share_of_unreliable_pixels(alpha):
    entropy = torch.rand(40, 50, generator=torch.Generator().manual_seed(0))
    found = prediction.maps_of(stats_of(entropy), 4, alpha=alpha)
    assert found.unreliable_share == pytest.approx(alpha, abs=1 / 2000 + 1e-9)
    assert found.gamma == pytest.approx(np.quantile(entropy.numpy(), 1 - alpha), abs=1e-6)
    unreliable = found.reliability == prediction.UNRELIABLE
    assert np.array_equal(unreliable, entropy.numpy() > np.float32(found.gamma))


def test_pixels_at_the_threshold_are_neither():
    found = prediction.maps_of(stats_of([[0.1, 0.5, 0.5, 0.9]]), 4, gamma=0.5)
    assert found.reliability.tolist() == [
        [prediction.RELIABLE, prediction.NEITHER, prediction.NEITHER, prediction.UNRELIABLE]
    ]
    flat = prediction.maps_of(stats_of(np.full((4, 4), 0.3)), 4, alpha=0.2)
    assert (flat.reliability == prediction.NEITHER).all() and flat.unreliable_share == 0


def test_one_gamma_finds_more_in_an_uncertain_image():
    low, high = (prediction.maps_of(stats_of(torch.linspace(0, top, 100)[None]), 4, gamma=0.5) for top in (0.6, 1.3))
    assert low.unreliable_share < 0.2 < 0.5 < high.unreliable_share


def test_entropy_is_shown_as_a_share_of_its_greatest():
    found = prediction.maps_of(stats_of(np.full((2, 2), math.log(4))), 4)
    assert np.allclose(found.uncertainty, 1)


def test_maps_of_one_class_and_of_one_pixel():
    found = prediction.maps_of(stats_of([[0.0]]), 1)
    assert found.areas.tolist() == [1] and found.uncertainty.tolist() == [[0.0]]


def test_the_reliability_picture_holds_the_maps_numbers(trained, root, tmp_path):
    source = root / "images" / "val" / "0.png"
    run_predict(trained, tmp_path, source, alpha=0.3)
    picture = Image.open(tmp_path / "0_reliability.png")
    values = np.array(picture)
    assert picture.mode == "P" and set(np.unique(values)) <= {0, 1, 2}
    assert (values == prediction.UNRELIABLE).mean() == pytest.approx(0.3, abs=0.001)
    model, _, _ = load_model(trained)
    entropy = predict_labels(model, torch.from_numpy(np.array(Image.open(source))).permute(2, 0, 1)[None]).entropy[0]
    assert entropy[values == prediction.UNRELIABLE].min() > entropy[values == prediction.RELIABLE].max()
    colors = np.array(picture.convert("RGB"))
    assert (colors[values == 2] == prediction.RELIABILITY_COLORS[2]).all()


def test_color_masks_hold_class_ids_too(trained, root, tmp_path):
    source = root / "images" / "val" / "0.png"
    run_predict(trained, tmp_path / "gray", source, only=("mask",))
    run_predict(trained, tmp_path / "color", source, only=("mask",), color=True)
    assert os.listdir(tmp_path / "gray") == os.listdir(tmp_path / "color") == ["0_mask.png"]
    ids = read_mask(tmp_path / "gray" / "0_mask.png")
    picture = Image.open(tmp_path / "color" / "0_mask.png")
    assert np.array_equal(np.array(picture), ids) and np.array_equal(read_mask(tmp_path / "color" / "0_mask.png"), ids)
    assert np.array_equal(np.array(picture.convert("RGB")), palette(4)[ids])


def test_what_is_written_can_be_chosen(trained, root, tmp_path, capsys):
    source = str(root / "images" / "val" / "0.png")
    common = [source, "--checkpoint", str(trained), "--device", "cpu"]
    predict.main([*common, "--out", str(tmp_path / "a"), "--only", "mask", "reliability"])
    assert sorted(os.listdir(tmp_path / "a")) == ["0_mask.png", "0_reliability.png"]
    assert "*_{mask,reliability}.png" in capsys.readouterr().out
    predict.main([*common, "--out", str(tmp_path / "b"), "--only", "gallery", "--scales", "0.5", "1", "--flip"])
    assert os.listdir(tmp_path / "b") == ["gallery.html"]
    text = (tmp_path / "b" / "gallery.html").read_text()
    assert "scales 0.5, 1, mirrored too" in text and text.count("<article") == 1


def test_scales_change_the_prediction(trained, root, tmp_path):
    source = root / "images" / "val" / "0.png"
    for name, scales in (("one", (1.0,)), ("three", (0.75, 1.0, 1.25))):
        run_predict(trained, tmp_path / name, source, only=("mask", "entropy"), scales=scales)
    one, three = (np.array(Image.open(tmp_path / name / "0_entropy.png")) for name in ("one", "three"))
    assert one.shape == three.shape and not np.array_equal(one, three)


def test_large_overlays_are_drawn_in_strips(monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (37, 23, 3)).astype(np.uint8)
    found = prediction.maps_of(stats_of(np.zeros((37, 23)), rng.integers(0, 4, (37, 23)).astype(np.uint8)), 4)
    whole = np.array(prediction.overlay(found, pixels, 0.4))
    monkeypatch.setattr(prediction, "_STRIP_PIXELS", 50)
    assert np.array_equal(np.array(prediction.overlay(found, pixels, 0.4)), whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha", "1.5"], "alpha: expected a number in [0, 1]"),
        (["--gamma", "-1"], "gamma: expected an entropy"),
        (["--gallery-limit", "0"], "gallery_limit: expected at least 1"),
        (["--scales", "0", "1"], "scales: expected positive factors"),
    ],
)
def test_refuses_bad_settings_in_one_line(trained, root, tmp_path, arguments, message):
    image = root / "images" / "val" / "0.png"
    assert message in failure(predict, [image, "--checkpoint", trained, "--out", tmp_path, *arguments])


def test_a_palette_does_not_hold_300_classes(root, tmp_path):
    path = make_checkpoint(tmp_path / "a.pt", root, num_classes=300, class_names=[str(x) for x in range(300)])
    image = root / "images" / "val" / "0.png"
    message = failure(predict, [image, "--checkpoint", path, "--out", tmp_path / "out", "--color", "--device", "cpu"])
    assert "color: a palette holds 256 classes" in message


def test_too_large_for_the_memory_is_named(trained, root, tmp_path, monkeypatch, capsys):
    def no_memory(model, image, size, **options):
        if size[0] == 33:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return predict_labels(model, image, size, **options)

    monkeypatch.setattr(predictor, "predict_labels", no_memory)
    done, failures = run_predict(trained, tmp_path, root / "images" / "val")
    assert done == 3 and len(failures) == 1
    assert "2.png: too large for the memory of cpu; use --protocol slide" in failures[0] == capsys.readouterr().err[:-1]


# --- gallery ----------------------------------------------------------------------------------------------------------


def pictures_of(text):
    return [
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    ]


def test_the_gallery_is_one_small_file_that_refers_to_nothing(trained, root, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    big = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 45, 3)).astype(np.uint8)).resize((1800, 1200))
    big.save(folder / "big <photo>.png")
    (folder / "small.png").write_bytes((root / "images" / "val" / "2.png").read_bytes())
    assert run_predict(trained, tmp_path / "out", folder, resize=(32, 48)) == (2, [])
    text = (tmp_path / "out" / "gallery.html").read_text()
    links = re.findall(r'(?:src|href)\s*=\s*["\']?([^"\'\s>]+)', text)
    assert len(links) == 8 and all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert not re.findall(r"https?:|url\(|@import|<link|<iframe", re.sub(r'"data:[^"]*"', "", text))
    assert len(text) < 400_000 < os.path.getsize(folder / "big <photo>.png")
    sizes = [picture.size for picture in pictures_of(text)]
    assert sizes == [(360, 240)] * 4 + [(64, 33)] * 4
    assert "big &lt;photo&gt;.png" in text and "<photo>" not in text
    assert all(word in text for word in ("photo", "overlay", "entropy", "reliability", "unreliable: the 20% of each"))
    shares = [float(share) for share in re.findall(r"title=\"[^\"]* ([\d.]+)%\"", text.split("<article")[1])]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert text.count("<article") == 2 and 'data-index="1"' in text


def make(gallery_of, count):
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        found = prediction.maps_of(stats_of(rng.random((8, 8)), np.full((8, 8), index % 2, np.uint8)), 3)
        drawn = {"overlay": prediction.overlay(found, pixels, 0.5), "entropy": prediction.entropy(found)}
        gallery_of.add(index, f"image {index}", pixels, found, drawn | {"reliability": prediction.reliability(found)})
    return gallery_of.page()


def test_the_gallery_of_many_images_shows_some_and_counts_all():
    page = make(Gallery(["sky", "road", "tree"], total=100, limit=7, alpha=0.2, gamma=None), 100)
    shown = [int(index) for index in re.findall(r'data-index="(\d+)"', page)]
    assert shown == [index * 100 // 7 for index in range(7)]
    assert "100; 7 are shown (spread evenly over all)" in page
    head = page.split("<article")[0]
    assert "sky 50.0%, road 50.0%" in head and "tree" not in head


def test_the_gallery_stops_at_its_size_and_says_so(monkeypatch):
    monkeypatch.setattr(gallery, "MAX_BYTES", 2**14)
    page = make(Gallery(["sky", "road", "tree"], total=60, limit=1000, alpha=0.2, gamma=0.4), 60)
    assert 1 < page.count("<article") < 20 and len(page) < 2**14 + 16_000
    assert "60; " in page and "the page reached 0 MiB" in page and "entropy above γ = 0.4 nats" in page


def test_a_run_that_is_stopped_leaves_the_gallery_of_what_it_did(trained, root, tmp_path, monkeypatch):
    calls = []

    def stop(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict_labels(*arguments, **options)

    monkeypatch.setattr(predictor, "predict_labels", stop)
    common = [str(root / "images" / "val"), "--checkpoint", str(trained), "--device", "cpu", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="interrupted; finished results are in"):
        predict.main(common)
    text = (tmp_path / "gallery.html").read_text()
    assert text.count("<article") == 2 and "2 of 4; the others" in text
    assert len(list(tmp_path.glob("*_mask.png"))) == 2


def test_no_image_no_gallery(trained, tmp_path):
    done, failures = run_predict(trained, tmp_path / "out", tmp_path / "gone.png")
    assert done == 0 and len(failures) == 1 and os.listdir(tmp_path / "out") == []
