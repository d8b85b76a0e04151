"""Test unusual inputs: odd memory layouts, odd values, invalid arguments.

A valid input gives the result of the reference in any memory layout. An invalid one raises one ValueError or TypeError
whose message begins with the argument's name, before anything is read or written out of bounds.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.backends import INTERPRETED
from tests.ops.contrast_cases import draw32, make_mask, make_rings
from tests.ops.op_cases import TIE, generator
from u2pl_fast import ops, reference
from u2pl_fast.memory_bank import MemoryBank
from u2pl_fast.ops import _backend

pytestmark = pytest.mark.skipif(INTERPRETED, reason="about the CPU's default backend and the reference")

HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALF)
MEMORY = ("contiguous", "channels_last", "stepped", "transposed", "expanded", "overlapping", "shifted")
VALUES = ("plain", "large", "constant", "nan", "inf", "masked")

small = settings(max_examples=40, deadline=None, derandomize=True)
sides = st.integers(1, 7)
classes = st.one_of(st.integers(1, 6), st.sampled_from([31, 32, 33, 255, 256, 300]))
memory = st.sampled_from(MEMORY)
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**16)


def lay_out(x: Tensor, kind: str) -> Tensor:
    """Return a tensor of the shape of ``x`` in this kind of memory, with its values unless memory is shared."""
    if x.numel() == 0 or x.dim() == 0:
        return x
    match kind:
        case "channels_last":
            return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()
        case "stepped":
            every_other = tuple(slice(1, None, 2) for _ in x.shape)
            return x.new_zeros([2 * n + 1 for n in x.shape])[every_other].copy_(x)
        case "transposed":
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        case "expanded":
            return x[:1].expand_as(x)
        case "overlapping":
            return x.flatten().as_strided(x.shape, [1] * x.dim())
        case "shifted":  # no vector load is aligned
            return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)
    return x.contiguous()


def plain(x: Tensor) -> Tensor:
    """Return the same values in separate memory."""
    return x.detach().clone(memory_format=torch.contiguous_format)


def finite_floor(logits: Tensor) -> Tensor:
    """Return a copy with −10⁴ in place of −∞."""
    return torch.where(logits == -math.inf, torch.tensor(-1e4, dtype=logits.dtype), logits).contiguous()


def make_logits(shape: tuple[int, ...], dtype: torch.dtype, values: str, seed: int, kind: str = "contiguous") -> Tensor:
    g = generator(seed)
    logits = 3 * torch.randn(shape, generator=g)
    if values == "large":
        logits *= 300
    elif values == "constant":
        logits.fill_(1.7)
    elif values in ("nan", "inf"):
        some = torch.rand(shape, generator=g) < 0.05
        logits[some] = math.nan if values == "nan" else math.inf
    elif values == "masked" and shape[1] > 1:
        logits[:, seed % shape[1]] = -math.inf
    return lay_out(logits.to(dtype), "contiguous" if (values, kind) == ("masked", "overlapping") else kind)


def make_target(shape: tuple[int, ...], num_classes: int, ignored: float, seed: int) -> tuple[Tensor, int]:
    """Return labels and the ignore index."""
    g = generator(seed + 1)
    ignore_index = 255 if num_classes <= 255 else -1
    target = torch.randint(num_classes, shape, generator=g)
    target[torch.rand(shape, generator=g) < ignored] = ignore_index
    return target, ignore_index


def assert_same(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Check that NaN and infinity are in the same places, and the rest is equal relative to the largest."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, what
    actual, expected = actual.detach().double(), expected.detach().double()
    assert torch.equal(actual.isnan(), expected.isnan()), f"{what}: NaN elsewhere"
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite), f"{what}: infinite elsewhere"
    assert torch.equal(actual[expected.isinf()], expected[expected.isinf()]), what
    scale = expected[finite].abs().max().clamp(min=1e-2) if finite.any() else 1.0
    error = (actual - expected)[finite].abs()
    assert (error <= tolerance * scale).all(), f"{what}: off by {error.max():.3g}, largest value {scale:.3g}"


def spread_nan(actual: Tensor, expected: Tensor, logits: Tensor) -> Tensor:
    """Return ``expected`` with the NaN of ``actual``.

    Check that ``actual`` has every NaN of ``expected``, and no other in an image whose logits are finite. A weight of 0
    times NaN is NaN, and backends differ in the neighbors that they read with weight 0.
    """
    assert actual[expected.isnan()].isnan().all(), "a NaN is missing"
    if len(logits):
        assert not actual[(logits.flatten(1) < math.inf).all(1)].isnan().any()
    return torch.where(actual.isnan(), actual, expected)


# --- Valid inputs -----------------------------------------------------------------------------------------------------


@small
@given(
    st.integers(0, 3),
    classes,
    sides,
    sides,
    sides,
    sides,
    memory,
    dtypes,
    st.sampled_from(VALUES),
    st.booleans(),
    seeds,
)
def test_pixel_stats(b, c, h, w, height, width, kind, dtype, values, align_corners, seed) -> None:
    logits = make_logits((b, c, h, w), dtype, values, seed, kind)
    size = (3 * height, 3 * width)
    actual = ops.pixel_stats(logits, size, align_corners=align_corners)
    # A class at −∞ has probability 0 everywhere, but interpolate gives NaN where its weight is 0.
    expected = reference.pixel_stats(finite_floor(logits), size, align_corners=align_corners)
    tolerance = 1e-3 if values == "large" else 2e-5  # a logit of 1000 is rounded to 1e-4
    assert_same(spread_nan(actual.confidence, expected.confidence, logits), actual.confidence, tolerance, "confidence")
    assert_same(spread_nan(actual.entropy, expected.entropy, logits), actual.entropy, tolerance, "entropy")
    assert actual.label.dtype == expected.label.dtype
    if b:
        assert 0 <= actual.label.min() and actual.label.max() < c
    full = reference.upsample(finite_floor(logits), size, align_corners)
    chosen = full.gather(1, actual.label[:, None].long())[:, 0]
    defined = ~actual.confidence.isnan()
    assert ((full.amax(1) - chosen)[defined] <= TIE * full.amax(1)[defined].abs().clamp(min=1)).all()


@small
@given(
    st.integers(0, 3), classes, sides, sides, sides, sides, memory, memory, dtypes, st.sampled_from(VALUES),
    st.sampled_from([0.0, 0.3, 1.0]), st.booleans(), st.booleans(), st.sampled_from([0.0, 0.1]), seeds,
)  # fmt: skip
def test_upsampled_cross_entropy(
    b, c, h, w, height, width, kind, target_kind, dtype, values, ignored, weigh, align_corners, smoothing, seed
) -> None:
    logits = make_logits((b, c, h, w), dtype, values, seed, kind)
    target, ignore_index = make_target((b, 3 * height, 3 * width), c, ignored, seed)
    target = lay_out(target, target_kind)
    options = {"ignore_index": ignore_index, "label_smoothing": smoothing, "align_corners": align_corners}
    if weigh:
        g = generator(seed + 2)
        options["weight"] = lay_out(torch.rand(c, generator=g) + 0.1, "stepped")
        options["pixel_weight"] = lay_out(torch.rand(target.shape, generator=g), target_kind)
    if values == "masked":
        target = torch.where(target == seed % c, ignore_index, target)  # its loss is infinite
        options["label_smoothing"] = 0.0
    results = []
    for backend, x in ((None, logits), ("reference", finite_floor(logits))):
        leaf = x.detach().requires_grad_()
        with ops.use_backend(backend):
            loss = ops.upsampled_cross_entropy(leaf, target, **options)
            loss.backward(torch.tensor([0.5, 9.0])[0])
        results.append((loss, leaf.grad))
    (loss, actual), (expected_loss, expected) = results
    if values == "inf":  # infinite or NaN, a loss that is not finite skips the step
        assert loss.isfinite() == expected_loss.isfinite()
        if not loss.isfinite():
            return
    assert_same(loss, expected_loss, 1e-5, "loss")
    assert_same(spread_nan(actual, expected, logits), actual, 1e-4 if dtype == torch.float32 else 1e-2, "gradient")


@small
@given(
    st.integers(0, 3), classes, sides, sides, sides, sides, memory, memory, dtypes,
    st.sampled_from(["plain", "large", "constant", "masked"]), st.sampled_from([0.0, 0.3, 1.0]), st.booleans(),
    st.sampled_from([0, 1, 7, 10**9]), seeds,
)  # fmt: skip
def test_ohem_mask(
    b, c, h, w, height, width, kind, target_kind, dtype, values, ignored, align_corners, min_kept, seed
) -> None:
    logits = make_logits((b, c, h, w), dtype, values, seed, kind)
    target, ignore_index = make_target((b, 3 * height, 3 * width), c, ignored, seed)
    target = lay_out(target, target_kind)
    options = {"min_kept": min_kept, "ignore_index": ignore_index, "align_corners": align_corners}
    actual = ops.ohem_mask(logits, target, threshold=0.3, **options)
    expected = reference.ohem_mask(finite_floor(logits), target, threshold=0.3, **options)
    y, kept = reference.kept_target(target, c, ignore_index)
    p = (
        reference.upsample(finite_floor(logits), target.shape[-2:], align_corners)
        .softmax(1)
        .gather(1, y[:, None])[:, 0]
    )
    bound = max(0.3, float(p[expected].max()) if expected.any() else 0.0)
    unclear = (p - bound).abs() <= 1e-5
    assert torch.equal(actual & ~unclear, expected & ~unclear)
    assert not (actual & ~kept).any()


@small
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=4), memory, memory, st.sampled_from([*DTYPES, torch.float64]),
    st.sampled_from(["plain", "large", "constant", "nan"]), st.sampled_from([0.0, 0.25, 0.5, 0.999, 1.0]),
    st.booleans(), seeds,
)  # fmt: skip
def test_masked_quantile(shape, kind, mask_kind, dtype, values, q, as_tensor, seed) -> None:
    x = lay_out(make_logits((1, 1, *shape), dtype, values, seed)[0, 0], kind)
    mask = lay_out(torch.rand(shape, generator=generator(seed)) < 0.6, mask_kind)
    share = torch.tensor(q) if as_tensor else q
    assert_same(
        ops.masked_quantile(x.requires_grad_(), mask, share),
        reference.masked_quantile(plain(x), mask, share),
        1e-6,
        "value",
    )


@small
@given(
    st.integers(0, 3),
    classes,
    sides,
    sides,
    memory,
    memory,
    dtypes,
    st.sampled_from(["plain", "large", "constant", "masked"]),
    seeds,
)
def test_contrast_masks(b, c, h, w, kind, map_kind, dtype, values, seed) -> None:
    logits = make_logits((b, c, h, w), dtype, values, seed, kind)
    label, ignore_index = make_target((b, h, w), c, 0.2, seed)
    share = torch.rand((b, h, w), generator=generator(seed + 2))
    maps = [lay_out(x, map_kind) for x in (label, share < 0.5, share > 0.6)]
    options = {"num_labeled": min(b, 1), "low_rank": seed % 4, "high_rank": 20, "ignore_index": ignore_index}
    actual = ops.contrast_masks(logits, *maps, positive_threshold=0.3, **options)
    expected = reference.contrast_masks(plain(logits), *maps, positive_threshold=0.3, **options)
    assert torch.equal(actual.mask, expected.mask) and torch.equal(actual.keys, expected.keys)
    p = logits.float().softmax(1).gather(1, torch.where(maps[0] == ignore_index, 0, maps[0])[:, None]).flatten()
    clear = (p - 0.3).abs() > TIE
    assert torch.equal(actual.anchor_label[clear], expected.anchor_label[clear])


def test_nan_logits_leave_other_pixels_alone() -> None:
    """Check that a pixel with NaN, which has no defined rank or anchor, does not affect its neighbors."""
    logits = make_logits((2, 21, 4, 5), torch.float32, "plain", 0)
    label, ignore_index = make_target((2, 4, 5), 21, 0.2, 0)
    yes = torch.ones_like(label, dtype=torch.bool)
    options = {
        "num_labeled": 1,
        "low_rank": 3,
        "high_rank": 20,
        "positive_threshold": 0.1,
        "ignore_index": ignore_index,
    }
    before = ops.contrast_masks(logits, label, yes, yes, **options)
    logits[0, 3, 1, 2], logits[1, :, 2, 2] = math.nan, math.nan
    after = ops.contrast_masks(logits, label, yes, yes, **options)
    others = ~logits.isnan().any(1).flatten()
    assert torch.equal(after.mask[others], before.mask[others])
    assert torch.equal(after.anchor_label[others], before.anchor_label[others])
    assert (after.anchor_label[~others] == -1).all()


@small
@given(st.integers(0, 40), classes, memory, memory, st.integers(0, 5), seeds)
def test_sampling_and_thinning(pixels, c, kind, draw_kind, count, seed) -> None:
    g = generator(seed)
    label = torch.randint(-1, c, (pixels,), generator=g).to(torch.int16)
    draws = lay_out(draw32(c, count, seed=seed), draw_kind)
    assert torch.equal(
        ops.class_sample(lay_out(label, kind), c, draws), reference.class_sample(plain(lay_out(label, kind)), c, draws)
    )
    mask, caps = make_mask(c, pixels, seed=seed), torch.randint(0, 5, (c,), generator=g)
    mask, caps, draw = lay_out(mask, kind), lay_out(caps, draw_kind), lay_out(draw32(c, seed=seed), draw_kind)
    thinned = ops.thin_mask(mask, caps, draw), reference.thin_mask(plain(mask), caps, draw)
    assert torch.equal(*(reference.unpack_mask(x, c) for x in thinned))  # bits past the last class have no meaning


@small
@given(st.integers(0, 3), st.sampled_from([1, 3, 16, 19]), sides, sides, st.booleans(), memory, memory, dtypes,
       st.sampled_from(["plain", "large", "nan", "inf"]), st.lists(st.integers(0, 4), max_size=3), seeds)  # fmt: skip
def test_features(b, dim, h, w, rows, kind, grad_kind, dtype, values, shape, seed) -> None:
    """Test class_sum, and gather_pixels with a gradient in any memory layout."""
    features = make_logits((b * h * w, dim, 1, 1)[:2] if rows else (b, dim, h, w), dtype, values, seed)
    features, g = lay_out(features, kind), generator(seed)
    pixels = b * h * w
    label = lay_out(torch.randint(-1, 5, (pixels,), generator=g).to(torch.int16), grad_kind)
    assert_same(ops.class_sum(features, label, 5), reference.class_sum(plain(features), label, 5), 1e-5, "class_sum")

    index = lay_out(torch.randint(-1, max(pixels, 1), shape, generator=g).clamp(max=pixels - 1), kind)
    results = []
    for backend, x in ((None, features), ("reference", plain(features))):
        leaf = x.detach().requires_grad_()
        with ops.use_backend(backend):
            value = ops.gather_pixels(leaf, index)
            grad = lay_out(torch.randn(value.shape, generator=generator(seed)).to(dtype), grad_kind)
            value.backward(grad)
        results.append((value, leaf.grad))
    assert_same(results[0][0], results[1][0], 0, "values")
    assert_same(results[0][1], results[1][1], 1e-5 if dtype == torch.float32 else 2e-2, "gradient")
    assert not ops.gather_pixels(features.detach(), index).requires_grad


@small
@given(
    st.integers(0, 30), st.sampled_from([1, 2, 5, 33]), st.sampled_from([1, 16, 19]), memory, dtypes, dtypes,
    st.sampled_from(["plain", "large", "nan", "inf"]), st.integers(0, 20), st.integers(0, 4), seeds,
)  # fmt: skip
def test_ring_push(pixels, c, dim, kind, dtype, bank_dtype, values, pushed, smallest, seed) -> None:
    capacities = [smallest + i % 7 for i in range(c)]
    rings = make_rings(capacities, dim, bank_dtype, pushed)
    expected = rings.clone()
    features = lay_out(make_logits((pixels, dim), dtype, values, seed), kind)
    mask = lay_out(make_mask(c, pixels, seed=seed), kind)
    ops.ring_push(*rings, features.requires_grad_(), mask)
    reference.ring_push(*expected, plain(features), mask)
    assert torch.equal(rings.pushed, expected.pushed)
    assert_same(rings.bank, expected.bank, 1e-6 if bank_dtype == torch.float32 else 2**-8, "bank")


@small
@given(
    st.sampled_from([1, 2, 5]), st.integers(1, 6), st.sampled_from([2, 16, 19]), st.integers(0, 5),
    st.sampled_from(ops.NEGATIVES), memory, memory, dtypes, dtypes,
    st.sampled_from(["plain", "large", "nan", "inf"]), seeds,
)  # fmt: skip
def test_info_nce(c, count, dim, negatives, mode, kind, other_kind, dtype, bank_dtype, values, seed) -> None:
    g = generator(seed)
    rings = make_rings([4 + i for i in range(c)], dim, bank_dtype, pushed=9)
    shape = {"per_anchor": (c, count, negatives), "shared": (c, negatives), "full": None}[mode]
    indices = None if shape is None else lay_out(torch.randint(4, shape, generator=g), other_kind)
    anchors = lay_out(make_logits((c, count, dim), dtype, values, seed), kind)
    positives = lay_out(torch.randn(c, dim, generator=g), other_kind)
    weight = lay_out(torch.rand(c, generator=g), "stepped")
    bank, offsets, pushed = rings.bank, lay_out(rings.offsets, "stepped"), lay_out(rings.pushed, "stepped")
    results = []
    for backend, x in ((None, anchors), ("reference", plain(anchors))):
        leaf = x.detach().requires_grad_()
        with ops.use_backend(backend):
            loss = ops.info_nce(leaf, weight, positives, bank, offsets, pushed, indices=indices, negatives=mode)
            loss.backward()
        results.append((loss, leaf.grad))
    assert_same(results[0][0], results[1][0], 1e-5, "loss")
    assert_same(results[0][1], results[1][1], 1e-4 if dtype == torch.float32 else 2e-2, "gradient")


# --- Invalid arguments ------------------------------------------------------------------------------------------------


def valid_calls() -> dict[str, dict]:
    """Return valid arguments by name for every op."""
    logits, target = torch.randn(2, 5, 3, 4), torch.zeros(2, 6, 8, dtype=torch.int64)
    label, flags = target[:, :3, :4].clone(), torch.ones(2, 3, 4, dtype=torch.bool)
    features, anchor_label = torch.randn(2, 7, 3, 4), torch.zeros(24, dtype=torch.int16)
    mask, rings = make_mask(5, 24), make_rings([4] * 5, 7, pushed=3)
    ranks = {"num_labeled": 1, "low_rank": 1, "high_rank": 4}
    maps = {"logits": logits, "label": label, "reliable": flags, "unreliable": flags}
    return {
        "pixel_stats": {"logits": logits, "size": (6, 8)},
        "upsampled_cross_entropy": {
            "logits": logits,
            "target": target,
            "weight": torch.ones(5),
            "pixel_weight": torch.ones(2, 6, 8),
        },
        "ohem_mask": {"logits": logits, "target": target, "threshold": 0.7, "min_kept": 3},
        "masked_quantile": {"x": logits, "mask": logits > 0, "q": torch.tensor(0.5)},
        "contrast_masks": {**maps, **ranks, "positive_threshold": 0.3},
        "thin_mask": {"mask": mask, "max_keys": torch.full((5,), 2), "draw": draw32(5)},
        "class_sample": {"anchor_label": anchor_label, "num_classes": 5, "draws": draw32(5, 2)},
        "class_sum": {"features": features, "anchor_label": anchor_label, "num_classes": 5},
        "gather_pixels": {"features": features, "index": torch.tensor([[0, 23, -1]])},
        "ring_push": {**rings._asdict(), "features": features, "mask": mask, "gate": torch.tensor(True)},
        "info_nce": {
            "anchors": torch.randn(5, 2, 7),
            "weight": torch.ones(5),
            "positives": torch.randn(5, 7),
            **rings._asdict(),
            "indices": torch.zeros(5, 2, 3, dtype=torch.int64),
        },
        "contrastive_loss": {
            **maps,
            **ranks,
            "features": features.clone(),
            "keys": features.clone(),
            "bank": MemoryBank([4] * 5, 7),
            "draws": ops.contrastive_draws(5, generator(), num_anchors=2, num_negatives=3),
        },
    }


def test_every_op_has_a_valid_call():
    assert {*_backend.names(), "contrastive_loss"} <= set(valid_calls())


@pytest.mark.parametrize("op", ["ohem_mask", "upsampled_cross_entropy"])
@pytest.mark.parametrize(("dtype", "label", "ignore_index"), [(torch.uint8, 100, -1), (torch.int8, -1, 511)])
def test_labels_compare_by_value_for_every_dtype(op, dtype, label, ignore_index):
    """Check labels out of the range of a dtype: uint8 cannot hold all of 300 classes, nor int8 the value 511."""
    target = torch.full((1, 3, 4), label, dtype=dtype)
    call = {"logits": torch.randn(1, 300, 3, 4), "target": target, "ignore_index": ignore_index}
    call |= {"threshold": 0.7, "min_kept": 1} if op == "ohem_mask" else {}
    for backend in ("reference", None):
        with ops.use_backend(backend):
            if label >= 0:
                getattr(ops, op)(**call)
            else:
                with pytest.raises(ValueError, match="target: .*-1.* is neither .*511"):
                    getattr(ops, op)(**call)


def _other_type(x: Tensor) -> Tensor:
    return x.to(torch.complex64 if x.is_floating_point() else torch.float32)


SPOILED = {
    "dimension": lambda x: x[None],
    "longer": lambda x: torch.cat((x, x)) if x.dim() else x[None],
    "type": _other_type,
    "device": lambda x: x.to("meta"),
    "gradient": lambda x: x.detach().clone().requires_grad_(),
}
TENSORS = [(op, name) for op, call in valid_calls().items() for name, x in call.items() if isinstance(x, Tensor)]
CONSTANTS = [("upsampled_cross_entropy", name) for name in ("weight", "pixel_weight")]
CONSTANTS += [("info_nce", name) for name in ("weight", "positives")]
STILL_VALID = {  # the change adds images, pixels, slots or draws
    ("pixel_stats", "logits", "longer"),
    ("pixel_stats", "logits", "device"),
    ("thin_mask", "mask", "longer"),
    ("class_sample", "anchor_label", "longer"),
    ("gather_pixels", "features", "longer"),
    ("gather_pixels", "index", "longer"),
    ("gather_pixels", "index", "dimension"),
    ("ring_push", "bank", "longer"),
    ("info_nce", "bank", "longer"),
}


@pytest.mark.parametrize(
    ("op", "name", "spoil"),
    [
        (op, name, spoil)
        for op, name in TENSORS
        for spoil in SPOILED
        if (op, name, spoil) not in STILL_VALID and (spoil != "gradient" or (op, name) in CONSTANTS)
    ],
)
def test_error_names_the_wrong_tensor(op: str, name: str, spoil: str) -> None:
    """Check the name. A shape can disagree with another argument, so either may be named; a dtype cannot."""
    call = valid_calls()[op]
    call[name] = SPOILED[spoil](call[name])
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(ops, op)(**call)
    named = str(caught.value).partition(": ")[0]
    assert named == name if spoil in ("type", "gradient") else named in call, caught.value
    assert "\n" not in str(caught.value)


def test_calls_are_valid_before_a_change() -> None:
    for op, call in valid_calls().items():
        getattr(ops, op)(**call)


def _change(op: str, name: str, value: object) -> object:
    shown = value.unique(sorted=False).tolist() if isinstance(value, Tensor) else value
    return pytest.param(op, name, value, id=f"{op}-{name}-{shown}")


def _rings(op: str) -> list:
    """Return slots outside the bank, where an op would read or write foreign memory."""
    return [
        _change(op, "offsets", torch.tensor([-4, 4, 8, 12, 16, 20])),
        _change(op, "offsets", torch.tensor([0, 4, 8, 12, 16, 21])),
        _change(op, "offsets", torch.tensor([0, 4, 80, 12, 16, 20])),
        _change(op, "offsets", torch.tensor([0, 4, -80, 12, 16, 20])),
        _change(op, "pushed", torch.tensor([3, 3, -1, 3, 3])),
    ]


VALUES_OUT_OF_RANGE = [
    *_rings("ring_push"),
    *_rings("info_nce"),
    _change("info_nce", "indices", torch.full((5, 2, 3), 3)),
    _change("info_nce", "indices", torch.full((5, 2, 3), -1)),
    _change("class_sample", "draws", torch.full((5, 2), 1 << 32)),
    _change("class_sample", "draws", torch.full((5, 2), -1)),
    _change("class_sample", "anchor_label", torch.full((24,), 5, dtype=torch.int16)),
    _change("class_sample", "anchor_label", torch.full((24,), -2, dtype=torch.int16)),
    _change("class_sum", "anchor_label", torch.full((24,), 5, dtype=torch.int16)),
    _change("class_sum", "anchor_label", torch.full((24,), -2, dtype=torch.int16)),
    _change("thin_mask", "draw", torch.full((5,), 1 << 32)),
    _change("thin_mask", "draw", torch.full((5,), -1)),
    _change("thin_mask", "max_keys", torch.full((5,), -1)),
    _change("gather_pixels", "index", torch.tensor([24])),
    _change("gather_pixels", "index", torch.tensor([-2])),
    _change("masked_quantile", "q", torch.tensor(1.5)),
    _change("masked_quantile", "q", torch.tensor(-0.1)),
    _change("masked_quantile", "q", torch.tensor(math.nan)),
    _change("masked_quantile", "q", math.nan),
    _change("ohem_mask", "threshold", math.nan),
    _change("contrast_masks", "positive_threshold", math.nan),
    _change("pixel_stats", "size", 6),
    _change("pixel_stats", "size", (6.0, 8.0)),
    _change("ring_push", "pushed", torch.zeros(10, dtype=torch.int64)[::2]),
    _change("ring_push", "pushed", torch.zeros(1, dtype=torch.int64).expand(5)),
    _change("ring_push", "bank", torch.zeros(1, 7).expand(20, 7)),
    *[
        _change(op, name, torch.full(shape, value))
        for op, name, shape in (
            ("upsampled_cross_entropy", "target", (2, 6, 8)),
            ("ohem_mask", "target", (2, 6, 8)),
            ("contrast_masks", "label", (2, 3, 4)),
        )
        for value in (5, -1, 254, 1 << 40)
    ],
]


@pytest.mark.parametrize("way", ["default", "reference", "float64"])
@pytest.mark.parametrize(("op", "name", "value"), VALUES_OUT_OF_RANGE)
def test_error_names_the_value_out_of_range(op: str, name: str, value: object, way: str) -> None:
    """Check every implementation on the CPU; float64 always uses the reference."""
    call = valid_calls()[op] | {name: value}
    before = call["bank"].clone() if op == "ring_push" else None
    if way == "float64":
        wide = ("logits", "features", "x", "anchors")
        call |= {key: x.double() for key, x in call.items() if key in wide}
    with ops.use_backend("reference" if way == "reference" else None):
        with pytest.raises((ValueError, TypeError), match=f"^{name}: "):
            getattr(ops, op)(**call)
    assert before is None or torch.equal(call["bank"], before)


def test_index_without_pixels_raises() -> None:
    features = torch.zeros(0, 7, 3, 4)
    assert not ops.gather_pixels(features, torch.full((2,), -1)).any()
    with pytest.raises(ValueError, match="^index: "):
        ops.gather_pixels(features, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"logits": torch.zeros(3)}, "logits"),
        ({"features": torch.zeros(2, 7, 6, 8)}, "features"),
        ({"features": torch.zeros(2, 7, 4, 3)}, "features"),
        ({"features": torch.zeros(2, 6, 3, 4)}, "features"),
        ({"keys": torch.zeros(2, 7, 6, 8)}, "keys"),
        ({"keys": torch.zeros(25, 7)}, "keys"),
        ({"keys": torch.zeros(24, 7, dtype=torch.int64)}, "keys"),
    ],
    ids=lambda x: None if isinstance(x, str) else "-".join([*x, *(str(tuple(y.shape)) for y in x.values())]),
)
def test_features_of_another_grid_raise_before_the_bank_changes(changed: dict, named: str) -> None:
    """Check the grid: on another one, the number of a pixel is another place."""
    call = valid_calls()["contrastive_loss"] | changed
    with pytest.raises((ValueError, TypeError), match=f"^{named}: "):
        ops.contrastive_loss(**call)
    assert not call["bank"].pushed.any()
