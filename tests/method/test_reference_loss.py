"""Test sampling, prototypes, gathering and the contrastive loss of the reference, against loops and by hand."""

import math

import numpy as np
import pytest
import torch

from tests import oracle
from u2pl_fast import reference

CLASSES = [1, 2, 3, 5, 33, 64]
MODES = ["per_anchor", "shared", "full"]


def anchor_labels(pixels: int, classes: int, seed: int = 0) -> np.ndarray:
    """Return labels of which a fifth are -1; a class in the middle has none."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, pixels)
    label[rng.random(pixels) < 0.2] = -1
    label[label == classes // 2] = -1
    return label


# --- drawing anchors ---


def test_class_sample_by_hand():
    # Class 0 has pixels 1, 3, 4; class 1 none; class 2 pixel 0. A draw of 2^32 * f picks member floor(3 f).
    label = torch.tensor([2, 0, -1, 0, 0], dtype=torch.int16)
    draws = torch.tensor([[0, (1 << 32) // 3, (1 << 32) // 3 + 1, (1 << 32) - 1]]).expand(3, 4)
    index = reference.class_sample(label, 3, draws)
    assert index.dtype == torch.int64
    assert index.tolist() == [[1, 1, 3, 4], [-1] * 4, [0] * 4]


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("pixels", [1, 7, 45])
def test_class_sample_matches_loops(classes, pixels):
    label = anchor_labels(pixels, classes)
    draws = np.random.default_rng(1).integers(0, 1 << 32, (classes, 6))
    got = reference.class_sample(torch.from_numpy(label).to(torch.int16), classes, torch.from_numpy(draws))
    assert (got.numpy() == oracle.class_sample(label, classes, draws)).all()


def test_class_sample_of_no_anchor_at_all():
    draws = torch.zeros(3, 2, dtype=torch.int64)
    for pixels in (0, 5):
        assert (reference.class_sample(torch.full((pixels,), -1, dtype=torch.int16), 3, draws) == -1).all()


# --- prototypes ---


def test_class_sum_by_hand():
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    label = torch.tensor([2, -1, 2], dtype=torch.int16)
    assert reference.class_sum(features, label, 3).tolist() == [[0, 0], [0, 0], [6, 8]]


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("shape", [(24, 5), (2, 5, 3, 4), (1, 1, 1, 1)], ids=str)
def test_class_sum_matches_loops(classes, shape):
    features = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    label = anchor_labels(len(oracle.pixel_vectors(features)), classes)
    got = reference.class_sum(torch.from_numpy(features), torch.from_numpy(label).to(torch.int16), classes)
    assert got.dtype == torch.float32
    assert oracle.relative_error(got, oracle.class_sum(features, label, classes)) < 1e-6


def test_class_sum_of_half_features_is_fp32():
    # In fp16, adding 1 has no effect from 2048 on.
    got = reference.class_sum(torch.ones(4099, 1, dtype=torch.float16), torch.zeros(4099, dtype=torch.int16), 1)
    assert got.dtype == torch.float32 and got.item() == 4099


# --- gathering ---


def test_gather_by_hand():
    # Pixel number 5 of two 2x2 images is image 1, row 0, column 1.
    features = torch.arange(8.0).view(2, 1, 2, 2)
    index = torch.tensor([[5, -1], [0, 5]])
    assert reference.gather_pixels(features, index).squeeze(-1).tolist() == [[5, 0], [0, 5]]


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (1, 2, 1, 1), (3, 1, 5, 3)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_gather_value_and_gradient_match_loops(shape, layout):
    rng = np.random.default_rng(3)
    features = rng.normal(size=shape).astype(np.float32)
    pixels = shape[0] * shape[2] * shape[3]
    index, upstream = rng.integers(-1, pixels, (3, 7)), rng.normal(size=(3, 7, shape[1])).astype(np.float32)
    leaf = torch.from_numpy(features).to(memory_format=layout).requires_grad_()
    got = reference.gather_pixels(leaf, torch.from_numpy(index))
    assert (got.detach().numpy() == oracle.gather_pixels(features, index)).all()
    (got * torch.from_numpy(upstream)).sum().backward()
    expected = np.zeros((pixels, shape[1]))
    for position in np.ndindex(*index.shape):
        if index[position] >= 0:
            expected[index[position]] += upstream[position]
    grad = np.stack(oracle.pixel_vectors(leaf.grad.numpy()))
    assert oracle.relative_error(grad, expected) < 1e-6


def test_gather_of_nothing_has_a_zero_gradient():
    features = torch.randn(1, 2, 2, 2, requires_grad=True)
    out = reference.gather_pixels(features, torch.full((3, 4), -1))
    out.sum().backward()
    assert out.shape == (3, 4, 2) and not out.any() and not features.grad.any()


def test_gather_gradcheck():
    features = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 11, 11], [-1, 5, 0]])
    assert torch.autograd.gradcheck(lambda x: reference.gather_pixels(x, index), (features,))


# --- InfoNCE ---


def loss_case(classes: int, seed: int = 0, dim: int = 4, m: int = 3, n: int = 6):
    """Return NumPy arguments of info_nce: empty, partly filled and overfull rings, unread NaN, one inactive class."""
    rng = np.random.default_rng(seed)
    capacities = rng.integers(2, 7, classes)
    offsets = np.concatenate(([0], np.cumsum(capacities)))
    pushed = np.array([rng.integers(1, 2 * k + 1) for k in capacities])
    weight = rng.uniform(0.1, 1, classes).astype(np.float32)
    if classes > 2:
        pushed[1], weight[1] = 0, 0
    bank = np.full((offsets[-1], dim), np.nan, dtype=np.float32)
    for c in range(classes):
        for slot in range(min(pushed[c], capacities[c])):
            bank[offsets[c] + slot] = oracle.normalize(rng.normal(size=dim))
    fill = np.maximum(np.minimum(pushed, capacities), 1)
    per_anchor = np.stack([rng.integers(0, fill[c], (m, n)) for c in range(classes)])
    return {
        "anchors": rng.normal(size=(classes, m, dim)).astype(np.float32),
        "weight": weight,
        "positives": rng.normal(size=(classes, dim)).astype(np.float32),
        "bank": bank,
        "offsets": offsets,
        "pushed": pushed,
    }, {"per_anchor": per_anchor, "shared": per_anchor[:, 0], "full": None}


def tensors(case: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in case.items()}


def as_index(indices: np.ndarray | None) -> torch.Tensor | None:
    return None if indices is None else torch.from_numpy(indices)


def test_info_nce_by_hand():
    # The anchor lies on the positive (cosine 1) and is orthogonal to one key and opposite to the other:
    # -log(e^2 / (e^2 + e^0 + e^-2)) at temperature 1/2. Lengths of anchor and positive do not matter.
    bank = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    arguments = (
        torch.tensor([[[5.0, 0.0]]]),
        torch.tensor([0.25]),
        torch.tensor([[0.1, 0.0]]),
        bank,
        torch.tensor([0, 2]),
        torch.tensor([2]),
    )
    expected = 0.25 * math.log(1 + math.exp(-2) + math.exp(-4))
    assert reference.info_nce(*arguments, negatives="full").item() == pytest.approx(expected)
    index = torch.tensor([[0, 1]])
    assert reference.info_nce(*arguments, indices=index, negatives="shared").item() == pytest.approx(expected)
    assert reference.info_nce(*arguments, indices=index[None]).item() == pytest.approx(expected)
    # The same key drawn twice counts twice.
    twice = reference.info_nce(*arguments, indices=torch.tensor([[[0, 0]]]), temperature=1.0)
    assert twice.item() == pytest.approx(0.25 * math.log(1 + 2 * math.exp(-1)))


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("negatives", MODES)
@pytest.mark.parametrize("temperature", [0.5, 0.07])
def test_info_nce_matches_loops(classes, negatives, temperature):
    case, indices = loss_case(classes, seed=classes)
    expected = oracle.info_nce(**case, indices=indices[negatives], negatives=negatives, temperature=temperature)
    got = reference.info_nce(
        **tensors(case), indices=as_index(indices[negatives]), negatives=negatives, temperature=temperature
    )
    assert got.dtype == torch.float32 and got.shape == ()
    assert got.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("negatives", MODES)
def test_info_nce_gradient_matches_the_formula(negatives):
    """Check weight/(M tau |z|) (I - uu') (sum_j q_j k_j - (1 - q_+) z+), u = z/|z|, q the softmax."""
    case, indices = loss_case(3, seed=11)
    tau, expected = 0.5, np.zeros(case["anchors"].shape)
    for c, m in np.ndindex(*expected.shape[:2]):
        if case["weight"][c] == 0:
            continue
        start, fill = case["offsets"][c], min(case["pushed"][c], case["offsets"][c + 1] - case["offsets"][c])
        slots = {"per_anchor": lambda c=c, m=m: indices["per_anchor"][c, m], "shared": lambda c=c: indices["shared"][c]}
        chosen = range(fill) if negatives == "full" else slots[negatives]()
        z, center = case["anchors"][c, m], oracle.normalize(case["positives"][c])
        unit, keys = oracle.normalize(z), [case["bank"][start + s].astype(np.float64) for s in chosen]
        q = oracle.softmax([float(unit @ v) / tau for v in (center, *keys)])
        pull = sum((share * v for share, v in zip(q, (center, *keys), strict=True)), -center)
        pull = (pull - unit * (unit @ pull)) / np.linalg.norm(z.astype(np.float64))
        expected[c, m] = case["weight"][c] / expected.shape[1] / tau * pull
    arguments = tensors(case)
    arguments["anchors"].requires_grad_()
    reference.info_nce(**arguments, indices=as_index(indices[negatives]), negatives=negatives).backward()
    assert oracle.relative_error(arguments["anchors"].grad, expected) < 1e-5


@pytest.mark.parametrize("negatives", MODES)
def test_info_nce_gradcheck(negatives):
    case, indices = loss_case(3, seed=5)
    arguments = tensors(case)
    anchors = arguments.pop("anchors").double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: reference.info_nce(
            x, **arguments, indices=as_index(indices[negatives]), negatives=negatives
        ).double(),
        (anchors,),
    )


