"""The per-pixel kernels, compiled ahead of time exactly as the ops launch them: no spills, budgets kept, no TF32.

By default every variant for sm_90 and the main shapes for the other targets; ``--aot-full`` takes all dtypes, layouts
and scales for all of them. Triton's cache makes a second run fast. ``python -m benchmarks.aot`` prints the figures.
"""

import re

import pytest

from u2pl_fast.ops import _backend

pytest.importorskip("triton")
if _backend.interpreted():
    pytest.skip("nothing is compiled under TRITON_INTERPRET=1", allow_module_level=True)

from benchmarks import aot  # noqa: E402

# (registers a lane, bytes of shared memory a program), the larger of triton 3.6's and 3.8's.
# On gfx942 registers are vector registers, up to 512.
BUDGET = {
    "pixel_stats_fwd_kernel": (160, 1024),
    "ohem_mask_probability_kernel": (160, 1024),
    "ohem_mask_keep_kernel": (32, 0),
    "upsampled_cross_entropy_fwd_kernel": (216, 0),
    "masked_quantile_count_kernel": (168, 2048),
    "masked_quantile_select_kernel": (40, 256),
}
AMD_SLACK = 4  # a wavefront has twice the lanes, and layouts are exchanged through its 64 KiB of shared memory


def test_budget_names_every_kernel() -> None:
    assert {launch.kernel.__name__ for launch in aot.launches(full=False)} == set(BUDGET)


@pytest.mark.parametrize("target", aot.TARGETS)
def test_resources(target: str, request: pytest.FixtureRequest) -> None:
    full = request.config.getoption("--aot-full")
    launches = aot.launches(full, target)
    if not full and target != "sm_90":
        launches = [x for x in launches if aot.describe(x)["dtype"] in ("float32", "") and x.arguments.get("R", 4) == 4]
    assert launches
    failures = []
    for launch in launches:
        kernel = aot.compile_launch(launch, target)
        used, (registers, shared) = aot.resources(kernel), BUDGET[launch.kernel.__name__]
        spills = used.spills
        if target.startswith("gfx"):  # scalar registers spill into lanes of vector registers, not into memory
            spills = int(re.search(r"\.vgpr_spill_count:\s*(\d+)", kernel.asm["amdgcn"])[1])
            registers, shared = 256, 1024 + AMD_SLACK * shared
        if spills or used.registers > registers or used.shared > shared or "tf32" in kernel.asm.get("ptx", ""):
            failures.append(f"{aot.describe(launch)}: {used}, budget {registers} registers, {shared} bytes")
    assert not failures, "\n".join(failures)
