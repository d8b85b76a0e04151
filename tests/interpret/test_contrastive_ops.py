"""Run the triton kernels of the contrastive ops in triton's interpreter, with the tests of the other backends.

Triton reads the choice when it is imported, so this needs its own process: TRITON_INTERPRET=1 pytest tests/interpret.
The interpreter runs one program after another, thousands of times slower than a GPU, so some larger cases are omitted.
"""

import pytest
import torch

from u2pl_fast import reference
from u2pl_fast.ops import _backend

if not _backend.interpreted():
    pytest.skip("run apart, as TRITON_INTERPRET=1 pytest tests/interpret", allow_module_level=True)

from tests.ops import contrast_cases
from tests.ops import test_class_sample as class_sample
from tests.ops import test_class_sum as class_sum
from tests.ops import test_contrast_masks as contrast_masks
from tests.ops import test_contrastive_loss as contrastive_loss
from tests.ops import test_gather_pixels as gather_pixels
from tests.ops import test_info_nce as info_nce
from tests.ops import test_ring_push as ring_push
from tests.ops import test_thin_mask as thin_mask
from tests.ops.contrast_cases import BATCHES, Batch

TESTS = {
    contrast_masks: [
        "matches_reference",
        "dtypes_and_layouts",
        "all_ignored",
        "partition_of_labeled_images_is_not_read",
        "label_out_of_range",
        "nan_does_not_hang",
    ],
    thin_mask: ["matches_reference", "many_pixels_and_the_largest_draw"],
    class_sample: ["no_anchors_and_no_draws", "draws_are_uniform"],
    class_sum: ["many_pixels_stay_accurate_and_repeat_their_bits"],
    ring_push: [
        "rows_of_exact_norm_equal_the_reference_bit_for_bit",
        "maps_of_one_pixel",
        "nan_affects_only_its_row",
        "pushes_equal_a_queue",
        "overflow_keeps_the_newest",
        "oldest_kept_key_at_any_position",
        "gate",
        "one_pixel_and_no_key",
        "bits_past_the_last_class_are_not_read",
        "counts_past_2_to_31",
        "opcheck",
        "compiles_without_graph_breaks",
    ],
    gather_pixels: [
        "one_pixel_and_none",
        "rows_of_a_pixel_far_apart",
        "shape_of_the_index",
        "slices_are_read_in_place",
        "bits_repeat",
    ],
    contrastive_loss: [
        "equals_its_steps",
        "closed_gate_keeps_the_bank",
        "no_labeled_and_no_reliable_pixel",
        "classes_with_anchor_and_key_share_the_weight",
        "weights_of_many_classes",
        "opcheck",
    ],
    info_nce: ["no_active_class", "inactive_classes_are_not_read", "zero_anchor_and_zero_center", "draws_select_slots"],
}
for module, names in TESTS.items():
    for name in names:
        globals()[f"test_{module.__name__.rpartition('test_')[2]}_{name}"] = getattr(module, f"test_{name}")

CPU = torch.device("cpu")
NARROW = [(torch.float32, "nchw"), (torch.bfloat16, "nhwc"), (torch.float16, "rows")]
MODES = ["per_anchor", "shared", "full"]


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 5), (1, 2), (3, 3), (2, 400)])
def test_contrast_masks_ranks(low: int, high: int, backend: str) -> None:
    contrast_masks.test_other_ranks(21, low, high, backend, CPU)


@pytest.mark.parametrize("classes", [6, 40])
def test_contrast_masks_ties(classes: int, backend: str) -> None:
    contrast_masks.test_ties_go_to_the_lower_class(classes, backend, CPU)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64], ids=str)
def test_contrast_masks_counts_bad_labels(dtype: torch.dtype, backend: str) -> None:
    from u2pl_fast.kernels import contrast_masks as kernel

    batch = Batch(5, (6, 33), 4, 2)
    maps, errors = contrast_cases.make_maps(batch), torch.tensor([3], dtype=torch.int32)
    maps.label[0, 0, :4] = torch.tensor([5, 254, 77, 255])
    maps.label[3, 5, 32] = 6
    kernel.contrast_masks(maps.logits, maps.label.to(dtype), *maps[2:], errors, **contrast_cases.settings(batch))
    assert errors.tolist() == [3 + 4]


