"""Test ops.contrastive_loss: it equals its steps in the reference, and never waits for the device."""

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from tests.ops.contrast_cases import Batch, make_features, make_maps, settings
from tests.ops.op_cases import LAYOUTS, TOLERANCE, assert_close, generator
from u2pl_fast import ops, reference
from u2pl_fast.memory_bank import MemoryBank

BATCH = Batch(6, (7, 9), 4, 2)
DIM = 16


def make_bank(**changed: object) -> MemoryBank:
    return MemoryBank([40 + c for c in range(BATCH.classes)], DIM, **{"max_keys_per_step": 0, **changed})


def make_draws(mode: str = "per_anchor", seed: int = 0) -> ops.ContrastiveDraws:
    return ops.contrastive_draws(BATCH.classes, generator(seed), num_anchors=5, num_negatives=8, negatives=mode)


class PlainBank:
    """Keep the rings of a bank with reference functions."""

    def __init__(self, rings: MemoryBank) -> None:
        self.bank, self.offsets, self.pushed, self.max_keys = rings.bank, rings.offsets, rings.pushed, rings.max_keys

    def push(self, features: Tensor, mask: Tensor, *, draw: Tensor, gate: Tensor | None) -> None:
        thinned = reference.thin_mask(mask, self.max_keys, draw)
        reference.ring_push(self.bank, self.offsets, self.pushed, features, thinned, gate=gate)


def plain_loss(
    maps: tuple,
    features: Tensor,
    keys: Tensor,
    bank: MemoryBank,
    draws: ops.ContrastiveDraws,
    mode: str,
    head: nn.Module,
) -> Tensor:
    """Compute the same steps with reference functions only."""
    masks = reference.contrast_masks(*maps, **settings(BATCH))
    return reference.contrastive_loss_from_masks(
        masks, features, keys, PlainBank(bank), draws, negatives=mode, project=head
    ).loss


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["per_anchor", "shared", "full"])
@pytest.mark.parametrize("cap", [0, 3])
def test_equals_its_steps(cap: int, mode: str, layout: str, backend: str, device: torch.device) -> None:
    maps = make_maps(BATCH).to(device, layout)
    torch.manual_seed(0)
    head = nn.Linear(DIM, DIM).to(device)
    banks = [make_bank(max_keys_per_step=cap).to(device) for _ in range(2)]
    for step in range(2):
        features = (make_features(BATCH, DIM, layout=layout) + step).to(device)
        draws = ops.ContrastiveDraws(*(None if x is None else x.to(device) for x in make_draws(mode, step)))
        with torch.no_grad():
            keys = head(reference.pixel_rows(features))
        leaves = [features.clone().requires_grad_() for _ in range(2)]
        result = ops.contrastive_loss(
            *maps, leaves[0], keys, banks[0], draws, negatives=mode, project=head, **settings(BATCH)
        )
        expected = plain_loss(maps, leaves[1], keys, banks[1], draws, mode, head)
        assert expected > 0
        assert_close(result.loss, expected, TOLERANCE["value"], "loss")
        for loss in (result.loss, expected):
            loss.backward()
        assert_close(leaves[0].grad, leaves[1].grad, 1e-5, "gradient")
        assert torch.equal(banks[0].pushed, banks[1].pushed)
        assert_close(banks[0].bank, banks[1].bank, 1e-6, "bank")
        if cap:
            assert result.pushed.max() <= cap
        else:
            assert torch.equal(result.pushed, result.negatives)


def test_dense_representations_need_no_head(backend: str, device: torch.device) -> None:
    maps = make_maps(BATCH).to(device)
    features = make_features(BATCH, DIM).to(device).requires_grad_()
    draws = ops.ContrastiveDraws(*(x.to(device) for x in make_draws()))
    banks = [make_bank().to(device) for _ in range(2)]
    loss = ops.contrastive_loss(*maps, features, features, banks[0], draws, **settings(BATCH)).loss
    expected = plain_loss(maps, features, features.detach(), banks[1], draws, "per_anchor", nn.Identity())
    assert_close(loss, expected, TOLERANCE["value"], "loss")


