"""Test the gates against loops over pixels."""

import numpy as np
import pytest
import torch

from u2pl_fast.gates import GATES, PseudoLabels, apply_gate, reliability

CLASSES = 4


def maps(seed: int = 0) -> PseudoLabels:
    torch.manual_seed(seed)
    label = torch.randint(0, CLASSES - 1, (2, 9, 7), dtype=torch.uint8)  # no pixel has the last class
    valid = torch.rand(2, 9, 7) < 0.8
    return PseudoLabels(label, torch.rand(2, 9, 7), valid, 0.5 + 0.5 * torch.rand(2, 9, 7))


def gated(gate: str, pseudo: PseudoLabels, **options):
    return apply_gate(gate, pseudo, **{"alpha": 0.3, "threshold": 0.9, "num_classes": CLASSES} | options)


@pytest.mark.parametrize("gate", GATES)
def test_gates_match_their_rules(gate):
    pseudo = maps()
    got = gated(gate, pseudo)
    label, entropy, valid, confidence = (x.flatten().tolist() for x in pseudo)
    known = [h for h, v in zip(entropy, valid, strict=True) if v]
    gamma = np.quantile(np.float32(known), 0.7)
    taught = []
    for pixel in range(len(label)):
        own = [h for h, v, y in zip(entropy, valid, label, strict=True) if v and y == label[pixel]]
        rule = {
            "entropy": entropy[pixel] < gamma,
            "class-entropy": bool(own) and entropy[pixel] < np.quantile(np.float32(own), 0.7),
            "confidence": confidence[pixel] >= 0.9,
        }
        taught.append(valid[pixel] and bool(rule[gate]))
    assert got.taught.flatten().tolist() == taught and 0 < sum(taught) < len(known)
    assert got.unreliable.flatten().tolist() == [v and h > gamma for h, v in zip(entropy, valid, strict=True)]
    torch.testing.assert_close(got.gamma, torch.tensor(gamma))


@pytest.mark.parametrize("gate", GATES)
def test_no_valid_pixel_selects_nothing(gate):
    pseudo = maps()._replace(valid=torch.zeros(2, 9, 7, dtype=torch.bool))
    got = gated(gate, pseudo)
    assert not got.taught.any() and not got.unreliable.any()


def test_class_entropy_keeps_a_share_of_each_class():
    pseudo = maps()
    pseudo = pseudo._replace(entropy=pseudo.entropy + 10 * (pseudo.label == 1))
    rare = pseudo.valid & (pseudo.label == 1)
    assert not gated("entropy", pseudo, alpha=0.5).taught[rare].any()
    share = gated("class-entropy", pseudo, alpha=0.5).taught[rare].float().mean()
    assert 0.4 < share < 0.6


def test_confidence_gate_requires_confidence():
    with pytest.raises(ValueError, match="pseudo: the gate 'confidence' requires a map of confidence"):
        gated("confidence", maps()._replace(confidence=None))


def test_joined_and_changed_apply_to_every_map():
    first, second = maps(0), maps(1)
    joined = PseudoLabels.joined([first, second])
    assert all(torch.equal(x[:2], a) and torch.equal(x[2:], b) for x, a, b in zip(joined, first, second, strict=True))
    plain = PseudoLabels(*first[:3])
    assert PseudoLabels.joined([plain, plain]).confidence is None
    flipped = plain.changed(lambda x: x.flip(-1))
    assert torch.equal(flipped.entropy, first.entropy.flip(-1)) and flipped.confidence is None


@pytest.mark.parametrize("fixed", [None, 0.25])
def test_reliability_is_strict_at_the_threshold(fixed):
    entropy = torch.arange(12.0).view(1, 3, 4) / 12
    valid = torch.ones(1, 3, 4, dtype=torch.bool)
    valid[0, 2, 3] = False  # the least certain
    got = reliability(entropy, valid, 0.5, gamma=fixed)
    gamma = 5 / 12 if fixed is None else fixed
    torch.testing.assert_close(got.gamma, torch.tensor(gamma))
    at = 5 if fixed is None else 3
    assert got.reliable.flatten().nonzero().flatten().tolist() == list(range(at))
    assert got.unreliable.flatten().nonzero().flatten().tolist() == list(range(at + 1, 11))