def test_gradient_flows_to_the_anchors_only():
    case, indices = loss_case(3, seed=6)
    arguments = tensors(case)
    arguments["anchors"].requires_grad_()
    arguments["positives"].requires_grad_()
    reference.info_nce(**arguments, indices=as_index(indices["per_anchor"])).backward()
    assert arguments["anchors"].grad.abs().sum() > 0
    assert arguments["positives"].grad is None


def test_gradient_is_orthogonal_to_the_anchor():
    # The loss does not depend on an anchor's length, and its gradient shrinks as the anchor grows.
    case, indices = loss_case(2, seed=7)
    grads = []
    for scale in (1.0, 10.0):
        arguments = tensors(case)
        arguments["anchors"] = (arguments["anchors"] * scale).requires_grad_()
        reference.info_nce(**arguments, indices=as_index(indices["per_anchor"])).backward()
        grads.append(arguments["anchors"].grad)
        assert (arguments["anchors"] * grads[-1]).sum(-1).abs().max() < 1e-5
    torch.testing.assert_close(grads[0], grads[1] * 10)


@pytest.mark.parametrize("negatives", MODES)
def test_no_active_class(negatives):
    case, indices = loss_case(3, seed=8)
    case["weight"][:] = 0
    arguments = tensors(case)
    arguments["anchors"] = torch.zeros(3, 3, 4, requires_grad=True)  # the result of gathering at -1
    loss = reference.info_nce(**arguments, indices=as_index(indices[negatives]), negatives=negatives)
    loss.backward()
    assert loss.item() == 0
    assert not arguments["anchors"].grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_anchors_and_banks_are_computed_in_fp32(dtype):
    case, indices = loss_case(3, seed=9)
    arguments = tensors(case)
    for name in ("anchors", "positives", "bank"):
        arguments[name] = arguments[name].to(dtype)
    index = as_index(indices["per_anchor"])
    got = reference.info_nce(**arguments, indices=index)
    for name in ("anchors", "positives", "bank"):
        arguments[name] = arguments[name].float()
    assert got.dtype == torch.float32
    assert torch.equal(got, reference.info_nce(**arguments, indices=index))


