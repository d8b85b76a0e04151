"""What the host functions of the kernels launch, compiled ahead of time: no GPU is needed for either.

``record`` runs a host function on CPU tensors and notes each launch instead of making it; ``compile_launch`` compiles
one for a target with the specialisations that Triton's launcher would choose (integers equal to 1, and integers and
pointers divisible by 16); ``resources`` reads registers, spills and shared memory from the result.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}


class Launch(NamedTuple):
    """A kernel, its arguments by name and the compiler's options."""

    kernel: JITFunction
    arguments: dict[str, object]
    options: dict[str, int]


class Resources(NamedTuple):
    registers: int
    spills: int
    shared: int


@contextmanager
def record(warp: int = 32):
    """A list that fills with what would have been launched on a device with warps of ``warp`` lanes."""
    from u2pl_fast.kernels import _launch

    launches: list[Launch] = []

    def note(kernel: JITFunction, *args: object, grid: tuple[int, ...], warmup: bool, **kwargs: object) -> None:
        assert all(0 < n for n in grid), grid
        named = dict(zip(kernel.arg_names, args, strict=False))
        named |= {name: value for name, value in kwargs.items() if name in kernel.arg_names}
        assert set(named) == set(kernel.arg_names), kernel
        launches.append(Launch(kernel, named, {k: v for k, v in kwargs.items() if k not in named}))

    with mock.patch.object(JITFunction, "run", note), mock.patch.object(_launch, "warp_size", lambda device: warp):
        yield launches


def specialise(launch: Launch) -> tuple[dict[str, str], dict[tuple[int, ...], object], dict[tuple[int, ...], list]]:
    """(signature, constants, attributes) of a launch, as ``ASTSource`` takes them."""
    signature, constants, attributes = {}, {}, {}
    for parameter in launch.kernel.params:
        name, where, value = parameter.name, (parameter.num,), launch.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
            signature[name], constants[where] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[where] = f"*{TYPES[value.dtype]}", [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            wide = parameter.annotation_type == "i64" or not -(2**31) <= value < 2**31
            signature[name] = "i64" if wide else "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[where] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compile_launch(launch: Launch, target: str) -> CompiledKernel:
    signature, constants, attributes = specialise(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=TARGETS[target], options=launch.options)


def distinct(launches: list[Launch]) -> list[Launch]:
    """One launch for each specialisation."""
    return list({f"{x.kernel.__name__}{specialise(x)}{x.options}": x for x in launches}.values())


def resources(kernel: CompiledKernel) -> Resources:
    """From the machine code: cuobjdump's report for NVIDIA, the metadata of the assembly for AMD."""
    if "cubin" not in kernel.asm:
        text = kernel.asm["amdgcn"]
        # Scalar registers spill into lanes of vector registers, not into memory: they don't count.
        registers, spills = (int(re.search(rf"\.vgpr_{x}:\s*(\d+)", text)[1]) for x in ("count", "spill_count"))
        return Resources(registers, spills, kernel.metadata.shared)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        report = subprocess.run([tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True)
    usage = dict(re.findall(r"(\w+):(\d+)", report.stdout))
    return Resources(int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"]), kernel.metadata.shared)


def launches_of(*calls: Callable[[], object], warp: int = 32) -> list[Launch]:
    """The distinct launches of some calls."""
    with record(warp) as launches:
        for call in calls:
            call()
    return distinct(launches)
