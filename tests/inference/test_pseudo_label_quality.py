"""Pseudo-labels and negatives against masks, where the answer is known."""

import pytest
import torch

from u2pl_fast.inference import predict_logits
from u2pl_fast.inference.pseudo_label_quality import _rank_of_truth, pseudo_label_quality
from u2pl_fast.outputs import SegmentationOutput
from u2pl_fast.reference import class_rank, contrast_masks, pixel_stats, unpack_mask


class Fixed(torch.nn.Module):
    """Gives the same logits (C, H, W) for every image."""

    pad_multiple, align_corners = 1, False

    def __init__(self, logits):
        super().__init__()
        self.fixed = logits

    def forward(self, images):
        return SegmentationOutput(self.fixed.expand(len(images), *self.fixed.shape))


def scores_of(logits, label, **options):
    image = torch.zeros(3, *label.shape, dtype=torch.uint8)
    options = {"alpha": 0.25, "low_rank": 1, "high_rank": 2, "num_classes": len(logits)} | options
    return pseudo_label_quality(Fixed(logits), [(image, label, "a")], **options)


def test_labels_are_scored_apart_by_entropy():
    """A network that is right exactly where it is sure."""
    logits = torch.zeros(2, 4, 8)
    logits[0, :, :6], logits[1, :, 6:] = (
        9.0,
        torch.tensor([0.4, 0.5]),
    )  # sure of 0 on the left, hardly of 1 on the right
    label = torch.zeros(4, 8, dtype=torch.uint8)
    label[0] = 255
    scores = scores_of(logits, label)
    assert scores["pseudo_accuracy"] == pytest.approx(0.75)
    assert scores["pseudo_accuracy_reliable"] == 1 and scores["pseudo_accuracy_unreliable"] == 0
    assert pseudo_label_quality(Fixed(logits), [], alpha=0.25, low_rank=1, high_rank=2, num_classes=2) == {}


def test_negatives_are_scored_as_the_method_chooses_them():
    """Pair by pair, from the masks of the contrastive loss."""
    torch.manual_seed(0)
    classes, low, high, alpha = 7, 2, 5, 0.4
    logits = torch.randn(classes, 12, 10)
    label = torch.randint(classes, (12, 10), dtype=torch.uint8)
    label[:2] = 255
    scores = scores_of(logits, label, alpha=alpha, low_rank=low, high_rank=high)

    entropy = pixel_stats(logits[None], (12, 10)).entropy
    unreliable = entropy > entropy.flatten().quantile(1 - alpha)
    ranks = {"low_rank": low, "high_rank": high, "positive_threshold": 0.3}
    mask = contrast_masks(logits[None], label[None], ~unreliable, unreliable, num_labeled=0, **ranks).mask
    pairs = [(p, c) for p, c in unpack_mask(mask, classes).nonzero().tolist() if label.flatten()[p] != 255]
    right = sum(int(label.flatten()[p]) != c for p, c in pairs)
    assert len(pairs) > 50 and scores["pseudo_negatives_right"] == pytest.approx(right / len(pairs))

    pixels = [p for p in unreliable.flatten().nonzero().flatten().tolist() if label.flatten()[p] != 255]
    best = logits.flatten(1).argmax(0)
    wrong = sum(int(best[p]) != int(label.flatten()[p]) for p in pixels)
    expected = 1 - wrong / (len(pixels) * (classes - 1))
    assert scores["pseudo_negatives_right_unranked"] == pytest.approx(expected)


def test_no_unreliable_pixel_no_score_of_negatives():
    scores = scores_of(torch.zeros(3, 4, 4), torch.zeros(4, 4, dtype=torch.uint8))  # all entropies are equal
    assert scores == {"pseudo_miou": 1, "pseudo_accuracy": 1}


def test_ranks_and_logits_are_the_reference_s():
    logits = torch.randint(3, (2, 5, 6, 4)).float()  # many ties
    label = torch.randint(5, (2, 6, 4))
    assert torch.equal(_rank_of_truth(logits, label), class_rank(logits).gather(1, label[:, None])[:, 0])
    found = predict_logits(Fixed(logits[0]), torch.zeros(1, 3, 6, 4, dtype=torch.uint8), (6, 4))
    assert torch.equal(found, logits[:1])