def test_large_scores_do_not_overflow():
    # Temperature 1e-3: scores of +-1000 are beyond exp in fp32. Anchor opposite to the positive, on the key: 2000.
    loss = reference.info_nce(
        torch.tensor([[[1.0, 0.0]]]),
        torch.ones(1),
        torch.tensor([[-1.0, 0.0]]),
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([0, 1]),
        torch.tensor([1]),
        negatives="full",
        temperature=1e-3,
    )
    assert loss.item() == pytest.approx(2000)


# --- the branch after the masks ---


class Bank:
    """Keep rings that take every key, with the interface of the branch."""

    def __init__(self, capacities: list[int], dim: int) -> None:
        self.bank = torch.zeros(sum(capacities), dim)
        self.offsets = torch.tensor([0, *np.cumsum(capacities).tolist()])
        self.pushed = torch.zeros(len(capacities), dtype=torch.int64)

    def push(self, features, mask, *, draw, gate):
        reference.ring_push(self.bank, self.offsets, self.pushed, features, mask, gate=gate)


@pytest.mark.parametrize("negatives", MODES)
def test_the_branch_after_the_masks_matches_loops(negatives):
    """Run two batches on one bank: centers of the keys, then the push, then anchors of the projected features."""
    classes, dim, m, n, capacities = 5, 4, 3, 6, [4, 9, 30, 5, 7]
    bank, rings = Bank(capacities, dim), oracle.Rings(capacities)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        features, keys = rng.normal(size=(2, 2, dim, 3, 5)).astype(np.float32)
        label = anchor_labels(30, classes, seed)
        sets = [np.flatnonzero(rng.random(30) < 0.2).tolist() for _ in range(classes)]
        sets[3] = []  # anchors without a key
        counts = np.array([(label == c).sum() for c in range(classes)])
        shape = {"per_anchor": (classes, m, n), "shared": (classes, n)}.get(negatives)
        anchor_draws = rng.integers(0, 1 << 32, (classes, m))
        negative_draws = None if shape is None else rng.integers(0, 1 << 32, shape)

        masks = reference.ContrastMasks(
            torch.from_numpy(oracle.words(sets, 30)),
            torch.from_numpy(label).to(torch.int16),
            torch.tensor([len(members) for members in sets]),
            torch.from_numpy(counts),
        )
        draws = (torch.zeros(classes).long(), torch.from_numpy(anchor_draws), as_index(negative_draws))
        got = reference.contrastive_loss_from_masks(
            *(masks, torch.from_numpy(features), torch.from_numpy(keys), bank, draws),
            negatives=negatives,
            project=lambda rows: 2 * rows.flip(1),
        )

        rings.push(keys, sets)
        fill = np.array([rings.fill(c) for c in range(classes)])
        takes_part = (counts > 0) & (fill > 0)
        slots = None if shape is None else negative_draws * fill.reshape(-1, *[1] * (len(shape) - 1)) >> 32
        drawn = oracle.gather_pixels(features, oracle.class_sample(label, classes, anchor_draws))
        expected = oracle.info_nce(
            *(drawn[..., ::-1], takes_part / takes_part.sum(), oracle.class_sum(keys, label, classes)),
            *(rings.table(dim), bank.offsets.numpy(), rings.pushed, slots, negatives, 0.5),
        )
        assert 0 < takes_part.sum() < classes
        assert got.loss.item() == pytest.approx(expected, rel=1e-5)
        assert got.anchors.tolist() == counts.tolist()
        assert got.negatives.tolist() == got.pushed.tolist() == [len(members) for members in sets]
