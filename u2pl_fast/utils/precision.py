"""What the networks compute in."""

import torch


def autocast_dtype(amp: bool, dtype: torch.dtype, device: torch.device) -> torch.dtype | None:
    """The type that networks are autocast to, or None for float32.

    A CPU whose convolutions have no kernels for ``dtype`` keeps float32: torch would emulate it, ten times slower.
    """
    if not amp or device.type == "cpu" and not cpu_computes_in(dtype):
        return None
    return dtype


def refusal(dtype: torch.dtype) -> str:
    """What is told where ``autocast_dtype`` keeps float32 in spite of ``amp``."""
    return f"float32 in spite of --amp: this CPU has no fast {str(dtype).removeprefix('torch.')}"


def cpu_computes_in(dtype: torch.dtype) -> bool:
    """Whether oneDNN, which computes torch's convolutions on CPUs, has kernels for ``dtype`` on this one."""
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    supported = getattr(torch.ops.mkldnn, name, None)  # no public name tells it
    return supported is not None and supported()
