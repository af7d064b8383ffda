import json

import numpy as np
import pytest

from service.jobs.arrays import ArraysError, pack, unpack


def test_arrays_and_metadata_come_back_unchanged():
    arrays = {"latents": np.random.default_rng(0).normal(size=(2, 1, 3, 4)), "n": np.arange(3)}
    back, metadata = unpack(pack(arrays, {"digest": "sha256:0"}))
    assert metadata == {"digest": "sha256:0"}
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


def test_a_transposed_view_is_packed_as_it_reads():
    array = np.arange(6.0).reshape(2, 3).T
    np.testing.assert_array_equal(unpack(pack({"a": array}))[0]["a"], array)


def _with_header(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        b"\xff" * 64,
        pack({"a": np.zeros(100)})[:-1],
        _with_header({"a": {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 8]}}, b"\0" * 8),
        _with_header({"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 2**40]}}, b"\0" * 8),
        _with_header({"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}}, b"\0" * 8),
        _with_header([1, 2]),
    ],
    ids=["empty", "zip", "noise", "cut", "lying shape", "lying offsets", "objects", "a list"],
)
def test_what_is_no_safetensors_file_is_refused_with_a_reason(data: bytes):
    with pytest.raises(ArraysError, match="safetensors"):
        unpack(data)
