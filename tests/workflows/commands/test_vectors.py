"""Files of query vectors: what is read, and how each fault is named."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from storage.errors import ConfigError
from storage.location import Location
from workflows.commands.search import _vectors

HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000), }"


@pytest.mark.parametrize("name", ["q.npy", "q.json"])
def test_vectors_are_read_as_they_were_written(tmp_path, name):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = tmp_path / name
    if name.endswith(".npy"):
        np.save(path, values)
    else:
        path.write_text(str(values.tolist()))
    queries = list(_vectors(str(path)))
    np.testing.assert_array_equal([query.vector for query in queries], values)
    assert [query.label for query in queries] == [f"{path} 0", f"{path} 1"]


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.json", b"[1,\n x]", "line 2"),
        ("a.json", b"[" * 100_000, "recursion"),
        ("a.json", b"[[1, 2], [3]]", "inhomogeneous"),
        ("a.json", b'["1", "2"]', "it holds str"),
        ("a.json", b"[true, false]", "it holds bool"),
        ("a.json", b"[" + b"9" * 400 + b"]", "it holds object"),
        ("a.json", b"{}", "it holds object"),
        ("a.json", b"null", "it holds object"),
        ("a.json", b"[[[1]]]", "3 dimensions"),
        ("a.json", b"[1, 2]\n\xff", "line 2: not UTF-8"),
        ("a.json", "[1]".encode("utf-16"), "line 1: not UTF-8"),
        ("a.npy", b"", "no vector"),
        ("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(HUGE)) + HUGE, "no vector"),
    ],
)
def test_a_file_without_vectors_is_named(tmp_path, name, content, word):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{path}.*{word}"):
        list(_vectors(str(path)))


@pytest.mark.parametrize("values", [np.array([1j]), np.array(["a"]), np.zeros(2, "f4,i4")])
def test_an_array_of_other_things_is_named(tmp_path, values):
    path = tmp_path / "a.npy"
    np.save(path, values)
    with pytest.raises(ConfigError, match="holds no vector of numbers"):
        list(_vectors(str(path)))


@pytest.mark.parametrize("suffix", ["json", "npy"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, suffix):
    pipe, folder = tmp_path / f"pipe.{suffix}", tmp_path / f"folder.{suffix}"
    os.mkfifo(pipe)
    folder.mkdir()
    zero = tmp_path / f"zero.{suffix}"
    zero.symlink_to("/dev/zero")
    for path in (pipe, folder, zero, Path("/nowhere.json")):
        with pytest.raises(ConfigError, match="is not a file"):
            list(_vectors(str(path)))
    for path in (pipe, folder, zero):
        with pytest.raises(Exception, match="not a file"):
            Location(str(path)).read()