def test_running_counts_of_many_blocks(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from u2pl_fast.kernels import _counting

    monkeypatch.setattr(_counting, "BLOCKS", 2)
    class_sample.test_matches_reference(33, 5 * _counting.BLOCK + 1, backend, CPU)


@pytest.mark.parametrize(("classes", "pixels"), [(1, 1), (2, 321), (21, 321), (33, 63), (300, 63)])
def test_class_sample(classes: int, pixels: int, backend: str) -> None:
    class_sample.test_matches_reference(classes, pixels, backend, CPU)


@pytest.mark.parametrize("batch", [BATCHES[0], BATCHES[2], BATCHES[9], BATCHES[10]], ids=str)
def test_class_sum(batch: Batch, backend: str) -> None:
    class_sum.test_matches_reference(batch, "nchw", backend, CPU)


@pytest.mark.parametrize(("dtype", "layout"), NARROW, ids=str)
@pytest.mark.parametrize("dim", [1, 32])
def test_class_sum_dtypes(dim: int, dtype: torch.dtype, layout: str, backend: str) -> None:
    class_sum.test_dtypes(dim, dtype, layout, backend, CPU)


@pytest.mark.parametrize(("dtype", "layout"), NARROW, ids=str)
@pytest.mark.parametrize("dim", [1, 19])
def test_gather_pixels(dim: int, dtype: torch.dtype, layout: str, backend: str) -> None:
    gather_pixels.test_matches_reference(dim, dtype, layout, backend, CPU)


@pytest.mark.parametrize(("classes", "layout"), [(1, "nchw"), (21, "nchw"), (33, "nhwc"), (64, "rows"), (300, "nchw")])
def test_ring_push(classes: int, layout: str, backend: str) -> None:
    ring_push.test_matches_reference(classes, layout, backend, CPU)


@pytest.mark.parametrize("features_type", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("dim", "bank_type"), [(1, torch.float16), (48, torch.bfloat16), (300, torch.float32)], ids=str
)
def test_ring_push_dtypes(dim: int, bank_type: torch.dtype, features_type: torch.dtype, backend: str) -> None:
    ring_push.test_dtypes(dim, bank_type, features_type, backend, CPU)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("classes", [1, 2, 21])
def test_info_nce(classes: int, mode: str, backend: str) -> None:
    info_nce.check(info_nce.make_inputs(mode, classes, count=3, dim=16), mode, CPU)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("count", "dim", "negatives", "pushed"), [(1, 1, 1, 1), (5, 130, 40, 30), (3, 512, 5, 4), (66, 8, 3, 40)]
)
def test_info_nce_sizes(count: int, dim: int, negatives: int, pushed: int, mode: str, backend: str) -> None:
    info_nce.check(info_nce.make_inputs(mode, 2, count, dim, negatives, pushed), mode, CPU)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_info_nce_half(dtype: torch.dtype, mode: str, backend: str) -> None:
    """Check that rounding anchors and shares to the bank's type costs as much as rounding the keys."""
    inputs = info_nce.make_inputs(mode, 3, dim=64, negatives=50, pushed=30, bank_type=dtype)
    loss, grad, exact, exact_grad = info_nce.both(inputs, mode)
    assert (loss - exact).abs() <= 1e-2 * exact.abs()
    assert (grad - exact_grad).norm() <= 1e-2 * exact_grad.norm()


@pytest.mark.parametrize("temperature", [0.03, 10.0])
def test_info_nce_temperature(temperature: float, backend: str) -> None:
    for mode in MODES:
        info_nce.check(info_nce.make_inputs(mode, 2), mode, CPU, temperature)


def test_info_nce_parts_are_merged(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a class divided into several parts, some of them empty, equals the class in one part."""
    from u2pl_fast.kernels import info_nce as kernel

    monkeypatch.setattr(kernel, "PART_KEYS", 2)
    inputs = info_nce.make_inputs("full", 5, 5, 19, pushed=40)
    rows, keys = inputs.rings.bank.shape[0], kernel.tile(32, torch.float32, 32).keys
    longest = int(reference.ring_fill(inputs.rings.offsets, inputs.rings.pushed).max())
    assert keys < longest and rows // (5 * kernel.PART_KEYS) > 2
    info_nce.check(inputs, "full", CPU)
