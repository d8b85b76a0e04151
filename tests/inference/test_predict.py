"""Both protocols on small networks whose right answer is known."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.inference.small_networks import MEAN, Output, Pointwise, Wide, images
from u2pl_fast.inference import evaluate_model, evaluating, predict_labels
from u2pl_fast.inference.averaging import window_starts
from u2pl_fast.inference.metrics import ConfusionMatrix
from u2pl_fast.reference import pixel_stats, upsample


def assert_same(a, b, atol=1e-5):
    assert torch.equal(a.label, b.label)
    assert a.label.dtype == b.label.dtype
    torch.testing.assert_close(a.confidence, b.confidence, rtol=0, atol=atol)
    torch.testing.assert_close(a.entropy, b.entropy, rtol=0, atol=atol)


# --- whole ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [False, True])
def test_whole_is_the_statistics_of_the_upsampled_logits(align_corners):
    model, image = Pointwise(4, align_corners=align_corners), images(2, 3, 16, 24)
    expected = pixel_stats(model(image).logits, (16, 24), align_corners=align_corners)
    assert_same(predict_labels(model, image), expected)


def test_whole_pads_with_the_mean_color_and_cuts_the_padding_off():
    model, image = Pointwise(4, pad_multiple=16), images(1, 3, 19, 33)
    padded = MEAN.byte().repeat(1, 1, 32, 48)
    padded[..., :19, :33] = image
    expected = pixel_stats(model(padded).logits, (32, 48))
    got = predict_labels(model, image)
    assert got.label.shape == (1, 19, 33)
    assert_same(got, type(expected)(*(x[:, :19, :33] for x in expected)))
    assert model.batches[-1] == (1, 3, 32, 48)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (7, 5)])
@pytest.mark.parametrize("protocol", ["whole", "slide"])
def test_tiny_images(shape, protocol):
    model = Pointwise(4, pad_multiple=16)
    stats = predict_labels(model, images(1, 3, *shape), (3, 2), protocol=protocol, window=(32, 32))
    assert stats.label.shape == stats.entropy.shape == (1, 3, 2)
    assert stats.entropy.isfinite().all() and (stats.label < 5).all()


def test_more_than_255_classes():
    model = Pointwise(num_classes=300)
    for protocol in ("whole", "slide"):
        stats = predict_labels(model, images(1, 3, 8, 8), protocol=protocol, window=(8, 8))
        assert stats.label.dtype == torch.int16


@pytest.mark.parametrize("pad_multiple", [1, 32])
def test_labels_keep_their_size_when_images_were_resized(pad_multiple):
    """A scene of large blocks, seen at half size: the full-size map shows the blocks at their full-size places."""
    model = Pointwise(1, pad_multiple=pad_multiple)
    blocks = images(1, 3, 3, 5, seed=3)
    full = blocks.repeat_interleave(40, -1).repeat_interleave(40, -2)
    half = blocks.repeat_interleave(20, -1).repeat_interleave(20, -2)
    expected = predict_labels(model, full).label
    got = predict_labels(model, half, (120, 200)).label
    assert got.shape == expected.shape == (1, 120, 200)
    inner = torch.arange(200) % 40
    inner = (inner > 2) & (inner < 37)  # away from the borders, where interpolation blends
    assert torch.equal(got[0, inner[:120]][:, inner], expected[0, inner[:120]][:, inner])


def test_flip_averages_probabilities():
    model, image = Wide(1), images(1, 3, 8, 8)
    p = model(image).logits.softmax(1)
    q = model(image.flip(-1)).logits.flip(-1).softmax(1)
    mean = (p + q) / 2
    assert not torch.allclose(p, q, atol=1e-2)
    for options in ({}, {"protocol": "slide", "window": (8, 8)}):
        stats = predict_labels(model, image, flip=True, **options)
        torch.testing.assert_close(stats.confidence, mean.amax(1), rtol=0, atol=1e-5)
        assert torch.equal(stats.label.long(), mean.argmax(1))


# --- slide ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "stride"), [((16, 16), (8, 8)), ((16, 24), None), ((7, 5), (3, 5)), ((99, 99), None)]
)
def test_slide_equals_whole_for_a_pointwise_network(window, stride):
    model, image = Pointwise(1), images(2, 3, 37, 45)
    expected = predict_labels(model, image)
    assert_same(predict_labels(model, image, protocol="slide", window=window, stride=stride), expected)


def test_slide_averages_the_probabilities_of_overlapping_windows():
    model, image = Wide(4), images(1, 3, 20, 32)
    total, visits = torch.zeros(1, 5, 20, 32), torch.zeros(20, 32)
    for top in (0, 4):
        for left in (0, 8, 16):
            here = (..., slice(top, top + 16), slice(left, left + 16))
            total[here] += upsample(model(image[here]).logits, (16, 16)).softmax(1)
            visits[here] += 1
    expected = total / visits
    stats = predict_labels(model, image, protocol="slide", window=(16, 16), stride=(8, 8))
    assert torch.equal(stats.label.long(), expected.argmax(1))
    torch.testing.assert_close(stats.confidence, expected.amax(1))
    entropy = torch.distributions.Categorical(probs=expected.permute(0, 2, 3, 1)).entropy()
    torch.testing.assert_close(stats.entropy, entropy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "window", "stride"), [(10, 4, 3), (10, 10, 5), (11, 4, 4), (2048, 769, 513), (5, 2, 1)]
)
def test_windows_cover_everything_and_end_at_the_border(length, window, stride):
    starts = window_starts(length, window, stride)
    covered = torch.zeros(length, dtype=torch.int64)
    for start in starts:
        assert 0 <= start <= length - window
        covered[start : start + window] += 1
    assert covered.min() >= 1 and len(set(starts)) == len(starts)
    assert starts == sorted(starts) and starts[-1] == length - window


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "slide"}, "window: the slide protocol"),
        ({"protocol": "slide", "window": (8, 8), "stride": (9, 8)}, "stride: expected"),
        ({"protocol": "slide", "window": (8, 8), "stride": (0, 8)}, "stride: expected"),
        ({"protocol": "crop"}, "protocol: expected 'whole' or 'slide', got 'crop'"),
    ],
)
def test_refuses_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        predict_labels(Pointwise(), images(1, 3, 16, 16), **options)


def test_refuses_bad_images():
    with pytest.raises(TypeError, match="image: expected uint8"):
        predict_labels(Pointwise(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"image: expected \(B, 3, h, w\)"):
        predict_labels(Pointwise(), images(3, 8, 8))


# --- evaluation -------------------------------------------------------------------------------------------------------


def samples(sizes, label_sizes=None):
    for index, size in enumerate(sizes):
        label_size = size if label_sizes is None else label_sizes[index]
        label = images(*label_size, seed=100 + index) % 5
        label[0, 0] = 255
        yield images(3, *size, seed=index), label, f"image {index}"


SIZES = [(16, 24), (16, 24), (16, 24), (9, 31), (16, 24), (9, 31), (9, 31)]


@pytest.mark.parametrize("options", [{}, {"protocol": "slide", "window": (12, 12)}])
def test_evaluation_counts_each_image_once_for_any_batch_size(options):
    model = Pointwise(4, pad_multiple=4)
    confusion = ConfusionMatrix(5)
    for image, label, _ in samples(SIZES):
        confusion.update(predict_labels(model, image[None], **options).label, label[None])
    for batch_size in (1, 2, 8):
        model.batches.clear()
        result = evaluate_model(model, samples(SIZES), num_classes=5, batch_size=batch_size, **options)
        assert max(shape[0] for shape in model.batches) == min(batch_size, 3)
        assert result["confusion"] == confusion.matrix.tolist()
        assert result["images"] == len(SIZES)
        assert sum(map(sum, result["confusion"])) == sum(h * w - 1 for h, w in SIZES)
        assert result["miou"] == pytest.approx(confusion.miou())
        assert result["iou_per_class"] == pytest.approx(confusion.iou().tolist())
        assert result["pixel_accuracy"] == pytest.approx(confusion.pixel_accuracy())
        assert result["protocol"] == options.get("protocol", "whole")


def test_evaluation_is_at_the_labels_own_size():
    labels = [(40, 60), (41, 60), (80, 24)]
    result = evaluate_model(Pointwise(4), samples([(16, 24)] * 3, labels), num_classes=5)
    assert sum(map(sum, result["confusion"])) == sum(h * w - 1 for h, w in labels)


def test_classes_that_occur_nowhere_are_none():
    class First(Pointwise):
        def forward(self, image):
            logits = super().forward(image).logits
            return Output(torch.cat((logits[:, :1] * 0 + 1, logits[:, 1:] * 0), 1))

    label = torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8)
    result = evaluate_model(First(), [(images(3, 1, 4), label, "a")], num_classes=5)
    assert result["iou_per_class"] == [pytest.approx(2 / 3), 0.0, None, None, None]
    assert result["miou"] == pytest.approx(1 / 3)


def test_evaluation_restores_every_modules_mode():
    class Network(Pointwise):
        def __init__(self):
            super().__init__()
            self.frozen, self.norm = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.frozen.eval()

        def forward(self, image):
            assert not any(module.training for module in self.modules())
            return super().forward(image)

    model = Network().train()
    model.frozen.eval()
    evaluate_model(model, samples([(8, 8)]), num_classes=5)
    assert model.training and model.norm.training and not model.frozen.training
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert model.training and not model.frozen.training


def test_evaluation_needs_labels():
    unlabeled = [(images(3, 8, 8), torch.full((8, 8), 255, dtype=torch.uint8), "a")]
    with pytest.raises(ValueError, match="none of the 1 images has a labeled pixel"):
        evaluate_model(Pointwise(), unlabeled, num_classes=5)
    with pytest.raises(ValueError, match="none of the 0 images"):
        evaluate_model(Pointwise(), [], num_classes=5)


def test_evaluation_reports_labels_out_of_range():
    label = torch.full((8, 8), 9, dtype=torch.uint8)
    with pytest.raises(ValueError, match="64 label pixels"):
        evaluate_model(Pointwise(), [(images(3, 8, 8), label, "a")], num_classes=5)


def _evaluate_share(rank, world, folder):
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    share = list(samples(SIZES))[rank::world]
    result = evaluate_model(Pointwise(4), share, num_classes=5, group=torch.distributed.group.WORLD)
    torch.distributed.destroy_process_group()
    Path(folder, f"{rank}.json").write_text(json.dumps(result))


@pytest.mark.slow
def test_processes_share_the_images(tmp_path):
    torch.multiprocessing.start_processes(_evaluate_share, (2, str(tmp_path)), nprocs=2, start_method="fork")
    expected = evaluate_model(Pointwise(4), samples(SIZES), num_classes=5)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected
