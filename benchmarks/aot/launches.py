"""Compile ahead of time what the host functions of the kernels launch. No GPU is needed.

``record`` runs a host function on CPU tensors and notes each launch instead of making it. ``compile_launch`` compiles
one for a target as Triton's launcher would: Triton's own binder inspects the real arguments and decides which of them
become constants, which are 64 bits wide and which divide by 16. ``resources`` and ``machine_code`` read the result.
"""

import functools
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
FORMATS = [(dtype, layout) for dtype in DTYPES[:2] for layout in LAYOUTS]  # in the tables
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Launch(NamedTuple):
    """Hold a kernel and its call: positional arguments, and named arguments with the compiler's options."""

    kernel: JITFunction
    positional: tuple[object, ...]
    named: dict[str, object]

    @property
    def arguments(self) -> dict[str, object]:
        """Return the kernel's arguments by name."""
        by_name = dict(zip(self.kernel.arg_names, self.positional, strict=False))
        return by_name | {name: self.named[name] for name in self.kernel.arg_names if name in self.named}

    @property
    def options(self) -> dict[str, object]:
        """Return the compiler's options, such as ``num_warps``."""
        return {name: value for name, value in self.named.items() if name not in self.kernel.arg_names}


class Resources(NamedTuple):
    """Count registers per lane, spilled bytes per lane, and bytes of shared memory per program."""

    registers: int
    spills: int
    shared: int


class Loop(NamedTuple):
    """Count the instructions of an innermost loop, as unrolled.

    Of those: powers of 2, reads of global memory, shuffles and accesses to spilled registers.
    """

    instructions: int
    powers: int
    loads: int
    shuffles: int
    spilled: int


class MachineCode(NamedTuple):
    """Count a kernel's instructions. ``loads``, ``stores``: of global memory, by the bits that a lane moves."""

    instructions: int
    shuffles: int
    loads: Counter[int]
    stores: Counter[int]
    loops: list[Loop]


@contextmanager
def record(warp: int = 32):
    """Yield a list that fills with what would have been launched on a device with warps of ``warp`` lanes."""
    from u2pl_fast.kernels import _launch

    launches: list[Launch] = []

    def note(kernel: JITFunction, *args: object, grid: tuple[int, ...], warmup: bool, **kwargs: object) -> None:
        assert all(0 < n <= most for n, most in zip(grid, (2**31 - 1, 65_535, 65_535), strict=False)), grid
        launches.append(Launch(kernel, args, kwargs))
        assert set(launches[-1].arguments) == set(kernel.arg_names), kernel

    with mock.patch.object(JITFunction, "run", note), mock.patch.object(_launch, "warp_size", lambda device: warp):
        yield launches


@functools.cache
def _binder(kernel: JITFunction, target: str) -> tuple[object, Callable]:
    """Return Triton's backend for a target, and the function with which its launcher inspects arguments."""
    backend = make_backend(TARGETS[target])
    return backend, create_function_from_signature(kernel.signature, kernel.params, backend)


def specialize(launch: Launch, target: str) -> tuple[ASTSource, dict[str, object]]:
    """Return (what to compile, the compiler's options), found by the functions that ``JITFunction.run`` calls."""
    kernel = launch.kernel
    backend, binder = _binder(kernel, target)
    named = launch.named | {"debug": bool(kernel.debug), "instrumentation_mode": knobs.compilation.instrumentation_mode}
    bound, specialization, options = binder(*launch.positional, **named)
    options, signature, constants, attributes = kernel._pack_args(backend, named, bound, specialization, options)
    return ASTSource(kernel, signature, constants, attributes), options.__dict__


def compile_launch(launch: Launch, target: str) -> CompiledKernel:
    source, options = specialize(launch, target)
    return triton.compile(source, target=TARGETS[target], options=options)


def distinct(launches: list[Launch], target: str) -> list[Launch]:
    """Return one launch for each specialization."""
    return list({_identity(x, target): x for x in launches}.values())


