"""Uploads are decoded within bounds: what is decoded, what is refused, and what ends a decoder."""

import io
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from storage.errors import ConfigError, SceneError, SkysiftError
from storage.raster.writer import write_geotiff
from workflows.service import decoding
from workflows.service.decoding import Decoder

MOST_PX = 1 << 20


@pytest.fixture
def decoder():
    return Decoder(MOST_PX)


def _picture(kind: str, side: int = 64, **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def _many_scans(count: int, side: int) -> bytes:
    """Repeat the last scan of a progressive JPEG."""
    whole = _picture("JPEG", side, progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * count + b"\xff\xd9"


def test_a_picture_arrives_as_it_is_and_the_process_takes_the_next(decoder):
    png = _picture("PNG")
    truth = np.asarray(Image.open(io.BytesIO(png)), np.float32).transpose(2, 0, 1)
    np.testing.assert_array_equal(decoder(png), truth)
    first = decoder._idle.get_nowait()
    decoder._idle.put(first)
    with pytest.raises(SkysiftError):
        decoder(png[:60])
    np.testing.assert_array_equal(decoder(png), truth)
    assert decoder._idle.get_nowait() is first


def test_a_geotiff_arrives_with_its_missing_pixels(decoder, tmp_path):
    values = np.arange(2 * 32 * 32, dtype=np.uint16).reshape(2, 32, 32)
    file = tmp_path / "a.tif"
    write_geotiff(str(file), values, "EPSG:32632", (10, 0, 0, 0, -10, 320), nodata=5, cog=False)
    expected = np.where(values == 5, np.nan, values).astype(np.float32)
    np.testing.assert_array_equal(decoder(file.read_bytes()), expected)


def test_a_tiff_of_one_huge_tile_is_refused_by_its_header(decoder, tmp_path):
    file = tmp_path / "tile.tif"
    side = {"tiled": True, "blockxsize": 32768, "blockysize": 32768, "SPARSE_OK": True}
    place = {"crs": "EPSG:32632", "transform": from_origin(0, 640, 10, 10)}
    shape = {"width": 64, "height": 64, "count": 1, "dtype": "uint8"}
    rasterio.open(file, "w", driver="GTiff", **side, **place, **shape).close()
    with pytest.raises(ConfigError, match="tiles of 1,073,741,824 pixels"):
        decoder(file.read_bytes())


def test_a_jpeg_of_many_scans_is_refused_or_ends_its_decoder(decoder, monkeypatch):
    with pytest.raises(ConfigError, match=r"scans, at most 100 are taken"):
        decoder(_many_scans(1000, 64))
    # a header that tells nothing: the process ends itself, and the next picture gets another one
    script = "from storage.raster import picture as p; p._MOST_SCANS = 10**9"
    script += "; from workflows.service import decoding as d; d._LIMIT_S = .5"
    script += "; import sys; d._serve(int(sys.argv[1]), int(sys.argv[2]))"
    started = subprocess.Popen
    monkeypatch.setattr(
        decoding.subprocess,
        "Popen",
        lambda command, **options: started([command[0], "-c", script, *command[3:]], **options),
    )
    hurried = Decoder(MOST_PX)
    assert hurried(_picture("PNG")).shape == (3, 64, 64)
    process = hurried._idle.get_nowait()
    hurried._idle.put(process)
    since = time.monotonic()
    with pytest.raises(SceneError, match="cannot be decoded within"):
        hurried(_many_scans(1000, 1000))
    assert time.monotonic() - since < 5
    assert process._child.returncode == -signal.SIGALRM
    assert not Path(process._folder.name).exists()
    assert hurried(_picture("PNG")).shape == (3, 64, 64)


def test_a_decoder_has_bounded_memory_and_no_credentials(decoder, monkeypatch):
    monkeypatch.setenv("SKYSIFT_TOKEN", "0123456789abcdef-token")
    decoder(_picture("PNG"))
    process = decoder._idle.get_nowait()
    child = process._child.pid
    assert b"SKYSIFT_TOKEN" not in Path(f"/proc/{child}/environ").read_bytes()
    soft, hard = resource.prlimit(child, resource.RLIMIT_AS)
    assert soft == hard < 3 << 30


def test_no_process_and_no_folder_outlives_its_decoder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    decoder = Decoder(MOST_PX)
    decoder(_picture("JPEG"))
    process = decoder._idle.get_nowait()
    child = process._child
    del process, decoder
    assert child.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_a_decoder_ends_with_the_process_that_started_it():
    script = (
        "import os, signal\nfrom workflows.service.decoding import _Process\n"
        "p = _Process(1000)\nprint(p._child.pid, p._folder.name, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    child, folder = ran.stdout.split()
    deadline = time.monotonic() + 20
    while _runs(int(child)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(int(child))
    Path(folder).rmdir()  # nothing is in it


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False
