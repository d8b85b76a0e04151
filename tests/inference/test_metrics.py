"""The confusion matrix against a loop over pixels, and the benchmarks' definition of mean IoU."""

import math

import numpy as np
import pytest
import torch

from u2pl_fast.inference.metrics import ConfusionMatrix, _scatter_histogram


def loop_matrix(pred, label, num_classes, ignore_index):
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for p, t in zip(pred.flatten().tolist(), label.flatten().tolist(), strict=True):
        if t != ignore_index:
            matrix[t, p] += 1
    return matrix


def loop_miou(matrix):
    ious = []
    for c in range(len(matrix)):
        union = matrix[c].sum() + matrix[:, c].sum() - matrix[c, c]
        if union:
            ious.append(matrix[c, c] / union)
    return sum(ious) / len(ious)


@pytest.mark.parametrize(
    ("num_classes", "ignore_index", "dtype"), [(1, 255, torch.uint8), (21, 255, torch.uint8), (300, -1, torch.int16)]
)
def test_matches_a_loop_over_pixels(num_classes, ignore_index, dtype):
    rng = torch.Generator().manual_seed(num_classes)
    confusion = ConfusionMatrix(num_classes, ignore_index)
    expected = np.zeros((num_classes, num_classes), np.int64)
    for shape in [(2, 13, 17), (1, 1, 1), (3, 8, 5)]:
        pred = torch.randint(num_classes, shape, generator=rng).to(dtype)
        label = torch.randint(num_classes, shape, generator=rng)
        label[torch.rand(shape, generator=rng) < 0.2] = ignore_index
        label = label.to(dtype)
        confusion.update(pred, label)
        expected += loop_matrix(pred, label, num_classes, ignore_index)
    assert confusion.matrix.dtype == torch.int64
    assert np.array_equal(confusion.checked().numpy(), expected)
    assert confusion.miou() == pytest.approx(loop_miou(expected), rel=1e-12)
    assert confusion.pixel_accuracy() == pytest.approx(np.trace(expected) / expected.sum(), rel=1e-12)


def test_rows_are_the_truth():
    confusion = ConfusionMatrix(3)
    confusion.update(pred=torch.tensor([[2, 2, 1]]), label=torch.tensor([[0, 0, 1]]))
    assert confusion.matrix.tolist() == [[0, 0, 2], [0, 1, 0], [0, 0, 0]]


def test_miou_averages_over_classes_in_truth_or_prediction():
    confusion = ConfusionMatrix(5)
    # Class 0: 2 of 3 hit. Class 1: only in the truth. Class 2: only predicted. Classes 3 and 4: nowhere.
    confusion.update(pred=torch.tensor([[0, 0, 2, 2]]), label=torch.tensor([[0, 0, 0, 1]]))
    iou = confusion.iou()
    assert iou[:3].tolist() == pytest.approx([2 / 3, 0, 0])
    assert iou[3:].isnan().all()
    assert confusion.miou() == pytest.approx(2 / 9)


def test_one_matrix_is_not_the_mean_over_images():
    small = torch.zeros(1, 1, 1, dtype=torch.uint8), torch.ones(1, 1, 1, dtype=torch.uint8)
    large = torch.ones(1, 10, 10, dtype=torch.uint8), torch.ones(1, 10, 10, dtype=torch.uint8)
    confusion = ConfusionMatrix(2)
    for pred, label in (small, large):
        confusion.update(pred, label)
    assert confusion.iou().tolist() == pytest.approx([0, 100 / 101])


def test_nothing_counted_is_nan():
    confusion = ConfusionMatrix(4)
    confusion.update(torch.zeros(1, 2, 2, dtype=torch.uint8), torch.full((1, 2, 2), 255, dtype=torch.uint8))
    assert math.isnan(confusion.miou()) and math.isnan(confusion.pixel_accuracy())
    assert not confusion.checked().any()


def test_counts_beyond_32_bits():
    confusion = ConfusionMatrix(2)
    confusion.matrix[1, 1] = 2**40
    confusion.update(torch.tensor([1]), torch.tensor([1]))
    assert confusion.matrix[1, 1] == 2**40 + 1


def test_labels_out_of_range_are_counted_and_reported_when_read():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.zeros(1, 4, dtype=torch.uint8), torch.tensor([[0, 3, 7, 255]], dtype=torch.uint8))
    confusion.update(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[-5]]))
    assert confusion.matrix.sum() == 1
    for read in (confusion.iou, confusion.miou, confusion.checked, confusion.pixel_accuracy):
        with pytest.raises(ValueError, match=r"3 label pixels .*0\.\.2"):
            read()
    confusion.reset()
    assert not confusion.checked().any()


def test_predictions_out_of_range_never_land_in_another_row():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([3, -1, 0]), torch.tensor([0, 1, 0]))
    assert confusion.matrix.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="2 predicted pixels"):
        confusion.miou()


@pytest.mark.parametrize(
    ("arguments", "message"), [((0,), "num_classes must be at least 1"), ((21, 5), "ignore_index: 5 is a class")]
)
def test_refuses_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(*arguments)


def test_refuses_bad_tensors():
    confusion = ConfusionMatrix(3)
    with pytest.raises(ValueError, match="same shape"):
        confusion.update(torch.zeros(1, 2, dtype=torch.uint8), torch.zeros(2, 1, dtype=torch.uint8))
    with pytest.raises(TypeError, match="pred must hold integer"):
        confusion.update(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.uint8))


@pytest.mark.parametrize("bins", [4, 444, 90_003])
def test_the_histogram_of_gpus_equals_bincount(bins):
    index = torch.randint(bins, (5000,), generator=torch.Generator().manual_seed(bins))
    assert torch.equal(_scatter_histogram(index, bins), torch.bincount(index, minlength=bins))


@pytest.mark.gpu
def test_update_does_not_wait_for_the_gpu():
    confusion = ConfusionMatrix(21, device="cuda")
    label = torch.randint(21, (2, 64, 64), device="cuda").byte()
    confusion.update(label, label)
    torch.cuda.set_sync_debug_mode("error")
    try:
        confusion.update(label, label)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert confusion.miou() == 1
