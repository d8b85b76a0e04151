"""Choose the type that networks compute in."""

import torch

from .fields import Precision


def autocast_dtype(amp: Precision, device: torch.device) -> torch.dtype | None:
    """Return the type that networks are autocast to, or None for float32.

    A CPU without native support for the type keeps float32: torch would emulate it, ten times slower.
    """
    if amp == "off" or device.type == "cpu" and not cpu_computes_in(getattr(torch, amp)):
        return None
    return getattr(torch, amp)


def amp_ignored(amp: Precision) -> str:
    """Return the warning for a CPU that keeps float32."""
    return f"--amp ignored: this CPU has no native {amp}; using float32"


def cpu_computes_in(dtype: torch.dtype) -> bool:
    """Return whether oneDNN, which computes torch's convolutions on CPUs, has kernels for ``dtype`` on this CPU."""
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    supported = getattr(torch.ops.mkldnn, name, None)  # torch has no public name for it
    return supported is not None and supported()
