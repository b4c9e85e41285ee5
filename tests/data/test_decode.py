"""Reading image files: every mode, every kind of broken file."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vsm.data.decode import decode_images, fit_array, read_image
from pyro_vsm.errors import UserError


def as_tensor(array):
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "webp", "tif", "ppm"])
def test_an_image_of_the_size_keeps_its_pixels(tmp_path, write_image, ending):
    path = write_image(tmp_path / f"image.{ending}")
    with Image.open(path) as image:
        assert torch.equal(read_image(path, 84), as_tensor(image.convert("RGB")))


def test_shorter_side_is_fitted_and_the_centre_cut_out(tmp_path):
    pixels = np.zeros((40, 100, 3), dtype=np.uint8)
    pixels[:, 30:70] = (255, 0, 0)
    for path, turned in ((tmp_path / "wide.png", pixels), (tmp_path / "tall.png", pixels.transpose(1, 0, 2))):
        Image.fromarray(np.ascontiguousarray(turned)).save(path)
        result = read_image(path, 20)
        assert result.shape == (3, 20, 20)
        assert (result[0, 1:-1, 1:-1] == 255).all()
        assert (result[0] > 230).all()  # at its edge the crop mixes with what lies beyond
        assert (result[1:] == 0).all()


def test_a_large_photograph_is_close_to_its_exact_reduction(tmp_path):
    """JPEGs much too large are decoded at a fraction of their size."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    photo = small.resize((1600, 1200), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "photo.jpg", quality=95)
    exact = photo.resize((56, 56), Image.Resampling.BICUBIC, box=(200, 0, 1400, 1200))
    difference = (read_image(tmp_path / "photo.jpg", 56).int() - as_tensor(exact).int()).abs()
    assert difference.float().mean() < 1.5
    assert difference.max() < 16


def test_one_by_one_and_extreme_shapes(tmp_path):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    assert (read_image(tmp_path / "dot.png", 9)[0] == 255).all()
    Image.new("RGB", (3000, 1), "red").save(tmp_path / "line.png")
    assert (read_image(tmp_path / "line.png", 9)[0] == 255).all()


def save(path, mode, value, **how):
    Image.new(mode, (8, 8), value).save(path, **how)
    return path


def test_modes_become_colour(tmp_path):
    def colour(path):
        pixels = read_image(path, 8)
        assert (pixels == pixels[:, :1, :1]).all()
        return pixels[:, 0, 0].tolist()

    assert colour(save(tmp_path / "l.png", "L", 90)) == [90, 90, 90]
    assert colour(save(tmp_path / "bit.png", "1", 1)) == [255, 255, 255]
    assert colour(save(tmp_path / "la.png", "LA", (0, 51))) == [204, 204, 204]
    assert colour(save(tmp_path / "rgba.png", "RGBA", (255, 0, 0, 0))) == [255, 255, 255]
    assert colour(save(tmp_path / "half.png", "RGBA", (255, 0, 0, 51))) == [255, 204, 204]
    assert colour(save(tmp_path / "rgb.png", "RGB", (9, 8, 7), transparency=(9, 8, 7))) == [255, 255, 255]
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "p.png")
    assert colour(tmp_path / "p.png") == [10, 20, 30]
    palette.save(tmp_path / "clear.png", transparency=1)
    assert colour(tmp_path / "clear.png") == [255, 255, 255]
    cmyk = colour(save(tmp_path / "cmyk.jpg", "CMYK", (0, 255, 255, 0), quality=100))
    assert cmyk[0] > 250
    assert max(cmyk[1:]) < 5
    Image.fromarray(np.full((8, 8), 0x7FFF, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert colour(tmp_path / "deep.png") == [127, 127, 127]
    Image.fromarray(np.full((8, 8), 0x80FF, dtype=np.uint16)).save(tmp_path / "deep.tif")
    assert colour(tmp_path / "deep.tif") == [128, 128, 128]


def test_grey_is_asked_for(tmp_path):
    path = save(tmp_path / "l.png", "L", 90)
    assert read_image(path, 8, channels=1).shape == (1, 8, 8)
    assert (read_image(path, 8, channels=1) == 90).all()
    assert (read_image(save(tmp_path / "c.png", "RGB", (90, 90, 90)), 8, channels=1) == 90).all()
    assert (read_image(save(tmp_path / "a.png", "LA", (0, 51)), 8, channels=1) == 204).all()


def test_floats_of_unknown_range_are_refused(tmp_path):
    with pytest.raises(UserError, match="32-bit values"):
        read_image(save(tmp_path / "f.tif", "F", 0.5), 8)


def test_a_turned_photograph_is_turned_back(tmp_path):
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:4] = 255  # the upper half, once turned by 90 degrees clockwise: the right half
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    result = read_image(tmp_path / "turned.png", 8)
    assert (result[:, :, 4:] == 255).all()
    assert (result[:, :, :4] == 0).all()


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_an_animation_gives_its_first_frame(tmp_path, ending):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], lossless=True)
    result = read_image(tmp_path / f"a.{ending}", 8)
    assert result[:, 0, 0].tolist() == [255, 0, 0]