def test_positives_replace_the_centers(backend: str, device: torch.device) -> None:
    masks = ops.contrast_masks(*make_maps(BATCH).to(device), **settings(BATCH))
    features = make_features(BATCH, DIM).to(device)
    draws = ops.ContrastiveDraws(*(x.to(device) for x in make_draws()))
    seen, prototypes = [], torch.randn(BATCH.classes, DIM, generator=generator()).to(device)

    def positives(sums: Tensor, counts: Tensor) -> Tensor:
        seen.extend((sums, counts))
        return prototypes

    bank = make_bank().to(device)
    result = ops.contrastive_loss_from_masks(masks, features, features, bank, draws, positives=positives)
    sums, counts = seen
    assert_close(sums, reference.class_sum(features, masks.anchor_label, BATCH.classes), 1e-5, "sums")
    assert torch.equal(counts, masks.anchors)
    anchors = reference.gather_pixels(features, reference.class_sample(masks.anchor_label, 6, draws.anchors))
    takes_part = (masks.anchors > 0) & (bank.fill > 0)
    rings = (bank.bank, bank.offsets, bank.pushed)
    expected = reference.info_nce(anchors, takes_part / takes_part.sum(), prototypes, *rings, draws=draws.negatives)
    assert_close(result.loss, expected, TOLERANCE["value"], "loss")


@pytest.mark.parametrize("name", ["features", "keys"])
def test_features_of_other_pixels_raise_before_the_bank_changes(name: str) -> None:
    masks = ops.contrast_masks(*make_maps(BATCH), **settings(BATCH))
    right, bank = make_features(BATCH, DIM), make_bank()
    for wrong, error in ((right[1:], ValueError), (right[0], ValueError), (right.to(torch.complex64), TypeError)):
        given = {"features": right, "keys": right} | {name: wrong}
        with pytest.raises(error, match=f"^{name}: "):
            ops.contrastive_loss_from_masks(masks, **given, bank=bank, draws=make_draws())
    assert not bank.pushed.any()


def test_closed_gate_keeps_the_bank(backend: str, device: torch.device) -> None:
    maps, bank = make_maps(BATCH).to(device), make_bank().to(device)
    features = make_features(BATCH, DIM).to(device).requires_grad_()
    draws = ops.ContrastiveDraws(*(x.to(device) for x in make_draws()))
    shut = torch.tensor(False, device=device)
    result = ops.contrastive_loss(*maps, features, features, bank, draws, gate=shut, **settings(BATCH))
    result.loss.backward()
    assert not bank.pushed.any() and not result.pushed.any()
    assert result.loss == 0 and not features.grad.any()


def test_no_labeled_and_no_reliable_pixel(backend: str, device: torch.device) -> None:
    maps = make_maps(BATCH, ignored=1.0).to(device)
    nowhere = torch.zeros_like(maps.reliable)
    features = make_features(BATCH, DIM).to(device).requires_grad_()
    draws = ops.ContrastiveDraws(*(x.to(device) for x in make_draws()))
    result = ops.contrastive_loss(
        maps.logits, maps.label, nowhere, nowhere, features, features, make_bank().to(device), draws, **settings(BATCH)
    )
    result.loss.backward()
    assert result.loss == 0 and not features.grad.any()
    assert not result.anchors.any() and not result.negatives.any()


@pytest.mark.parametrize("anchors", [[0, 3, 2, 0], [0, 0, 5, 0]], ids=str)
def test_classes_with_anchor_and_key_share_the_weight(anchors: list[int], backend: str, device: torch.device) -> None:
    anchors = torch.tensor(anchors, device=device)
    offsets = torch.tensor([0, 4, 6, 6, 9], device=device)  # class 2 has no room for a key
    pushed, before = torch.tensor([4, 9, 1, 0], device=device), torch.tensor([4, 5, 1, 0], device=device)
    weight, active, taken = torch.ops.u2pl_fast.class_weight(anchors, offsets, pushed, before)
    assert weight.tolist() == [0, min(1, int(anchors[1])), 0, 0]
    assert active == weight.sum() and taken.tolist() == [0, 4, 0, 0]


