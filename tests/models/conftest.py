"""Fixtures of the tests of networks."""

import pytest

from u2pl_fast.models import dpt


@pytest.fixture
def narrow_dpt(monkeypatch):
    """The same decoder with a few per cent of its weights."""
    monkeypatch.setattr(dpt, "WIDTH", 16)
    monkeypatch.setattr(dpt, "REASSEMBLED", (16, 24, 32, 32))
