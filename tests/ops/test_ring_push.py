"""Test ops.ring_push: every backend against the reference and against a queue per class."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.backends import INTERPRETED, used
from tests.ops.contrast_cases import EMPTY, Batch, Rings, make_features, make_mask, make_rings, needs_extension
from tests.ops.op_cases import LAYOUTS as MEMORY
from tests.ops.op_cases import assert_close, generator
from u2pl_fast import ops, reference
from u2pl_fast.ops import _backend

# Elements of unit vectors: one rounding to the bank's type, and the rounding of the norm in fp32.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
CLASSES = [1, 2, 21, 33, 64, 150, 300]
LAYOUTS = ["nchw", "nhwc", "rows"]


@pytest.fixture(params=["triton"] if INTERPRETED else ["reference", "cpu", "triton", "cuda"])
def backend(request: pytest.FixtureRequest, filled_memory: None) -> Iterator[str]:
    with used(request.param):
        yield request.param


def assert_rings(actual: Rings, expected: Rings) -> None:
    """Check that the same slots have the same keys, and that unwritten slots are unchanged."""
    assert torch.equal(actual.pushed.cpu(), expected.pushed.cpu())
    assert actual.bank.dtype == expected.bank.dtype
    error = (actual.bank.double().cpu() - expected.bank.double().cpu()).abs()
    assert error.max() <= TOLERANCE[actual.bank.dtype], f"off by {error.max():.3g} at {error.argmax()}"
    assert torch.equal((actual.bank == EMPTY).all(1).cpu(), (expected.bank == EMPTY).all(1).cpu())


def capacities(classes: int, most: int) -> list[int]:
    return torch.randint(1, most + 1, (classes,), generator=generator(classes)).tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", CLASSES)
def test_matches_reference(classes: int, layout: str, backend: str, device: torch.device) -> None:
    batch = Batch(classes, (5, 7))  # 105 pixels: not a multiple of a warp, images that end within one
    rings = make_rings(capacities(classes, 40), 19)
    expected = rings.clone()
    rings = rings.to(device)
    for step in range(3):
        features = make_features(batch, 19, layout=layout) + step
        mask = make_mask(classes, batch.pixels, share=0.4, seed=step)
        reference.ring_push(*expected, features, mask)
        ops.ring_push(*rings, features.to(device), mask.to(device))
    assert_rings(rings, expected)


@pytest.mark.parametrize("features_type", TOLERANCE, ids=str)
@pytest.mark.parametrize("bank_type", TOLERANCE, ids=str)
@pytest.mark.parametrize("dim", [1, 32, 48, 300])
def test_dtypes(
    dim: int, bank_type: torch.dtype, features_type: torch.dtype, backend: str, device: torch.device
) -> None:
    batch = Batch(3, (9, 17), 2)
    expected = make_rings([50, 300, 7], dim, bank_type)
    rings = expected.clone().to(device)
    mask = make_mask(3, batch.pixels, share=0.5)
    for layout in ("nchw", "nhwc"):
        features = 50 * make_features(batch, dim, features_type, layout)  # squares beyond fp16
        reference.ring_push(*expected, features, mask)
        ops.ring_push(*rings, features.to(device), mask.to(device))
    assert_rings(rings, expected)


@pytest.mark.parametrize("bank_type", TOLERANCE, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_exact_norm_equal_the_reference_bit_for_bit(
    layout: str, bank_type: torch.dtype, backend: str, device: torch.device
) -> None:
    """Use norms that are powers of two, so that no sum and no division rounds."""
    batch = Batch(3, (5, 13), 4)
    signs = torch.sign(make_features(batch, 16)) * 2.0 ** torch.arange(-2, 2).view(4, 1, 1, 1)
    features = reference.pixel_rows(signs) if layout == "rows" else signs.contiguous(memory_format=MEMORY[layout])
    expected = make_rings([100, 30, 300], 16, bank_type)
    rings = expected.clone().to(device)
    for seed in range(2):
        mask = make_mask(3, batch.pixels, share=0.6, seed=seed)
        reference.ring_push(*expected, features, mask)
        ops.ring_push(*rings, features.to(device), mask.to(device))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(rings, expected, strict=True))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_maps_of_one_pixel(layout: str, backend: str, device: torch.device) -> None:
    batch = Batch(2, (1, 1), 7)
    expected = make_rings([4, 9], 5)
    rings = expected.clone().to(device)
    features, mask = make_features(batch, 5, layout=layout), make_mask(2, batch.pixels, share=0.8)
    reference.ring_push(*expected, features, mask)
    ops.ring_push(*rings, features.to(device), mask.to(device))
    assert_rings(rings, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_affects_only_its_row(layout: str, backend: str, device: torch.device) -> None:
    batch = Batch(1, (3, 3), 1)
    features = make_features(batch, 40, layout=layout)
    reference.pixel_rows(features)[4, 7] = torch.nan  # a view: written in place
    rings = make_rings([9], 40).to(device)
    ops.ring_push(*rings, features.to(device), torch.ones(9, 1, dtype=torch.int32, device=device))
    assert rings.bank.isnan().all(1).tolist() == rings.bank.isnan().any(1).tolist() == [i == 4 for i in range(9)]


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 15), max_size=11)), min_size=1, max_size=6),
)
def test_pushes_equal_a_queue(
    backend: str, device: torch.device, sizes: list[int], steps: list[tuple[bool, list[int]]]
) -> None:
    rings = make_rings(sizes, 2).to(device)
    queues, serial = oracle.Rings(sizes), 0
    for is_open, bits in steps:  # one pixel per entry; bit c is set if it is a key of class c
        angles = 0.1 + 0.07 * np.arange(serial, serial + len(bits))
        serial += len(bits)
        features = np.stack((np.cos(angles), np.sin(angles)), 1).astype(np.float32)
        sets = [[pixel for pixel, word in enumerate(bits) if word >> c & 1] for c in range(len(sizes))]
        mask = torch.tensor(bits, dtype=torch.int32).view(-1, 1)
        gate = torch.tensor(is_open, device=device)
        ops.ring_push(*rings, torch.from_numpy(features).to(device), mask.to(device), gate=gate)
        if is_open:
            queues.push(features, sets)
    assert rings.pushed.tolist() == queues.pushed
    assert np.abs(rings.bank.cpu().double().numpy() - queues.table(2, EMPTY)).max() <= 1e-6


def test_overflow_keeps_the_newest(backend: str, device: torch.device) -> None:
    """Push 3001 keys into rings of 1 to 2500, one of them in use: each slot holds its last key."""
    rings = make_rings([1, 37, 1000, 2500], 2, pushed=5)
    expected = rings.clone()
    features = torch.randn(3001, 2, generator=generator())
    mask = torch.full((3001, 1), 0b1111, dtype=torch.int32)
    reference.ring_push(*expected, features, mask)
    rings = rings.to(device)
    ops.ring_push(*rings, features.to(device), mask.to(device))
    assert_rings(rings, expected)
    newest = torch.nn.functional.normalize(features[-1], dim=0)
    torch.testing.assert_close(rings.bank[0].cpu(), newest)


def test_oldest_kept_key_at_any_position(backend: str, device: torch.device) -> None:
    """Make every pixel a key, in images of 40 pixels, which end within a block of every backend."""
    batch = Batch(6, (4, 10), 4)
    expected = make_rings([5, 25, 31, 33, 100, 160], 3)
    rings = expected.clone().to(device)
    features, mask = make_features(batch, 3), torch.full((batch.pixels, 1), 0b111111, dtype=torch.int32)
    reference.ring_push(*expected, features, mask)
    ops.ring_push(*rings, features.to(device), mask.to(device))
    assert_rings(rings, expected)


@pytest.mark.parametrize("is_open", [True, False])
def test_gate(is_open: bool, backend: str, device: torch.device) -> None:
    rings = make_rings([3, 3], 2).to(device)
    features = torch.full((4, 2), 1.0 if is_open else torch.nan, device=device)
    mask = torch.full((4, 1), 0b01, dtype=torch.int32, device=device)
    ops.ring_push(*rings, features, mask, gate=torch.tensor(is_open, device=device))
    assert rings.pushed.tolist() == [4 * is_open, 0]
    assert ((rings.bank[:3] != EMPTY).all() if is_open else (rings.bank == EMPTY).all()).item()


def test_one_pixel_and_no_key(backend: str, device: torch.device) -> None:
    rings = make_rings([2, 2], 3).to(device)
    row = torch.tensor([[0.0, 3.0, 4.0]], device=device)
    ops.ring_push(*rings, row, torch.zeros(1, 1, dtype=torch.int32, device=device))
    assert rings.pushed.tolist() == [0, 0] and (rings.bank == EMPTY).all()
    ops.ring_push(*rings, row, torch.full((1, 1), 2, dtype=torch.int32, device=device))
    assert rings.pushed.tolist() == [0, 1]
    torch.testing.assert_close(rings.bank[2].cpu(), torch.tensor([0.0, 0.6, 0.8]))
    ops.ring_push(*rings, row * 0, torch.full((1, 1), 2, dtype=torch.int32, device=device))
    assert rings.bank[3].tolist() == [0, 0, 0]  # the norm is clamped


def test_bits_past_the_last_class_are_not_read(backend: str, device: torch.device) -> None:
    rings = make_rings([4, 4, 4], 2).to(device)
    ops.ring_push(*rings, torch.ones(5, 2, device=device), torch.full((5, 1), -1, dtype=torch.int32, device=device))
    assert rings.pushed.tolist() == [5, 5, 5]


def test_counts_past_2_to_31(backend: str, device: torch.device) -> None:
    rings = make_rings([7], 1)
    rings.pushed.add_((1 << 33) + 2)
    rings = rings.to(device)
    ops.ring_push(*rings, torch.ones(2, 1, device=device), torch.ones(2, 1, dtype=torch.int32, device=device))
    slots = sorted(((1 << 33) + 2 + i) % 7 for i in range(2))
    assert (rings.bank.flatten() == 1).nonzero().flatten().tolist() == slots
    assert rings.pushed.tolist() == [(1 << 33) + 4]


def test_thread_count_changes_nothing(backend: str, device: torch.device) -> None:
    batch = Batch(21, (31, 33), 2)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        rings = make_rings(capacities(21, 200), 24).to(device)
        ops.ring_push(*rings, make_features(batch, 24).to(device), make_mask(21, batch.pixels).to(device))
        results.append(rings)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_extension
@pytest.mark.parametrize("level", ["avx512", "avx2", "baseline"])
def test_instruction_sets_agree(level: str) -> None:
    extension = _backend.extension()
    if level not in extension.cpu_levels():
        pytest.skip(f"this machine does not run {level}")
    before, batch = extension.cpu_level(), Batch(5, (5, 9))
    extension.use_cpu_level(level)
    try:
        for dtype in TOLERANCE:
            expected = make_rings([20, 20, 20, 20, 60], 40, dtype)
            rings = expected.clone()
            for layout in ("nchw", "nhwc"):
                features, mask = make_features(batch, 40, dtype, layout), make_mask(5, batch.pixels)
                features[0, 3] *= 1e-3  # some numbers that are subnormal in half precision
                reference.ring_push(*expected, features, mask)
                extension.ring_push(*rings, features, mask)
            assert_rings(rings, expected)
    finally:
        extension.use_cpu_level(before)


def test_half_bank_is_the_rounded_fp32_bank(backend: str, device: torch.device) -> None:
    batch = Batch(2, (5, 9))
    features, mask = make_features(batch, 32).to(device), make_mask(2, batch.pixels).to(device)
    exact = make_rings([60, 60], 32).to(device)
    ops.ring_push(*exact, features, mask)
    for dtype in (torch.bfloat16, torch.float16):
        rings = make_rings([60, 60], 32, dtype).to(device)
        ops.ring_push(*rings, features, mask)
        assert torch.equal(rings.bank, exact.bank.to(dtype))


def test_float64_bank(backend: str) -> None:
    if backend in ("triton", "cuda"):
        pytest.skip("the reference's")
    rings = make_rings([9], 3, torch.float64)
    features = torch.randn(4, 3, generator=generator()).double()
    ops.ring_push(*rings, features, torch.ones(4, 1, dtype=torch.int32))
    assert_close(rings.bank[:4], torch.nn.functional.normalize(features, dim=1), 1e-12)


def test_opcheck(backend: str, device: torch.device) -> None:
    batch = Batch(5, (5, 7))
    arguments = (
        *make_rings([9] * 5, 6).to(device),
        make_features(batch, 6).to(device),
        make_mask(5, batch.pixels).to(device),
    )
    for gate in (None, torch.tensor(True, device=device)):
        torch.library.opcheck(torch.ops.u2pl_fast.ring_push, (*arguments, gate))


def test_compiles_without_graph_breaks(backend: str, device: torch.device) -> None:
    batch = Batch(5, (5, 7))
    features, mask = make_features(batch, 6).to(device), make_mask(5, batch.pixels).to(device)

    def f(rings: Rings) -> torch.Tensor:
        ops.ring_push(*rings, features * 2, mask)
        return rings.bank.sum() + rings.pushed.sum()

    eager, compiled = make_rings([9] * 5, 6).to(device), make_rings([9] * 5, 6).to(device)
    value = torch.compile(f, fullgraph=True, backend="aot_eager")(compiled)
    assert torch.equal(value, f(eager))
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


@pytest.mark.parametrize(
    ("changed", "error", "name"),
    [
        ({"bank": torch.zeros(6, 4)}, ValueError, "bank"),
        ({"bank": torch.zeros(3, 6).t()}, ValueError, "bank"),
        ({"bank": torch.zeros(6, 3).int()}, TypeError, "bank"),
        ({"offsets": torch.tensor([0, 6])}, ValueError, "offsets"),
        ({"offsets": torch.tensor([0.0, 3, 6])}, TypeError, "offsets"),
        ({"pushed": torch.zeros(2).int()}, TypeError, "pushed"),
        ({"features": torch.zeros(4, 3, 1)}, ValueError, "features"),
        ({"mask": torch.zeros(5, 1).int()}, ValueError, "mask"),
        ({"mask": torch.zeros(4, 1)}, TypeError, "mask"),
        ({"gate": torch.zeros(1, dtype=torch.bool)}, ValueError, "gate"),
        ({"gate": torch.tensor(1)}, TypeError, "gate"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_wrong_arguments(changed: dict, error: type[Exception], name: str) -> None:
    rings = make_rings([3, 3], 3)
    arguments = {**rings._asdict(), "features": torch.zeros(4, 3), "mask": torch.zeros(4, 1).int()} | changed
    with pytest.raises(error, match=f"^{name}: "):
        ops.ring_push(**arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)
def test_cuda_graph_replays_pushes(backend: str, device: torch.device) -> None:
    batch = Batch(21, (33, 31))
    features, mask = make_features(batch, 64).to(device), make_mask(21, batch.pixels).to(device)
    gate = torch.tensor(True, device=device)
    rings, expected = make_rings([500] * 21, 64).to(device), make_rings([500] * 21, 64)
    ops.ring_push(*rings.clone(), features, mask, gate=gate)  # keep the setup of a first launch out of the graph
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            ops.ring_push(*rings, features, mask, gate=gate)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for is_open in (True, False, True):
        gate.fill_(is_open)
        graph.replay()
        reference.ring_push(*expected, features.cpu(), mask.cpu(), gate=torch.tensor(is_open))
    assert_rings(rings, expected)
