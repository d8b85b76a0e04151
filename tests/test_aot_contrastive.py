"""The contrastive kernels, compiled ahead of time exactly as the ops launch them: no spills, budgets kept, no TF32.

By default two workloads for sm_90 and one for the other targets; ``--aot-full`` takes all workloads, dtypes and layouts
for all of them. Triton's cache makes a second run fast.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch

from u2pl_fast.ops import _backend

pytest.importorskip("triton")
if _backend.interpreted():
    pytest.skip("nothing is compiled under TRITON_INTERPRET=1", allow_module_level=True)

from launches import TARGETS, compile_launch, launches_of, resources  # noqa: E402

# (registers a lane, bytes of shared memory a program). On gfx942 registers are vector registers, of 512.
BUDGET = {
    "contrast_masks_fwd_kernel": (160, 1024),
    "block_counts_kernel": (48, 1024),
    "class_order_kernel": (128, 24 * 1024),
    "thin_mask_fwd_kernel": (192, 24 * 1024),
    "class_sample_fwd_kernel": (48, 0),
    "class_sum_fwd_kernel": (192, 2048),
    "class_sum_merge_kernel": (128, 2048),
    "gather_pixels_fwd_kernel": (96, 0),
    "gather_pixels_bwd_kernel": (96, 2048),
    "info_nce_anchor_kernel": (192, 1024),
    "info_nce_part_kernel": (255, 96 * 1024),
    "info_nce_merge_kernel": (96, 1024),
}
AMD_REGISTERS, AMD_SHARED = 256, 64 * 1024


class Workload(NamedTuple):
    """Images, classes, grid, channels, anchors and negatives a class, rows of the bank."""

    images: int
    classes: int
    grid: tuple[int, int]
    dim: int
    anchors: int = 256
    negatives: int = 50
    rows: int = 100_000


VOC = Workload(8, 21, (129, 129), 256)
ADE20K = Workload(8, 150, (129, 129), 256)
WORKLOADS = [
    VOC,
    ADE20K,
    Workload(8, 11, (64, 80), 128, 128),
    Workload(2, 300, (33, 17), 512),
    Workload(1, 2, (7, 9), 19),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def calls(w: Workload, dtype: torch.dtype, layout: torch.memory_format) -> Iterator[Callable[[], object]]:
    """The host functions as the ops call them; only shapes, dtypes and strides matter."""
    from u2pl_fast.kernels import class_sample, class_sum, contrast_masks, gather_pixels, info_nce, thin_mask

    def maps(channels: int) -> torch.Tensor:
        return torch.empty(w.images, channels, *w.grid, dtype=dtype, memory_format=layout)

    flags = torch.zeros(w.images, *w.grid, dtype=torch.bool)
    anchor_label = torch.full((flags.numel(),), -1, dtype=torch.int16)
    per_class, draws = torch.zeros(w.classes, dtype=torch.int64), torch.zeros(w.classes, w.anchors, dtype=torch.int64)
    ranks = dict(num_labeled=w.images // 2, low_rank=3, high_rank=20, positive_threshold=0.3)
    labels = flags.to(torch.uint8 if w.classes <= 255 else torch.int16)
    yield lambda: contrast_masks.contrast_masks(maps(w.classes), labels, flags, flags, **ranks)
    words = torch.zeros(flags.numel(), -(-w.classes // 32), dtype=torch.int32)
    yield lambda: thin_mask.thin_mask(words, per_class, per_class)
    yield lambda: class_sample.class_sample(anchor_label, w.classes, draws)
    yield lambda: class_sum.class_sum(maps(w.dim), anchor_label, w.classes)
    yield lambda: gather_pixels.gather_pixels(maps(w.dim), draws)
    rows = torch.zeros(w.classes, w.anchors, w.dim, dtype=dtype)
    yield lambda: gather_pixels.gather_pixels_backward(rows, draws, (w.images, w.dim, *w.grid), layout)
    ring = (torch.empty(w.rows, w.dim, dtype=dtype), torch.zeros(w.classes + 1, dtype=torch.int64), per_class)
    centres = torch.zeros(w.classes, w.dim)
    for mode, shape in (
        ("per_anchor", (*draws.shape, w.negatives)),
        ("shared", (w.classes, w.negatives)),
        ("full", ()),
    ):
        indices = torch.zeros(shape, dtype=torch.int64) if shape else None
        for anchors, need_grad in ((rows, True), (rows.float(), True), (rows.float(), False)):
            arguments = (anchors, centres[:, 0], centres, *ring, indices, mode, 0.5, need_grad)
            yield lambda arguments=arguments: info_nce.info_nce_forward(*arguments)


@pytest.mark.parametrize("target", TARGETS)
def test_resources(target: str, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--aot-full"):
        chosen = list(itertools.product(WORKLOADS, DTYPES, LAYOUTS))
    elif target == "sm_90":
        chosen = [(VOC, torch.float32, LAYOUTS[0]), (ADE20K, torch.bfloat16, LAYOUTS[1])]
    else:
        chosen = [(VOC, torch.bfloat16, LAYOUTS[0])]
    launches = launches_of(*(call for one in chosen for call in calls(*one)), warp=TARGETS[target].warp_size)
    assert {launch.kernel.__name__ for launch in launches} == set(BUDGET)
    failures = []
    for launch in launches:
        kernel = compile_launch(launch, target)
        used, (registers, shared) = resources(kernel), BUDGET[launch.kernel.__name__]
        if target.startswith("gfx"):
            registers, shared = AMD_REGISTERS, AMD_SHARED
        if used.spills or used.registers > registers or used.shared > shared or "tf32" in kernel.asm.get("ptx", ""):
            shapes = {k: v for k, v in launch.arguments.items() if k.isupper()}
            failures.append(f"{launch.kernel.__name__} {shapes}: {used}, budget {registers} registers, {shared} bytes")
    assert not failures, "\n".join(failures)


def test_half_banks_use_tensor_cores() -> None:
    modes = [call for call in calls(VOC, torch.bfloat16, LAYOUTS[0])][-9:]
    part = [x for x in launches_of(*modes) if x.kernel.__name__ == "info_nce_part_kernel"]
    assert part
    for launch in part:
        assert "wgmma.mma_async" in compile_launch(launch, "sm_90").asm["ptx"]
