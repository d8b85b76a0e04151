"""Compile the contrastive kernels ahead of time exactly as the ops launch them; check spills, budgets, TF32 and lanes.

By default, compile two workloads for sm_90 and one for the other targets. ``--aot-full`` compiles all workloads, dtypes
and layouts for all targets. Triton's cache makes a second run fast.
"""

import re

import pytest
import torch

from u2pl_fast.ops import _backend

pytest.importorskip("triton")
if _backend.interpreted():
    pytest.skip("nothing is compiled under TRITON_INTERPRET=1", allow_module_level=True)

from benchmarks.aot.contrastive_launches import VOC, calls, launches  # noqa: E402
from benchmarks.aot.launches import (  # noqa: E402
    FORMATS,
    TARGETS,
    compile_launch,
    launches_of,
    machine_code,
    resources,
)

pytestmark = pytest.mark.slow

# (registers per lane, bytes of shared memory per program), the larger of triton 3.6's and 3.8's. On gfx942,
# registers are vector registers, up to 512.
BUDGET = {
    "contrast_masks_fwd_kernel": (208, 1024),
    "block_counts_kernel": (48, 1024),
    "running_counts_kernel": (64, 1024),
    "class_order_kernel": (128, 24 * 1024),
    "thin_mask_fwd_kernel": (192, 24 * 1024),
    "class_sample_fwd_kernel": (48, 0),
    "class_sum_fwd_kernel": (192, 2048),
    "class_sum_merge_kernel": (128, 2048),
    "gather_pixels_fwd_kernel": (96, 4096),
    "gather_pixels_link_kernel": (48, 0),
    "gather_pixels_bwd_kernel": (96, 2048),
    "ring_push_advance_kernel": (48, 0),
    "ring_push_write_kernel": (168, 36 * 1024),
    "class_weight_kernel": (64, 1024),
    "info_nce_anchor_kernel": (192, 1024),
    "info_nce_part_kernel": (255, 96 * 1024),
    "info_nce_merge_kernel": (96, 1024),
}
AMD_REGISTERS, AMD_SHARED = 256, 64 * 1024


@pytest.mark.parametrize("target", TARGETS)
def test_resources(target: str, request: pytest.FixtureRequest) -> None:
    chosen = launches(request.config.getoption("--aot-full"), target)
    assert {launch.kernel.__name__ for launch in chosen} == set(BUDGET)
    failures = []
    for launch in chosen:
        kernel = compile_launch(launch, target)
        used, (registers, shared) = resources(kernel), BUDGET[launch.kernel.__name__]
        if target.startswith("gfx"):
            registers, shared = AMD_REGISTERS, AMD_SHARED
        if used.spills or used.registers > registers or used.shared > shared or "tf32" in kernel.asm.get("ptx", ""):
            shapes = {k: v for k, v in launch.arguments.items() if k.isupper()}
            failures.append(f"{launch.kernel.__name__} {shapes}: {used}, budget {registers} registers, {shared} bytes")
    assert not failures, "\n".join(failures)


def compiled(dtype: torch.dtype, layout: str) -> dict:
    """Return the kernels of a ``voc`` step on sm_90 by name; of several variants the last."""
    return {
        x.kernel.__name__: compile_launch(x, "sm_90") for x in launches_of(*calls(VOC, dtype, layout), target="sm_90")
    }


@pytest.mark.parametrize(("dtype", "layout"), FORMATS, ids=str)
def test_ranks_stay_in_their_lanes(dtype: torch.dtype, layout: str) -> None:
    """Check that a lane holds all classes of its pixel in either layout, without exchange between lanes."""
    code = machine_code(compiled(dtype, layout)["contrast_masks_fwd_kernel"])
    assert code.shuffles == 0 and code.loads[8 * dtype.itemsize] >= 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["class_sum_fwd_kernel", "gather_pixels_fwd_kernel"])
def test_rows_are_read_16_bytes_at_a_time(name: str, dtype: torch.dtype) -> None:
    """Check that adjacent channels are not read one by one. A few reads of indices are narrower."""
    loads = machine_code(compiled(dtype, "nhwc")[name]).loads
    assert loads[128] >= 4 and loads[16] == 0 and loads[32] <= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["class_sum_fwd_kernel", "gather_pixels_fwd_kernel"])
def test_planes_are_read_as_runs(name: str, dtype: torch.dtype) -> None:
    """Check that the last axis of a tile lies across the lanes: summed pixels of a plane, or stored channels."""
    text = compiled(dtype, "nchw")[name].asm["ttgir"]
    (encoding,) = re.findall(r"tt\.load .*tensor<2048x!tt\.ptr<b?f\d+>, (#\w+)>", text)
    (each,) = re.findall(rf"^{encoding} = .*sizePerThread = \[(\d+)\]", text, re.MULTILINE)
    assert each == "1"


def test_half_banks_use_tensor_cores() -> None:
    modes = [call for call in calls(VOC, torch.bfloat16, "nchw")][-9:]
    part = [x for x in launches_of(*modes, target="sm_90") if x.kernel.__name__ == "info_nce_part_kernel"]
    assert part
    for launch in part:
        assert "wgmma.mma_async" in compile_launch(launch, "sm_90").asm["ptx"]


@pytest.mark.parametrize(("layout", "load"), [("nchw", "ld.global.b32"), ("nhwc", "ld.global.v4.b32")], ids=str)
def test_ring_push_reads_and_writes_whole_rows(layout: str, load: str) -> None:
    """Check that lanes read pixels of a plane, or 16 bytes of a row each, and that every store has 16 bytes."""
    found = launches_of(*calls(VOC, torch.float32, layout), target="sm_90")
    (write,) = [x for x in found if x.kernel.__name__ == "ring_push_write_kernel"]
    kernel = compile_launch(write, "sm_90")
    assert set(re.findall(r"st\.global[\w.]*", kernel.asm["ptx"])) == {"st.global.v4.b32"}
    elements = VOC.dim * write.arguments["PIXELS"]
    lanes = 32 * write.options["num_warps"]
    assert kernel.asm["ptx"].count(load) >= elements // lanes // (4 if "v4" in load else 1)
    (encoding,) = re.findall(rf"tt\.load .*tensor<{VOC.dim}x\d+x!tt\.ptr<f32>, (#\w+)>", kernel.asm["ttgir"])
    (threads,) = re.findall(rf"^{encoding} = .*threadsPerWarp = \[([\d, ]+)\]", kernel.asm["ttgir"], re.MULTILINE)
    assert threads == ("1, 32" if layout == "nchw" else "32, 1")