def _identity(launch: Launch, target: str) -> str:
    source, options = specialize(launch, target)
    return f"{launch.kernel.__name__} {source.signature} {source.constants} {source.attrs} {options}"


def launches_of(*calls: Callable[[], object], target: str) -> list[Launch]:
    """Return the distinct launches of some calls on a target."""
    with record(TARGETS[target].warp_size) as launches:
        for call in calls:
            call()
    return distinct(launches, target)


def resources(kernel: CompiledKernel) -> Resources:
    """Read the machine code: cuobjdump's report for NVIDIA, the metadata of the assembly for AMD."""
    if "cubin" not in kernel.asm:
        text = kernel.asm["amdgcn"]
        # Scalar registers spill into lanes of vector registers, not into memory: they don't count.
        registers, spills = (int(re.search(rf"\.vgpr_{x}:\s*(\d+)", text)[1]) for x in ("count", "spill_count"))
        return Resources(registers, spills, kernel.metadata.shared)
    usage = dict(re.findall(r"(\w+):(\d+)", _cuobjdump(kernel, "--dump-resource-usage")))
    return Resources(int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"]), kernel.metadata.shared)


def machine_code(kernel: CompiledKernel) -> MachineCode:
    """Count in the disassembly; NVIDIA only."""
    instruction = r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)([^;]*);"
    code = [
        (int(address, 16), opcode.split("."), operands)
        for address, opcode, operands in re.findall(instruction, _cuobjdump(kernel, "--dump-sass"))
        if opcode != "NOP"  # padding
    ]
    loads = Counter(_bits(modifiers) for _, (name, *modifiers), _ in code if name == "LDG")
    stores = Counter(_bits(modifiers) for _, (name, *modifiers), _ in code if name == "STG")
    shuffles = sum(opcode[0] == "SHFL" for _, opcode, _ in code)
    return MachineCode(len(code), shuffles, loads, stores, _innermost(code))


def _bits(modifiers: list[str]) -> int:
    """Return the bits of a memory access, from the suffixes of its opcode."""
    for modifier in modifiers:
        if modifier in ("64", "128", "256"):
            return int(modifier)
        if re.fullmatch(r"[US](8|16)", modifier):
            return int(modifier[1:])
    return 32


def _innermost(code: list[tuple[int, list[str], str]]) -> list[Loop]:
    """Return the innermost loops in the order of addresses; a loop ends in a jump back."""
    ends = []
    for address, opcode, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands)
        if opcode[0] == "BRA" and target and int(target[1], 16) < address:
            ends.append((int(target[1], 16), address))
    found = []
    for first, last in sorted(ends):
        if not any((first, last) != other and first <= other[0] and other[1] <= last for other in ends):
            names = Counter(
                "MUFU.EX2" if opcode[:2] == ["MUFU", "EX2"] else opcode[0]
                for address, opcode, _ in code
                if first <= address <= last
            )
            counted = (names["MUFU.EX2"], names["LDG"], names["SHFL"], names["LDL"] + names["STL"])
            found.append(Loop(names.total(), *counted))
    return found


def _cuobjdump(kernel: CompiledKernel, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run(
            [TOOLS / "cuobjdump", option, file.name], check=True, capture_output=True, text=True
        ).stdout


def describe(launch: Launch) -> dict[str, object]:
    """Return kernel, type of its input, and constants: what makes it a specialization of its own."""
    tensors = {k: str(v.dtype).removeprefix("torch.") for k, v in launch.arguments.items() if isinstance(v, Tensor)}
    constants = {p.name: launch.arguments[p.name] for p in launch.kernel.params if p.is_constexpr}
    constants = {name: value if isinstance(value, int) else str(value) for name, value in constants.items()}
    return {
        "kernel": launch.kernel.__name__,
        "dtype": tensors.get("p_logits", tensors.get("p_x", "")),
        **constants,
        **launch.options,
    }
