"""Test ops.class_sum: every backend against the reference."""

import pytest
import torch
from torch import Tensor

from tests.ops.contrast_cases import Batch, make_anchor_label, make_features, needs_extension
from tests.ops.op_cases import TOLERANCE, assert_close
from u2pl_fast import ops, reference

BATCHES = [Batch(1), Batch(2), Batch(21, (5, 3)), Batch(64, (3, 5)), Batch(150, (9, 5)), Batch(300, (7, 7), 2)]
LAYOUTS = ["nchw", "nhwc", "rows"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_matches_reference(batch: Batch, layout: str, backend: str, device: torch.device) -> None:
    features = make_features(batch, 19, layout=layout).to(device)
    label = make_anchor_label(batch.classes, batch.pixels, without=0).to(device)
    total = ops.class_sum(features, label, batch.classes)
    assert total.dtype == torch.float32 and not total[0].any()
    assert_close(total, reference.class_sum(features.double(), label, batch.classes), TOLERANCE["value"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("dim", [1, 32])
def test_dtypes(dim: int, dtype: torch.dtype, layout: str, backend: str, device: torch.device) -> None:
    batch = Batch(5, (7, 9))
    features = make_features(batch, dim, dtype, layout).to(device)
    label = make_anchor_label(5, batch.pixels).to(device)
    total = ops.class_sum(features, label, 5)
    assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(total, reference.class_sum(features.double(), label, 5), TOLERANCE["value"])


def test_many_pixels_stay_accurate_and_repeat_their_bits(backend: str, device: torch.device) -> None:
    batch = Batch(2, (63, 67), 2)
    features = (make_features(batch, 3) + 100).to(device)  # of one sign, so that errors add up and nothing cancels
    label = make_anchor_label(2, batch.pixels, present=1.0).to(device)
    total = ops.class_sum(features, label, 2)
    assert_close(total, reference.class_sum(features.double(), label, 2), TOLERANCE["value"])
    torch.set_num_threads(2)
    if backend != "reference":
        assert torch.equal(total, ops.class_sum(features, label, 2))


def test_no_gradient(backend: str, device: torch.device) -> None:
    features = make_features(BATCHES[2], 4).to(device).requires_grad_()
    assert not ops.class_sum(features, make_anchor_label(21, BATCHES[2].pixels).to(device), 21).requires_grad


def test_opcheck(backend: str, device: torch.device) -> None:
    label = make_anchor_label(21, BATCHES[2].pixels).to(device)
    for layout in LAYOUTS:
        features = make_features(BATCHES[2], 6, layout=layout).to(device)
        torch.library.opcheck(torch.ops.u2pl_fast.class_sum, (features, label, 21))


def test_compiles_without_graph_breaks(backend: str, device: torch.device) -> None:
    def f(features: Tensor, label: Tensor) -> Tensor:
        return ops.class_sum(features * 2, label, 21) + 1

    arguments = make_features(BATCHES[2], 6).to(device), make_anchor_label(21, BATCHES[2].pixels).to(device)
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(*arguments), f(*arguments))


@pytest.mark.parametrize(
    ("features", "label", "error", "name"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(8, dtype=torch.int16), ValueError, "features"),
        (torch.zeros(8, 3).int(), torch.zeros(8, dtype=torch.int16), TypeError, "features"),
        (torch.zeros(8, 3), torch.zeros(9, dtype=torch.int16), ValueError, "anchor_label"),
        (torch.zeros(8, 3), torch.zeros(8).long(), TypeError, "anchor_label"),
    ],
)
def test_wrong_arguments(features: Tensor, label: Tensor, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^{name}: "):
        ops.class_sum(features, label, 3)


@needs_extension
def test_class_out_of_range_raises_on_the_cpu() -> None:
    with ops.use_backend("cpu"), pytest.raises(ValueError, match="anchor_label: 3"):
        ops.class_sum(torch.zeros(2, 4), torch.tensor([0, 3], dtype=torch.int16), 3)
