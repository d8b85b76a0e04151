"""Make a criterion with a small memory bank, and a batch for it."""

import torch

from u2pl_fast.criterion import U2PLCriterion
from u2pl_fast.outputs import SegmentationOutput
from u2pl_fast.utils.randomness import generator

CLASSES, DIM, SIZE, GRID = 5, 8, (32, 40), (8, 10)


def batch(seed: int = 0, images: int = 4, dense: bool = False):
    """Return (student output, labels, pseudo-labels, teacher output), half labeled and half unlabeled."""
    torch.manual_seed(seed)
    half = images // 2
    head = torch.nn.Linear(6, DIM)
    features = torch.randn(images, DIM if dense else 6, *GRID, requires_grad=True)
    logits = (2 * torch.randn(images, CLASSES, *GRID)).requires_grad_()
    student = SegmentationOutput(logits, features, None if dense else head)
    labels = torch.randint(0, CLASSES, (half, *SIZE), dtype=torch.uint8)
    labels[:, :4] = 255
    teacher = SegmentationOutput(2 * torch.randn(half, CLASSES, *GRID))
    valid = torch.ones(half, *SIZE, dtype=torch.bool)
    valid[:, :, -5:] = False
    pseudo = criterion().pseudo_labels(teacher.logits, valid)
    return student, labels, pseudo, teacher


def criterion(**options) -> U2PLCriterion:
    defaults = {"bank_capacity": 50, "num_anchors": 7, "num_negatives": 9, "key_encoder": "student"}
    return U2PLCriterion(CLASSES, DIM, **defaults | options)


def losses(crit, parts, **options):
    student, labels, pseudo, teacher = parts
    return crit(
        student, labels, pseudo, teacher, **{"epoch": 1, "epochs": 10, "generator": generator(0, "d")} | options
    )
