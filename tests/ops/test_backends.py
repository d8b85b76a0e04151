"""Which backend an op runs with on which device, what ``ops.info`` says of it, and the warning of a fallback."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from u2pl_fast import ops
from u2pl_fast.ops import _backend

SOURCES = sorted(Path(ops.__file__).parent.glob("*.py"))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bool]]:
    """A machine's triton and the functions of its extension, to be set in the test."""
    has = {"triton": False}
    extension = SimpleNamespace()
    monkeypatch.setattr(_backend, "has_triton", lambda: has["triton"])
    monkeypatch.setattr(_backend, "_has_kernel", lambda op: has["triton"])
    monkeypatch.setattr(_backend, "extension", lambda: extension if has.get("extension", True) else None)
    has["functions"] = extension.__dict__
    _backend._warn_of_fallback.cache_clear()
    yield has
    _backend._warn_of_fallback.cache_clear()


def on(device: str, dtype: torch.dtype = torch.float32, elements: int = 1) -> SimpleNamespace:
    """What is looked at of a tensor; none can be made where the device is missing."""
    return SimpleNamespace(device=torch.device(device), dtype=dtype, numel=lambda: elements)


def told(op: str, tensor: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert _backend.resolve(op, tensor) == "reference"
    return [str(w.message) for w in caught]


def test_every_op_with_backends_is_listed() -> None:
    found = {op for file in SOURCES for op in re.findall(r"_backend\.resolve\(\"(\w+)\"", file.read_text())}
    assert found == set(_backend.names()) and "ring_push" in found


def test_info_of_the_cpu() -> None:
    expected = "reference" if _backend.extension() is None else "cpu"
    assert ops.info("cpu") == dict.fromkeys(_backend.names(), expected)
    with ops.use_backend("reference"):
        assert set(ops.info("cpu").values()) == {"reference"}


def test_info_of_the_default_device(monkeypatch: pytest.MonkeyPatch, installed: dict) -> None:
    installed["triton"] = True
    for present, expected in ((True, "triton"), (False, "reference")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda present=present: present)
        assert ops.info()["thin_mask"] == expected


def test_info_of_a_gpu(installed: dict) -> None:
    assert set(ops.info("cuda").values()) == {"reference"}
    installed["triton"] = True
    assert set(ops.info("cuda:1").values()) == {"triton"}
    installed["functions"]["ring_push_cuda"] = None
    assert {op for op, backend in ops.info("cuda").items() if backend == "cuda"} == {"ring_push"}


def test_info_refuses_what_an_op_would(installed: dict) -> None:
    installed["functions"]["thin_mask"] = None
    with ops.use_backend("cpu"), pytest.raises(ValueError, match="backend 'cpu' takes CPU tensors"):
        ops.info("cuda")


@pytest.mark.parametrize(("device", "remedy"), [("cuda", "pip install triton"), ("cpu", _backend.BUILD_HINT)])
def test_a_fallback_warns_once_for_each_op(device: str, remedy: str, installed: dict) -> None:
    for op in ("ring_push", "thin_mask"):
        (message,) = told(op, on(device))
        assert message.startswith(f"{op}: ") and remedy in message
        assert not told(op, on(device))


@pytest.mark.parametrize(
    "tensor", [on("cuda", torch.float64), on("cuda", elements=0), on("mps")], ids=["float64", "empty", "mps"]
)
def test_the_reference_where_nothing_is_better_does_not_warn(tensor: object, installed: dict) -> None:
    assert not told("ring_push", tensor)


def test_the_reference_where_it_is_chosen_does_not_warn(installed: dict) -> None:
    with ops.use_backend("reference"):
        assert not told("ring_push", on("cuda"))


def test_a_missing_extension_warns_of_itself_alone(installed: dict) -> None:
    installed["extension"] = False
    assert not told("ring_push", on("cpu"))
