"""Compile the per-pixel kernels ahead of time exactly as the ops launch them; check budgets, TF32 and data movement.

By default, compile every variant for sm_90 and the main shapes for the other targets. ``--aot-full`` compiles all
dtypes, layouts and scales for all targets. Triton's cache makes a second run fast. ``python -m benchmarks.aot`` prints
the figures.
"""

import pytest
import torch
from torch import Tensor

from u2pl_fast.ops import _backend

triton = pytest.importorskip("triton")
if _backend.interpreted():
    pytest.skip("nothing is compiled under TRITON_INTERPRET=1", allow_module_level=True)

from benchmarks.aot import launches, precompile  # noqa: E402
from benchmarks.aot import pixel_launches as pixel  # noqa: E402

pytestmark = pytest.mark.slow

# (registers per lane, bytes of shared memory per program), the larger of triton 3.6's and 3.8's.
# On gfx942 registers are vector registers, up to 512.
BUDGET = {
    "pixel_stats_fwd_kernel": (168, 1024),
    "ohem_mask_probability_kernel": (160, 1024),
    "ohem_mask_keep_kernel": (32, 0),
    "upsampled_cross_entropy_fwd_kernel": (216, 0),
    "masked_quantile_count_kernel": (168, 2048),
    "masked_quantile_select_kernel": (40, 256),
}
AMD_SLACK = 4  # a wavefront has twice the lanes, and exchanges layouts through its 64 KiB of shared memory
# Bytes per lane that ptxas may spill around the loops over the classes; within a loop none.
PARKED = 16


def test_budget_names_every_kernel() -> None:
    assert {launch.kernel.__name__ for launch in pixel.launches(full=False)} == set(BUDGET)


@pytest.mark.parametrize("target", launches.TARGETS)
def test_resources(target: str, request: pytest.FixtureRequest) -> None:
    chosen = pixel.launches(request.config.getoption("--aot-full"), target)
    assert chosen
    failures = []
    for launch in chosen:
        kernel = launches.compile_launch(launch, target)
        used, (registers, shared) = launches.resources(kernel), BUDGET[launch.kernel.__name__]
        parked, spilled = PARKED, 0
        if target.startswith("gfx"):
            registers, shared, parked = 256, 1024 + AMD_SLACK * shared, 0
        else:
            spilled = sum(loop.spilled for loop in launches.machine_code(kernel).loops)
        over = used.registers > registers or used.shared > shared or used.spills > parked
        if over or spilled or "tf32" in kernel.asm.get("ptx", ""):
            failures.append(f"{launches.describe(launch)}: {used}, budget {registers} registers, {shared} bytes")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize(("dtype", "layout"), launches.FORMATS, ids=str)
def test_pixels_stay_in_their_lanes(dtype: torch.dtype, layout: str) -> None:
    """Check that a sweep reads four corners and computes one power per pixel, and moves only shares of a gradient."""
    seen = set()
    for launch in launches.launches_of(*pixel.calls(pixel.VOC, dtype, layout), target="sm_90"):
        if "R" not in launch.arguments:
            continue
        seen.add(launch.kernel.__name__)
        code, pixels = launches.machine_code(launches.compile_launch(launch, "sm_90")), 16
        sweeps = [loop for loop in code.loops if loop.powers]
        gradient = launch.arguments.get("GRAD", False)
        weight = launch.arguments.get("HAS_WEIGHT", False)
        assert len(sweeps) == (3 if gradient else 2)
        assert {(x.powers, x.shuffles, x.loads) for x in sweeps[:2]} == {(pixels, 0, 4)}, launch.kernel
        if gradient:
            loads = 5 if weight and launch.arguments["SMOOTHING"] else 4
            assert (sweeps[2].powers, sweeps[2].shuffles, sweeps[2].loads) == (pixels, 2, loads)
        assert code.loads[8 * dtype.itemsize] >= 8 and max(code.loads) <= 32, "a logit a load"
        limit = 10.5 if launch.kernel.__name__ == "pixel_stats_fwd_kernel" else 9.5
        assert sweeps[0].instructions / pixels <= limit
    assert seen == {x for x in BUDGET if x.endswith(("fwd_kernel", "probability_kernel"))}


def test_compiled_kernels_equal_those_of_the_launcher() -> None:
    """Compare with the machine code that ``JITFunction.run`` compiles without a launch."""
    calls = [*pixel.calls(pixel.VOC, torch.bfloat16, "nhwc")][:3]
    with precompile.compiling("sm_90") as compiled:
        for call in calls:
            call()
    own = {launches.compile_launch(x, "sm_90").hash for x in launches.launches_of(*calls, target="sm_90")}
    assert own == {kernel.hash for kernel in compiled} and len(own) > 2


@pytest.mark.parametrize("align", [False, True])
def test_any_scale_can_be_launched(align: bool) -> None:
    """Check the launch axes: a device limits all but the first to few programs."""
    calls = pixel.calls(pixel.Workload((2, 2), (2100, 2100), align), torch.float32, "nchw")
    names = {x.kernel.__name__ for x in launches.launches_of(*calls, target="sm_90")}
    assert names >= {"pixel_stats_fwd_kernel", "ohem_mask_probability_kernel", "upsampled_cross_entropy_fwd_kernel"}


def test_a_stride_of_one_is_a_constant() -> None:
    """Check that the compiler knows a stride of 1; otherwise it reads neighbors one by one."""
    for layout, name in (("nchw", "stride_w"), ("nhwc", "stride_c")):
        for launch in launches.launches_of(*pixel.calls(pixel.VOC, torch.float32, layout), target="sm_90"):
            if name in launch.arguments:
                assert launch.arguments[name] == 1
                assert launches.specialize(launch, "sm_90")[0].signature[name] == "constexpr"


def test_numbers_in_a_tuple_are_specialized_one_by_one() -> None:
    call = next(pixel.calls(pixel.VOC, torch.float32, "nchw"))
    (launch,) = launches.launches_of(call, target="sm_90")
    source, _ = launches.specialize(launch, "sm_90")
    place, geometry = launch.kernel.arg_names.index("geometry"), launch.arguments["geometry"]
    assert (geometry.chunks, source.signature["geometry"].chunks) == (1, "constexpr")
    assert (geometry.rows.step, geometry.rows.out, source.signature["geometry"].rows.step) == (512, 513, "i32")
    step, out = (source.attrs[place, 1, geometry.rows._fields.index(name)] for name in ("step", "out"))
    assert (step, out) == ([["tt.divisibility", 16]], [])


def test_typed_arguments_are_not_specialized() -> None:
    """Check that the launch record shows it: Triton's launcher does not specialize an argument with a type."""

    @triton.jit
    def typed(p_x, stride: triton.language.int64, other):
        triton.language.store(p_x + stride * other, 0.0)

    x: Tensor = torch.zeros(4)
    with launches.record() as noted:
        typed[(1,)](x, 1, 1)
    signature = launches.specialize(noted[0], "sm_90")[0].signature
    assert (signature["stride"], signature["other"]) == ("i64", "constexpr")
