"""Test ops.contrast_masks: every backend against the reference."""

import pytest
import torch
from torch import Tensor

from tests.ops.contrast_cases import BATCHES, Batch, Maps, make_maps, settings
from tests.ops.op_cases import HALVES, LAYOUTS
from u2pl_fast import ops, reference

NEAR = 1e-5  # a probability this close to the threshold may be on either side
BASE = Batch(21, (5, 3), 3, 1)


def assert_masks(actual: reference.ContrastMasks, maps: Maps, chosen: dict) -> None:
    """Check that negatives, anchors away from the threshold, and counts agree exactly."""
    expected = reference.contrast_masks(*maps, **chosen)
    classes = maps.logits.shape[1]
    assert [x.dtype for x in actual] == [x.dtype for x in expected]
    assert torch.equal(actual.mask, expected.mask)
    y, kept = reference.kept_target(maps.label, classes, chosen["ignore_index"])
    p = reference.wide(maps.logits).softmax(1).gather(1, y[:, None])[:, 0]
    clear = ((p - chosen["positive_threshold"]).abs() > NEAR).flatten()
    assert torch.equal(actual.anchor_label[clear], expected.anchor_label[clear])
    assert clear.sum() >= clear.numel() - 1, "almost no pixel may be in doubt"
    assert actual.keys.tolist() == reference.unpack_mask(actual.mask, classes).sum(0).tolist()
    assert actual.anchors.tolist() == [(actual.anchor_label == c).sum().item() for c in range(classes)]


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_matches_reference(batch: Batch, backend: str, device: torch.device) -> None:
    maps, chosen = make_maps(batch).to(device), settings(batch)
    assert_masks(ops.contrast_masks(*maps, **chosen), maps, chosen)


@pytest.mark.parametrize("classes", [21, 40])
@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 5), (1, 2), (3, 3), (2, 400), (40, 41)])
def test_other_ranks(classes: int, low: int, high: int, backend: str, device: torch.device) -> None:
    batch = Batch(classes, (3, 5), 2, 1)
    maps, chosen = make_maps(batch).to(device), settings(batch, low_rank=low, high_rank=high)
    assert_masks(ops.contrast_masks(*maps, **chosen), maps, chosen)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_dtypes_and_layouts(layout: str, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    for batch in (Batch(5, (3, 19), 2, 1), Batch(45, (3, 19), 2, 1)):
        maps = make_maps(batch).to(device, layout, dtype)
        assert_masks(ops.contrast_masks(*maps, **settings(batch)), maps, settings(batch))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_label_dtypes(dtype: torch.dtype, backend: str, device: torch.device) -> None:
    maps = make_maps(BASE).to(device)
    maps = maps._replace(label=maps.label.to(dtype))
    assert_masks(ops.contrast_masks(*maps, **settings(BASE)), maps, settings(BASE))


@pytest.mark.parametrize("classes", [6, 40, 150])
def test_ties_go_to_the_lower_class(classes: int, backend: str, device: torch.device) -> None:
    batch = Batch(classes, (4, 5), 2, 1)
    maps = make_maps(batch)
    coarse = maps.logits.div(3).round()  # few values, with -0 among them
    assert (coarse == 0).any() and (1 / coarse == -torch.inf).any()
    for logits in (coarse, torch.zeros_like(coarse)):
        tied = maps._replace(logits=logits).to(device)
        for high in (4, 20):
            chosen = settings(batch, low_rank=2, high_rank=high, positive_threshold=0.011)
            assert_masks(ops.contrast_masks(*tied, **chosen), tied, chosen)


def test_all_ignored(backend: str, device: torch.device) -> None:
    maps = make_maps(BASE, ignored=1.0).to(device)
    nowhere = torch.zeros_like(maps.reliable)
    masks = ops.contrast_masks(maps.logits, maps.label, nowhere, nowhere, **settings(BASE))
    assert not masks.mask.any() and (masks.anchor_label == -1).all()
    assert not masks.keys.any() and not masks.anchors.any()


def test_partition_of_labeled_images_is_not_read(backend: str, device: torch.device) -> None:
    maps = make_maps(BASE).to(device)
    first = ops.contrast_masks(*maps, **settings(BASE))
    maps.reliable[: BASE.labeled].logical_not_()
    maps.unreliable[: BASE.labeled].logical_not_()
    assert all(torch.equal(a, b) for a, b in zip(first, ops.contrast_masks(*maps, **settings(BASE)), strict=True))


def test_label_out_of_range(backend: str, device: torch.device) -> None:
    maps = make_maps(BASE).to(device)
    maps.label[1, 2, 1] = 77
    if device.type == "cpu":
        with pytest.raises(ValueError, match="label.*77"):
            ops.contrast_masks(*maps, **settings(BASE))
    else:
        ops.contrast_masks(*maps, **settings(BASE))
        with pytest.raises(ValueError, match="1 label"):
            ops.check_label_errors(device)


def test_nan_does_not_hang(backend: str, device: torch.device) -> None:
    batch = Batch(40, (3, 5), 2, 1)
    maps = make_maps(batch).to(device)
    maps.logits[:, ::2] = torch.nan
    maps.logits[1, :, 0] = torch.tensor(0x7FFFFFFF, dtype=torch.int32, device=device).view(torch.float32)
    assert ops.contrast_masks(*maps, **settings(batch)).mask.shape == (batch.pixels, 2)


def test_thread_count_changes_nothing(backend: str, device: torch.device) -> None:
    batch = Batch(21, (23, 61), 3, 1)
    maps = make_maps(batch).to(device)
    first = ops.contrast_masks(*maps, **settings(batch))
    torch.set_num_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(first, ops.contrast_masks(*maps, **settings(batch)), strict=True))


@pytest.mark.parametrize("batch", [BASE, Batch(300, (2, 3), 2, 1)], ids=str)
def test_opcheck(batch: Batch, backend: str, device: torch.device) -> None:
    arguments = (*make_maps(batch).to(device, "nhwc"), *settings(batch).values())
    torch.library.opcheck(torch.ops.u2pl_fast.contrast_masks, arguments)


def test_compiles_without_graph_breaks(backend: str, device: torch.device) -> None:
    def f(logits: Tensor, *maps: Tensor) -> Tensor:
        masks = ops.contrast_masks(logits * 2, *maps, **settings(BASE))
        return masks.keys + masks.anchors

    maps = make_maps(BASE).to(device)
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(*maps), f(*maps))


@pytest.mark.parametrize(
    ("changed", "error", "name"),
    [
        ({"logits": torch.zeros(3, 5, 3)}, ValueError, "logits"),
        ({"label": torch.zeros(3, 5, 4, dtype=torch.int64)}, ValueError, "label"),
        ({"label": torch.zeros(3, 5, 3)}, TypeError, "label"),
        ({"reliable": torch.zeros(3, 5, 3)}, TypeError, "reliable"),
        ({"unreliable": torch.zeros(2, 5, 3, dtype=torch.bool)}, ValueError, "unreliable"),
        ({"num_labeled": 4}, ValueError, "num_labeled"),
        ({"low_rank": 21}, ValueError, "high_rank"),
        ({"ignore_index": 20}, ValueError, "ignore_index"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_wrong_arguments(changed: dict, error: type[Exception], name: str) -> None:
    arguments = make_maps(BASE)._asdict() | settings(BASE) | changed
    with pytest.raises(error, match=f"^{name}: "):
        ops.contrast_masks(**arguments)