def test_weights_of_many_classes(backend: str, device: torch.device) -> None:
    classes = 2500
    offsets, pushed = torch.arange(classes + 1, device=device), torch.ones(classes, dtype=torch.int64, device=device)
    anchors = (torch.arange(classes, device=device) % 5 > 0).long()
    weight, active, taken = torch.ops.u2pl_fast.class_weight(anchors, offsets, pushed, torch.zeros_like(pushed))
    assert active == 2000 and torch.equal(weight, anchors / 2000) and taken.sum() == classes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype, backend: str, device: torch.device) -> None:
    masks = ops.contrast_masks(*make_maps(BATCH).to(device), **settings(BATCH))
    keys, bank = make_features(BATCH, DIM, dtype).to(device), make_bank().to(device)
    arguments = (keys, masks.anchor_label, make_draws().anchors.to(device))
    torch.library.opcheck(torch.ops.u2pl_fast.sum_and_sample, arguments)
    arguments = (masks.anchors, bank.offsets, bank.pushed, bank.pushed.clone())
    torch.library.opcheck(torch.ops.u2pl_fast.class_weight, arguments)


def test_compiles_without_graph_breaks(backend: str, device: torch.device) -> None:
    maps = make_maps(BATCH).to(device)
    draws = ops.ContrastiveDraws(*(x.to(device) for x in make_draws()))

    def f(features: Tensor, bank: MemoryBank) -> Tensor:
        return ops.contrastive_loss(*maps, features * 2, features, bank, draws, **settings(BATCH)).loss

    results = []
    for g in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        features, bank = make_features(BATCH, DIM).to(device).requires_grad_(), make_bank().to(device)
        loss = g(features, bank)
        loss.backward()
        results.append((loss, features.grad, bank.bank, bank.pushed))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("mode", ["per_anchor", "shared", "full"])
def test_draws_are_32_bits_and_repeat(mode: str) -> None:
    first, second = make_draws(mode), make_draws(mode)
    shapes = {"per_anchor": (6, 5, 8), "shared": (6, 8), "full": None}
    assert first.thinning.shape == (6,) and first.anchors.shape == (6, 5)
    assert (None if first.negatives is None else tuple(first.negatives.shape)) == shapes[mode]
    for a, b in zip(first, second, strict=True):
        assert a is b is None or torch.equal(a, b)
        assert a is None or (a.min() >= 0 and a.max() < 1 << 32 and a.max() > 1 << 31)


def test_unknown_mode_raises() -> None:
    with pytest.raises(ValueError, match="^negatives: "):
        ops.contrastive_draws(3, generator(), negatives="none")


@contextmanager
def forbidden_syncs():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["per_anchor", "shared", "full"])
def test_cuda_never_waits_and_is_captured(mode: str) -> None:
    device = torch.device("cuda")
    maps = make_maps(BATCH).to(device)
    draws = ops.ContrastiveDraws(*(None if x is None else x.to(device) for x in make_draws(mode)))
    features = make_features(BATCH, DIM).to(device).requires_grad_()
    bank, expected = make_bank().to(device), make_bank()

    def step() -> Tensor:
        result = ops.contrastive_loss(*maps, features, features, bank, draws, negatives=mode, **settings(BATCH))
        (grad,) = torch.autograd.grad(result.loss, features)
        return result.loss, grad

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiles the kernels
        with forbidden_syncs():
            step()
    torch.cuda.current_stream().wait_stream(side)
    bank.load_state_dict(expected.state_dict())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, grad = step()
    for _ in range(2):
        graph.replay()
        leaf = features.detach().cpu().requires_grad_()
        on_cpu = ops.ContrastiveDraws(*(None if x is None else x.cpu() for x in draws))
        exact = plain_loss(maps.to("cpu"), leaf, leaf.detach(), expected, on_cpu, mode, nn.Identity())
        exact.backward()
        assert_close(loss, exact, TOLERANCE["value"], "loss")
        assert_close(grad, leaf.grad, 1e-5, "gradient")
