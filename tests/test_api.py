"""What `import u2pl_fast` gives, and what it costs."""

import subprocess
import sys

import pytest

import u2pl_fast


@pytest.mark.parametrize("name", u2pl_fast.__all__)
def test_every_public_name_is_there(name):
    assert getattr(u2pl_fast, name) is not None and name in dir(u2pl_fast)


def test_the_lists_of_public_names_agree():
    assert {"ops", *u2pl_fast._HOMES} == set(u2pl_fast.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'U2PLCriteria'"):
        _ = u2pl_fast.U2PLCriteria


@pytest.mark.slow
def test_the_import_alone_brings_no_torch():
    code = "import sys, u2pl_fast; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
