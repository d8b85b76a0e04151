"""Means of windows, mirror images and scales against loops that hold every probability at full size."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as transforms

from tests.inference.small_networks import Wide, images
from u2pl_fast.inference import averaging, evaluate_model, predict_labels
from u2pl_fast.inference.averaging import SlidingView, WholeView, mean_stats, window_starts

MEAN = (124, 116, 104)


def network_probabilities(model, image, size, flip):
    """Probabilities of a padded image at its own size, cut to ``size``."""
    logits = model(image).logits
    if flip:
        mirrored = model(image.flip(-1)).logits.flip(-1)
        logits = ((logits.softmax(1) + mirrored.softmax(1)) / 2).log()
    full = F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=model.align_corners)
    return full.softmax(1)[..., : size[0], : size[1]]


def padded(image, multiple):
    height, width = (-(-side // multiple) * multiple for side in image.shape[-2:])
    out = torch.tensor(MEAN, dtype=torch.uint8).view(1, 3, 1, 1).repeat(len(image), 1, height, width)
    out[..., : image.shape[-2], : image.shape[-1]] = image
    return out


def plain_loop(model, image, scales, *, window=None, stride=None, flip=False):
    """The mean probabilities of all scales, at the image's size, where no scale needs padding of the result."""
    size, total = image.shape[-2:], 0
    for scale in scales:
        sides = [round(scale * side) for side in size]
        scaled = transforms.resize(image, sides, antialias=True)
        if window is None:
            logits = model(scaled).logits
            if flip:
                logits = ((logits.softmax(1) + model(scaled.flip(-1)).logits.flip(-1).softmax(1)) / 2).log()
            up = F.interpolate(logits, size=size, mode="bilinear", align_corners=model.align_corners)
            total = total + up.softmax(1)
            continue
        here = torch.zeros(len(image), 5, *sides)
        visits = torch.zeros(sides)
        for top in window_starts(sides[0], min(window[0], sides[0]), stride[0]):
            for left in window_starts(sides[1], min(window[1], sides[1]), stride[1]):
                part = (..., slice(top, top + window[0]), slice(left, left + window[1]))
                cut = scaled[part]
                here[part] += network_probabilities(model, padded(cut, model.pad_multiple), cut.shape[-2:], flip)
                visits[part[1:]] += 1
        total = total + F.interpolate(here / visits, size=size, mode="bilinear", align_corners=False)
    return total / len(scales)


def assert_stats(stats, expected):
    entropy = -torch.xlogy(expected, expected).sum(1)
    torch.testing.assert_close(stats.confidence, expected.amax(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats.entropy, entropy, rtol=1e-4, atol=1e-5)
    chosen = expected.gather(1, stats.label.long()[:, None])[:, 0]
    assert (chosen >= expected.amax(1) - 1e-5).all()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
def test_whole_scales_equal_the_plain_loop(align_corners, flip):
    model, image = Wide(4, align_corners=align_corners), images(2, 3, 32, 48)
    scales = (0.5, 1, 1.25)
    expected = plain_loop(model, image, scales, flip=flip)
    assert not torch.allclose(expected, plain_loop(model, image, (1,)), atol=1e-2)
    assert_stats(predict_labels(model, image, scales=scales, flip=flip), expected)


@pytest.mark.parametrize("strip", [1, 5 * 48 * 2 * 3, 2**22])
def test_sliding_scales_equal_the_plain_loop_in_strips_of_any_height(strip, monkeypatch):
    monkeypatch.setattr(averaging, "STRIP_ELEMENTS", strip)
    model, image = Wide(4), images(2, 3, 33, 48)
    options = {"window": (16, 20), "stride": (8, 13), "flip": True}
    expected = plain_loop(model, image, (0.75, 1, 1.5), **options)
    assert_stats(predict_labels(model, image, scales=(0.75, 1, 1.5), protocol="slide", **options), expected)


def test_padding_of_a_scale_is_cut_off():
    model, image = Wide(4, pad_multiple=16), images(1, 3, 16, 24)
    doubled = transforms.resize(image, [32, 48], antialias=True)
    one = F.interpolate(model(padded(image, 16)).logits, size=(16, 32), mode="bilinear").softmax(1)[..., :24]
    two = F.interpolate(model(doubled).logits, size=(16, 24), mode="bilinear").softmax(1)
    assert_stats(predict_labels(model, image, scales=(1, 2)), (one + two) / 2)


def test_a_result_of_another_size_than_the_image():
    model, image = Wide(4), images(1, 3, 32, 48)
    for size in ((20, 90), (64, 30), (1, 1)):
        up = F.interpolate(model(image).logits, size=size, mode="bilinear").softmax(1)
        assert_stats(mean_stats([WholeView(model(image).logits, size, size[1], False)], size), up)
        windows = plain_loop(model, image, (1,), window=(16, 16), stride=(16, 16))
        stats = predict_labels(model, image, size, protocol="slide", window=(16, 16), stride=(16, 16))
        assert_stats(stats, F.interpolate(windows, size=size, mode="bilinear"))


@pytest.mark.parametrize("size", [(400, 12), (100, 12), (900, 30)])
def test_a_tall_image_takes_no_more_than_a_few_windows(size, monkeypatch):
    monkeypatch.setattr(averaging, "STRIP_ELEMENTS", 3 * size[1] * 10)
    held, calls = [], []

    def probabilities(window):
        calls.append(tuple(window.shape[-2:]))
        return window.float().softmax(1)

    image = images(1, 3, 400, 12)
    view = SlidingView(probabilities, image, (16, 12), (8, 12), size)
    rows = view.rows
    monkeypatch.setattr(view, "rows", lambda *strip: (rows(*strip), held.append(view.total.shape[-2]))[0])
    mean_stats([view], size)
    assert len(calls) == len(window_starts(400, 16, 8))  # each window once
    assert max(held) <= 16 + 10 * math.ceil(400 / size[0]) + 2


def test_scales_of_one_are_the_plain_prediction():
    model, image = Wide(4), images(1, 3, 32, 48)
    for options in ({}, {"protocol": "slide", "window": (16, 16)}):
        once, twice = (predict_labels(model, image, scales=scales, **options) for scales in ((1.0,), (1.0, 1.0)))
        assert torch.equal(once.label, twice.label)
        torch.testing.assert_close(once.entropy, twice.entropy, rtol=1e-5, atol=1e-6)


def test_evaluation_averages_scales_as_prediction_does():
    model, image = Wide(4), images(3, 32, 48)
    label = predict_labels(model, image[None], scales=(0.5, 1)).label[0]
    plain = predict_labels(model, image[None]).label[0]
    assert not torch.equal(label, plain)
    score = evaluate_model(model, [(image, label, "a")], num_classes=5, scales=(0.5, 1))
    assert score["pixel_accuracy"] == 1 > evaluate_model(model, [(image, label, "a")], num_classes=5)["pixel_accuracy"]


@pytest.mark.parametrize("scales", [(), (0,), (1, -0.5), (math.inf,), (math.nan,)])
def test_refuses_scales_that_are_none(scales):
    with pytest.raises(ValueError, match="scales: expected positive factors"):
        predict_labels(Wide(4), images(1, 3, 16, 16), scales=scales)


def test_a_scale_that_leaves_less_than_a_pixel():
    assert predict_labels(Wide(4, pad_multiple=4), images(1, 3, 8, 8), scales=(0.01, 1)).label.shape == (1, 8, 8)
