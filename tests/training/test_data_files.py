import json
import multiprocessing
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from service.images import read_image
from training import data
from training.config import DataSection
from training.data_errors import DataError


def picture(path: Path, seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, *channels), dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty pictures in two classes."""
    for seed in range(40):
        picture(tmp_path / "pictures" / ("cat" if seed % 2 else "dog") / f"{seed:02d}.png", seed)
    return tmp_path / "pictures"


def section(path: Path, **keys: object) -> DataSection:
    given = {"path": str(path), "held_out": 0.3, "cache": path.parent / "cache"}
    return DataSection.model_validate(given | keys)


def everything(dataset: data.Dataset) -> dict[str, bytes]:
    return {
        file: levels.numpy().tobytes()
        for split in (dataset.train, dataset.held_out)
        for file, levels in zip(split.files, split.take(slice(None)), strict=True)
    }


def test_a_folder_gives_its_pictures_classes_and_two_sides(folder: Path) -> None:
    dataset = data.read(section(folder))
    assert dataset.spec.shape == (3, 8, 8)
    assert dataset.spec.levels == 256
    assert dataset.spec.class_names == ("cat", "dog")
    found = everything(dataset)
    assert len(found) == 40
    with Image.open(folder / "dog" / "02.png") as image:
        assert found["dog/02.png"] == np.asarray(image).transpose(2, 0, 1).tobytes()
    for split in (dataset.train, dataset.held_out):
        assert len(split) > 3
        classes = [int(label) for label in split.labels]
        assert classes == [("cat", "dog").index(file[:3]) for file in split.files]


def test_a_zip_is_the_folder_that_it_holds(folder: Path, tmp_path: Path) -> None:
    made = shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path, "pictures")
    zipped, plain = data.read(section(Path(made))), data.read(section(folder))
    assert zipped.fingerprint == plain.fingerprint
    assert everything(zipped) == everything(plain)


@pytest.mark.parametrize("around", [("./", "./"), ("./", ""), ("./a/", "a/./")])
def test_a_zip_s_names_may_have_dots(folder: Path, tmp_path: Path, around: tuple[str, str]) -> None:
    with zipfile.ZipFile(tmp_path / "dots.zip", "w") as made:
        for n, file in enumerate(sorted(folder.rglob("*.*"))):
            name = around[n % 2] + file.relative_to(folder).as_posix()
            made.writestr(name, file.read_bytes())  # `write` would normalise the name
    zipped, plain = data.read(section(tmp_path / "dots.zip")), data.read(section(folder))
    assert zipped.spec.class_names == ("cat", "dog")
    assert everything(zipped) == everything(plain)


def test_pictures_without_subfolders_have_no_classes(tmp_path: Path) -> None:
    for seed in range(20):
        picture(tmp_path / "flat" / f"{seed}.png", seed)
    dataset = data.read(section(tmp_path / "flat"))
    assert dataset.spec.class_names is None
    assert set(dataset.train.labels.tolist()) == {-1}


def test_a_picture_stays_on_its_side_whatever_comes_and_goes(folder: Path) -> None:
    before = set(data.read(section(folder)).held_out.files)
    for seed in range(40, 80):
        picture(folder / "cat" / f"{seed}.png", seed)
    for file in sorted(before)[:2]:
        (folder / file).unlink()
    after = data.read(section(folder))
    assert before - set(sorted(before)[:2]) == {f for f in after.held_out.files if f in before}
    assert not before & set(after.train.files)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_picture_is_read_as_the_service_reads_an_upload(folder: Path, channels: int) -> None:
    dataset = data.read(section(folder, size=[6, 4], channels=channels, fit="resize"))
    shape = (channels, 6, 4)
    assert dataset.spec.shape == shape
    file = dataset.train.files[0]
    uploaded = read_image((folder / file).read_bytes(), shape, 256, 10**6, "resize")
    assert np.array_equal(dataset.train.take(slice(0, 1)).numpy()[0], uploaded)


def test_sixteen_bits_are_kept_or_rounded_to_eight(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 2**16, (20, 4, 4), dtype=np.uint16)
    for index, values in enumerate(pixels):
        (tmp_path / "deep").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / "deep" / f"{index:02d}.png")
    deep = data.read(section(tmp_path / "deep"))
    assert (deep.spec.levels, deep.spec.shape) == (65_536, (1, 4, 4))
    kept = np.frombuffer(everything(deep)["07.png"], dtype=np.uint16)
    assert np.array_equal(kept, pixels[7].ravel())
    shallow = everything(data.read(section(tmp_path / "deep", bits=8)))["07.png"]
    wanted = np.floor(pixels[7] / 65_535 * 255 + 0.5)
    assert np.array_equal(np.frombuffer(shallow, dtype=np.uint8), wanted.ravel())


def test_a_corrupt_picture_is_named_and_left_out(folder: Path) -> None:
    (folder / "cat" / "01.png").write_bytes((folder / "cat" / "01.png").read_bytes()[:60])
    (folder / "dog" / "scan.tiff").write_bytes(b"II*\0")
    dataset = data.read(section(folder))
    assert set(dataset.skipped) == {"cat/01.png", "dog/scan.tiff"}
    assert "not of a kind that is read" in dataset.skipped["dog/scan.tiff"]
    assert len(everything(dataset)) == 39
    again = data.read(section(folder))  # from the cache
    assert again.skipped == dataset.skipped


def test_a_damaged_member_of_a_zip_is_named_and_left_out(folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "pictures.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.writestr(str(file.relative_to(folder)), file.read_bytes() + bytes(2000))
        member = archive.getinfo("cat/01.png")
    content = bytearray(packed.read_bytes())
    first = member.header_offset + 30 + len(member.filename)
    content[first : first + 20] = bytes(b ^ 0xFF for b in content[first : first + 20])
    packed.write_bytes(content)
    dataset = data.read(section(packed))
    assert set(dataset.skipped) == {"cat/01.png"}
    assert "cannot be read" in dataset.skipped["cat/01.png"]


@pytest.mark.parametrize("cached", [False, True])
def test_a_corrupt_picture_stops_the_run_where_that_is_asked_for(
    folder: Path, cached: bool
) -> None:
    (folder / "cat" / "01.png").write_bytes(b"not a picture")
    if cached:
        data.read(section(folder))
    with pytest.raises(DataError, match=r"cat/01\.png cannot be read: .*data\.corrupt"):
        data.read(section(folder, corrupt="stop"))


def test_mixed_sizes_are_refused_unless_one_is_asked_for(folder: Path) -> None:
    picture(folder / "cat" / "large.png", 0, size=(16, 12))
    with pytest.raises(DataError, match=r"differ in size: 40 have 8×8, 1 have 16×12; set data\.s"):
        data.read(section(folder))
    assert data.read(section(folder, size=8)).spec.shape == (3, 8, 8)


def test_grey_among_colours_is_refused_unless_channels_are_given(folder: Path) -> None:
    picture(folder / "cat" / "grey.png", 0, mode="L")
    with pytest.raises(DataError, match=r"differ in channels: 40 have 3, 1 have 1; set data\.ch"):
        data.read(section(folder))
    assert data.read(section(folder, channels=1)).spec.shape == (1, 8, 8)


def test_pictures_beside_class_folders_are_refused(folder: Path) -> None:
    picture(folder / "loose.png", 0)
    with pytest.raises(DataError, match=r"1 pictures .* lie beside .*loose\.png"):
        data.read(section(folder))


def test_a_folder_without_pictures_is_refused_with_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no picture .* it has no files"):
        data.read(section(tmp_path / "empty"))
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"has no picture .* it has 1 of \.txt"):
        data.read(section(tmp_path / "empty"))


def test_a_folder_of_broken_pictures_is_refused_with_the_first(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"none of 1 pictures .* a\.png: not an image"):
        data.read(section(tmp_path / "broken"))


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'.*absent' is not there"):
        data.read(section(tmp_path / "absent"))
    (tmp_path / "some.csv").touch()
    with pytest.raises(DataError, match="is neither a folder, a zip"):
        data.read(section(tmp_path / "some.csv"))


def test_hidden_files_do_not_count(folder: Path) -> None:
    picture(folder / "__MACOSX" / "cat" / "x.png", 0)
    picture(folder / "cat" / "._00.png", 0)
    assert len(everything(data.read(section(folder)))) == 40


def images_bin(cache: Path) -> list[Path]:
    return list(cache.glob("*/images.bin"))


def test_pictures_are_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data.read(section(folder))
    (file,) = images_bin(folder.parent / "cache")
    written = file.stat().st_mtime_ns

    def decode(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("training.data_files.read_image", decode)
    assert everything(data.read(section(folder))) == everything(first)
    assert file.stat().st_mtime_ns == written


def test_the_fingerprint_is_of_contents_names_and_options(folder: Path) -> None:
    prints = {data.read(section(folder)).fingerprint}
    prints.add(data.read(section(folder, channels=1)).fingerprint)
    picture(folder / "cat" / "01.png", 99)
    prints.add(data.read(section(folder)).fingerprint)
    (folder / "cat" / "01.png").rename(folder / "cat" / "renamed.png")
    prints.add(data.read(section(folder)).fingerprint)
    assert len(prints) == 4
    assert data.read(section(folder, flip=True, held_out=0.4)).fingerprint in prints


def _read(section: DataSection, out: "multiprocessing.Queue[str]") -> None:
    out.put(data.read(section).fingerprint)


def test_two_processes_may_fill_the_cache_at_once(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    out: multiprocessing.Queue[str] = context.Queue()
    both = [context.Process(target=_read, args=(section(folder), out)) for _ in range(2)]
    for process in both:
        process.start()
    found = {out.get(timeout=60) for _ in both}
    for process in both:
        process.join(timeout=60)
    assert found == {data.read(section(folder)).fingerprint}
    assert len(images_bin(folder.parent / "cache")) == 1
    assert len(everything(data.read(section(folder)))) == 40


def test_what_a_killed_process_left_in_the_cache_is_done_again(folder: Path) -> None:
    data.read(section(folder))
    (file,) = images_bin(folder.parent / "cache")
    half = file.parent.with_name(file.parent.name + ".partial")
    file.parent.rename(half)
    (half / "images.bin").write_bytes(b"half")
    assert len(everything(data.read(section(folder)))) == 40
    assert not half.exists()


def test_a_full_disk_is_said_with_what_is_needed(folder: Path, small_disk: Path) -> None:
    for seed in range(400):
        picture(folder / "cat" / f"more{seed}.png", seed)
    with pytest.raises(DataError, match=r"440 decoded images take 0\.1 MiB, .* is full .*data\.c"):
        data.read(section(folder, cache=small_disk))
    assert not list(small_disk.glob("*.partial"))


def test_a_disk_that_fills_up_meanwhile_is_said_too(
    folder: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(400):
        picture(folder / "cat" / f"more{seed}.png", seed)
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr("training.data_cache.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="is full"):
        data.read(section(folder, cache=small_disk))
    assert not list(small_disk.glob("*.partial"))


def test_a_cache_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(DataError, match=r"taken: .*set data\.cache"):
        data.read(section(folder, cache=tmp_path / "taken"))


def test_real_pictures_are_read_from_their_zip(tmp_path: Path) -> None:
    given = os.environ.get("FOKKER_TEST_IMAGES")
    if not given:
        pytest.skip("FOKKER_TEST_IMAGES names no zip of real pictures")
    with zipfile.ZipFile(given) as whole, zipfile.ZipFile(tmp_path / "some.zip", "w") as some:
        names = [entry for entry in whole.namelist() if not entry.endswith("/")][::50]
        for name in names:
            some.writestr(name, whole.read(name))
    dataset = data.read(section(tmp_path / "some.zip", cache=tmp_path))
    assert len(everything(dataset)) == len(names)
    assert not dataset.skipped
    assert dataset.spec.classes > 1
    assert 0.25 < len(dataset.held_out) / len(names) < 0.35
    levels = dataset.train.take(torch.arange(8)).double()
    assert 20 < float(levels.std()) < 120
    index = json.loads(next(tmp_path.glob("*/index.json")).read_text())
    assert index["levels"] == 256