def png_that_claims(width, height):
    """A few bytes that declare a huge image."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [8100, 10_000, 20_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png_that_claims(side, side))
    with pytest.raises(UserError, match=r"bomb.png has .*the limit is 64 million"):
        read_image(tmp_path / "bomb.png", 84)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n"
BROKEN = {
    "zero.jpg": (b"", "zero.jpg is empty"),
    "page.jpg": (b"\n<!DOCTYPE html><html><body>404</body></html>", "is an HTML page"),
    "page2.png": (b"<html><head>", "is an HTML page"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
    "text.png": (b"hello, this is no image", "is no readable image"),
    "noise.jpg": (bytes(range(256)) * 9, "is no readable image"),
    "program.png": (POSTSCRIPT, "is no readable image"),
    "jpeg.jpg": (b"\xff\xd8\xff\xe0" + bytes(60), "is no readable image"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_image_is_named(tmp_path, name):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_image(tmp_path / name, 84)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp", "tif", "bmp"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_truncated_image_is_refused(tmp_path, write_image, ending, part):
    path = write_image(tmp_path / f"cut.{ending}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(UserError, match="is no readable image"):
        read_image(path, 84)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone.png does not exist"):
        read_image(tmp_path / "gone.png", 84)
    with pytest.raises(UserError, match="is a folder"):
        read_image(tmp_path, 84)
    with pytest.raises(UserError, match="cannot be read"):
        read_image(tmp_path / ("x" * 300), 84)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="is a pipe"):
        read_image(tmp_path / "pipe.png", 84)


def test_a_huge_file_is_not_read(tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(600 << 20)  # takes no room on the disk
    with pytest.raises(UserError, match=r"has 600 MiB, the limit is 512"):
        read_image(tmp_path / "huge.png", 84)


@pytest.fixture
def files(tmp_path, write_image):
    """150 small images, three of them of another size."""
    return [write_image(tmp_path / f"{i:03}.png", seed=i, size=30 if i % 50 == 7 else 16) for i in range(150)]


def test_threads_do_not_change_the_result(files):
    one, good, notes = decode_images(files, 16, threads=1)
    assert one.shape == (150, 3, 16, 16)
    assert good.all()
    assert notes == []
    assert torch.equal(one, decode_images(files, 16, threads=5)[0])
    assert torch.equal(one[33], read_image(files[33], 16))


@pytest.mark.parametrize("threads", [1, 4])
def test_stop_names_the_first_bad_file(files, threads):
    for i in (140, 20, 90):
        files[i].write_bytes(b"")
    with pytest.raises(UserError, match=r"020\.png is empty"):
        decode_images(files, 16, threads=threads)


def test_skip_reports_a_few_and_counts_the_rest(files):
    bad = [3, 20, 21, 70, 90, 140, 149]
    whole = decode_images(files, 16)[0]
    for i in bad:
        files[i].write_bytes(b"")
    images, good, notes = decode_images(files, 16, bad_files="skip", threads=3)
    assert [i for i in range(150) if not good[i]] == bad
    assert torch.equal(images, whole[good])
    assert len(notes) == 6
    assert "003.png is empty" in notes[0]
    assert "090.png is empty" in notes[4]
    assert notes[5] == "skipped: 2 further files that cannot be read"


def test_no_files_are_no_images():
    assert decode_images([], 16)[0].shape == (0, 3, 16, 16)


def test_arrays_are_fitted_as_files_are(tmp_path, write_image):
    path = write_image(tmp_path / "a.png", size=50)
    with Image.open(path) as image:
        assert torch.equal(as_tensor(fit_array(np.asarray(image), 20)), read_image(path, 20))
