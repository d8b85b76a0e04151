"""Make every random number a function of the seed and its purpose.

There is no random state to save, and nothing depends on the number of loader processes.
"""

import hashlib

import torch


def stream(seed: int, *key: int | str) -> int:
    """Return a 63-bit number for ``(seed, *key)``, the same on every machine and in every process."""
    text = "/".join(str(part) for part in (seed, *key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded with ``stream(seed, *key)``. Seeding does not wait for a CUDA device."""
    return torch.Generator(device=device).manual_seed(stream(seed, *key))
