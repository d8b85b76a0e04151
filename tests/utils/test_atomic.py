"""Test files that are written completely or not at all."""

import os

import pytest

from u2pl_fast.utils.atomic import replacing


def test_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_pipe_is_written_directly(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(path) as temporary:
        temporary.write_text("text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert path.is_fifo()
