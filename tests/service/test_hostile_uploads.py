"""Whatever the bytes are, an upload is read or refused with a reason: nothing else is raised, and
nothing is allocated by what a header merely declares."""

import json
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.api.latents import Card, read_latents
from service.api.problems import Problem
from service.images import ImageError, declared_pixels, read_image
from service.images.decoding import SCAN
from service.jobs.arrays import ArraysError, unpack
from service.jobs.parameters import Fit, Latents
from service.npy import NpyError, read_npy
from tests.service.helpers import CARDS
from tests.service.uploads import latents, npy, picture, png_of, raw_png

some = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
many = settings(some, max_examples=500)
SHAPES = [(1, 8, 8), (3, 8, 8), (4, 8, 8)]
MAX_PIXELS = 4096


@contextmanager
def as_in_service() -> Iterator[None]:
    """Without pytest's filter: what only warns in the service goes on here, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)
DEEP = RANDOM.integers(0, 65_536, (8, 8, 4), dtype=np.uint16)
PNGS = [
    raw_png(COLOURS),
    raw_png(COLOURS[..., :1], interlaced=True),
    raw_png(DEEP, pieces=2),
    raw_png(DEEP[..., :3], interlaced=True, exif=exif(5).tobytes()[6:]),
    raw_png(DEEP[..., :2]),
    raw_png(DEEP[..., :1], key=(7,)),
    picture(COLOURS[..., 0], "PNG", bits=4),
    picture(COLOURS[..., 0], "PNG", transparency=3),
]
FILES = [
    *PNGS,
    picture(COLOURS, "JPEG", exif=exif(6)),
    picture(COLOURS[..., 0], "JPEG", progressive=True),
    picture(COLOURS, "JPEG", subsampling=2, restart_marker_blocks=1),
    picture(COLOURS, "WEBP", lossless=True, exif=exif(3)),
    picture(COLOURS, "WEBP", quality=80),
    picture(np.dstack([COLOURS, COLOURS[..., 0]]), "WEBP"),
    npy(np.arange(64.0).reshape(8, 8) / 4),
    npy(np.asfortranarray(COLOURS)),
]


def read_or_refuse(data: bytes, shape: tuple[int, int, int], fit: Fit) -> None:
    """The property: an image of the model within its levels, or an `ImageError`."""
    with as_in_service():
        assert declared_pixels(data) >= 0
        try:
            image = read_image(data, shape, 256, MAX_PIXELS, fit)
        except ImageError:
            return
    assert (image.shape, image.dtype) == (shape, np.float64)
    assert ((image >= 0) & (image <= 255)).all()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good file with some of its bytes overwritten, cut out, repeated, or cut off."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        stop = draw(st.integers(start, min(len(data), start + 64)))
        match draw(st.sampled_from(["overwrite", "insert", "cut", "repeat", "end"])):
            case "overwrite":
                data[start : start + 4] = draw(st.binary(min_size=1, max_size=4))
            case "insert":
                data[start:start] = draw(st.binary(max_size=16))
            case "cut":
                del data[start:stop]
            case "repeat":
                data[start:start] = data[start:stop] * draw(st.integers(1, 20))
            case _:
                del data[start:]
    return bytes(data)


@many
@given(damaged(), st.sampled_from(SHAPES), st.sampled_from(["exact", "resize", "crop"]))
def test_a_damaged_file_is_read_or_refused(data: bytes, shape: Any, fit: Fit):
    read_or_refuse(data, shape, fit)


def parts(data: bytes) -> list[tuple[bytes, bytes]]:
    found, start = [], 8
    while start < len(data):
        size = int.from_bytes(data[start : start + 4])
        found.append((data[start + 4 : start + 8], data[start + 8 : start + 8 + size]))
        start += size + 12
    return found


KINDS = [b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT"]
sizes = st.sampled_from([0, 1, 7, 8, 9, 64, 65_536, 2**31 - 1, 2**31, 2**32 - 1])


@st.composite
def forged(draw: st.DrawFn) -> bytes:
    """A PNG whose checksums are right and whose chunks lie."""
    chunks = parts(draw(st.sampled_from(PNGS)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(chunks) - 1))
        match draw(st.sampled_from(["size", "form", "damage", "drop", "add", "swap"])):
            case "size":
                size = struct.pack(">II", draw(sizes), draw(sizes))
                chunks[0] = (chunks[0][0], size + chunks[0][1][8:])
            case "form":
                form = draw(
                    st.binary(min_size=5, max_size=5)
                    | st.sampled_from(
                        [
                            bytes([d, c, 0, 0, i])
                            for d in (1, 8, 16)
                            for c in (0, 2, 3, 4, 6)
                            for i in (0, 1)
                        ]
                    )
                )
                chunks[0] = (chunks[0][0], chunks[0][1][:8] + form)
            case "damage":
                kind, content = chunks[at]
                cut = draw(st.integers(0, len(content)))
                chunks[at] = (
                    kind,
                    content[:cut] + draw(st.binary(max_size=8)) + content[cut + 4 :],
                )
            case "drop" if len(chunks) > 1:
                del chunks[at]
            case "swap":
                chunks[at], chunks[-1] = chunks[-1], chunks[at]
            case _:
                chunks.insert(at, (draw(st.sampled_from(KINDS)), draw(st.binary(max_size=40))))
    return png_of(chunks)


@many
@given(forged(), st.sampled_from(SHAPES), st.sampled_from(["exact", "resize", "crop"]))
def test_a_forged_png_is_read_or_refused(data: bytes, shape: Any, fit: Fit):
    read_or_refuse(data, shape, fit)


numbers = st.integers(-3, 9) | st.sampled_from([2**31, 2**62, 2**64, 10**30, -(2**63)])
literals = st.recursive(
    numbers | st.booleans() | st.none() | st.text(max_size=4) | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple),
    max_leaves=6,
)
REAL = ["<f8", ">f8", "<f2", "<f16", "|u1", "<i8", ">u2"]
UNREAL = ["|b1", "<c16", "|O", "<M8[ns]", "|S8", "<U2", "|V8", "f8, i4", "(2,)f8", "object"]
ABSURD = ["<f0", "", "<f99999999999", "\ud800"]
descriptions = st.sampled_from(REAL + UNREAL + ABSURD) | literals


@st.composite
def arrays(draw: st.DrawFn) -> bytes:
    """A .npy file whose header says anything."""
    shape = draw(st.lists(numbers, max_size=70).map(tuple) | st.just((8, 8)) | literals)
    header = repr(
        {
            "descr": draw(descriptions),
            "fortran_order": draw(st.booleans() | literals),
            "shape": shape,
        }
    )
    header = draw(st.just(header) | st.text(max_size=40) | st.just("(" * 9000))
    text = header.encode("utf-8", "surrogatepass")
    version = draw(st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"]))
    length = len(text) + draw(st.sampled_from([0, 0, 0, -1, 1, 5000]))
    size = max(0, length).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return (
        b"\x93NUMPY" + version + size + text + draw(st.sampled_from([b"", b"\0" * 64, b"\0" * 512]))
    )


@some
@given(arrays())
@example(npy(np.full((8, 8), np.nan)))
@example(npy(np.full((8, 8), -np.inf)))
@example(npy(np.full((8, 8), np.longdouble("1e4000"))))
@example(npy(np.zeros(1)).replace(b"(1,)", b"(1,)*70"))
@example(npy(np.zeros((1,) * 64)))
@example(npy(np.zeros(0)).replace(b"(0,)", b"(False,)"))
@example(npy(np.zeros(0)).replace(b"(0,)", b"(0, 9**99)"))
def test_a_lying_npy_is_read_or_refused(data: bytes):
    with as_in_service():
        try:
            array = read_npy(data)
        except NpyError:
            array = np.zeros(0)
    assert array.dtype.kind in "uif"
    assert array.nbytes <= len(data)
    for shape in SHAPES:
        read_or_refuse(data, shape, "exact")


CARD = Card.model_validate(CARDS[0])


def decode_or_refuse(data: bytes) -> None:
    """The property: latents of the model, all finite, or a `Problem`."""
    with as_in_service():
        try:
            rows = read_latents(data, "latents", Latents(), CARD, None)["latents"]
        except Problem:
            return
    assert rows.shape[1:] == CARD.shape
    assert np.isfinite(rows).all()


@some
@given(arrays())
@example(npy(np.full((1, 1, 8, 8), np.nan)))
@example(npy(np.full((1, 1, 8, 8), np.inf, np.float16)))
@example(npy(np.full((1, 1, 8, 8), np.longdouble("1e4000"))))
def test_latents_of_a_lying_npy_are_read_or_refused(data: bytes):
    decode_or_refuse(data)


kinds = st.sampled_from(
    ["F64", "F32", "F16", "BF16", "F8_E5M2", "F4", "I64", "U8", "BOOL", "C64", "O", 3]
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": kinds,
        "shape": st.lists(numbers, max_size=5) | st.just([1, 1, 8, 8]) | literals,
        "data_offsets": st.lists(numbers | st.just(512), max_size=3) | st.just([0, 512]) | literals,
        "other": literals,
    },
)
names = st.sampled_from(["latents", "companion", "__metadata__", "", "\0", "é"])


@some
@given(
    st.dictionaries(names, entries | literals, max_size=4) | literals,
    st.sampled_from([0, 0, 0, -1, 1, 2**20, 2**40, 2**63]),
    st.sampled_from([b"", b"\0" * 512, b"\xff" * 512]),
)
@example({"latents": {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 8]}}, 0, b"\0" * 8)
@example(
    {"latents": {"dtype": "F64", "shape": [1, 1, 8, 8], "data_offsets": [0, 512]}}, 0, b"\xff" * 512
)
def test_lying_safetensors_are_read_or_refused(header: Any, lie: int, data: bytes):
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    whole = (len(text) + lie).to_bytes(9, "little", signed=True)[:8] + text + data
    with as_in_service():
        try:
            arrays, _ = unpack(whole)
        except ArraysError:
            arrays = {}
    assert sum(array.nbytes for array in arrays.values()) <= len(data)
    decode_or_refuse(whole)


@some
@given(st.data())
def test_damaged_safetensors_are_read_or_refused(data: st.DataObject):
    whole = bytearray(latents(2))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at : at + 3] = data.draw(st.binary(max_size=6))
    decode_or_refuse(bytes(whole))


def test_a_header_of_a_million_arrays_is_refused_before_it_is_parsed():
    entry = {"dtype": "F64", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({f"a{i}": entry for i in range(30_000)}).encode()
    with pytest.raises(ArraysError, match="header of"):
        unpack(len(text).to_bytes(8, "little") + text)


def bombs() -> dict[str, bytes]:
    """Small files that would fill gigabytes, or take minutes, if they were believed."""
    header = parts(raw_png(DEEP))[0][1]
    zeros, end = zlib.compress(bytes(2**26), 9), (b"IEND", b"")
    progressive, plain = picture(COLOURS, "JPEG", progressive=True), picture(COLOURS, "JPEG")
    scan = progressive.index(SCAN)
    following = progressive.index(SCAN, scan + 2)
    tags = b"".join(struct.pack("<HHII", number, 7, 60_000, 8) for number in range(5000))
    tiff = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 5000) + tags + bytes(4)

    def sized(width: int, height: int) -> bytes:
        start = (b"IHDR", struct.pack(">II", width, height) + header[8:])
        return png_of([start, (b"IDAT", zeros), end])

    return {
        "declared size": sized(60_000, 60_000),
        "long side": sized(2**31 - 1, 1),
        "more rows than declared": sized(8, 8),
        "compressed text": png_of([(b"IHDR", header), *[(b"zTXt", b"k\0\0" + zeros)] * 8, end]),
        "scans": progressive[:following]
        + progressive[scan:following] * 20_000
        + progressive[following:],
        "tags": plain[:2] + b"\xff\xe1" + struct.pack(">H", len(tiff) + 2) + tiff + plain[20:],
        "segments": plain[:2] + b"\xff\xfe\0\x02" * 200_000 + plain[2:],
        "array": npy(np.zeros((8, 8))).replace(b"(8, 8)", b"(9**9,)"),
    }


DECODE_THEM = """
import resource, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from service.images import ImageError, declared_pixels, read_image

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

files = sorted(Path(sys.argv[1]).iterdir())
start = peak()
for file in files:
    data, began = file.read_bytes(), time.process_time()
    for fit in ("exact", "resize", "crop"):
        try:
            read_image(data, (3, 8, 8), 256, 4096, fit)
        except ImageError:
            pass
        declared_pixels(data)
    print(file.name, round(time.process_time() - began, 2), (peak() - start) >> 20, sep="|")
"""


def test_bombs_take_neither_memory_nor_time(tmp_path: Any):
    """In a process of their own, whose peak is theirs."""
    for name, data in bombs().items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", DECODE_THEM, str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    for line in told.splitlines():
        name, seconds, megabytes = line.split("|")
        assert int(megabytes) < 100, f"{name}: {megabytes} MiB"
        assert float(seconds) < 5, f"{name}: {seconds} s"
    assert len(told.splitlines()) == len(bombs())
