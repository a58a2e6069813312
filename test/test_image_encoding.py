"""Every common encoding becomes the same picture, whatever its padding and byte order; bad bytes become one clear line."""

import io
import zlib

import cv2
import numpy as np
import pytest
from encoded_pictures import HEIGHT, WIDTH, grey_of, pack, send, smooth_picture
from PIL import Image

from vl4ad_model.errors import ImageError
from vl4ad_model.image_encoding import LAYOUTS, decode_compressed, decode_raw


@pytest.fixture(scope="module")
def picture():
    return smooth_picture()


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", sorted(LAYOUTS))
def test_every_encoding_shows_the_picture(picture, encoding, padding, big):
    data, step = send(pack(picture, encoding), padding, big)
    rgb = decode_raw(data, height=HEIGHT, width=WIDTH, encoding=encoding, step=step, is_bigendian=big)
    assert rgb.shape == (HEIGHT, WIDTH, 3) and rgb.dtype == np.uint8 and rgb.flags.c_contiguous
    color = LAYOUTS[encoding].color
    expected = np.repeat(grey_of(picture)[..., None], 3, axis=2) if color == "mono8" else picture
    error = np.abs(rgb.astype(int) - expected)
    inside = (slice(2, -2), slice(2, -2))
    interpolated = color.startswith("bayer") or color[:2] in ("yu", "nv")
    assert error[inside].max() <= (4 if interpolated else 0)


def test_rgb8_is_not_copied(picture):
    data = picture.tobytes()
    rgb = decode_raw(data, height=HEIGHT, width=WIDTH, encoding="rgb8")
    assert np.shares_memory(rgb, np.frombuffer(data, np.uint8)) and (rgb == picture).all()


def test_the_padding_of_the_last_row_may_be_missing(picture):
    data, step = send(pack(picture, "bgr8"), padding=10)
    rgb = decode_raw(data[:-10], height=HEIGHT, width=WIDTH, encoding="bgr8", step=step)
    assert (rgb == picture).all()


@pytest.mark.parametrize("name", ["RGB8", "Bayer_RGGB8", "8uc3", "NV21"])
def test_case_does_not_matter(picture, name):
    known = {key.lower(): key for key in LAYOUTS}[name.lower()]
    data, _ = send(pack(picture, known))
    assert decode_raw(data, height=HEIGHT, width=WIDTH, encoding=name).shape == picture.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": "rgb9"}, "encoding 'rgb9' is unknown"),
        ({"encoding": "32FC1"}, "depth or float"),
        ({"encoding": ""}, "encoding '' is unknown"),
        ({"step": 100}, "step 100 is less than a row"),
        ({"height": HEIGHT + 1}, "cut off"),
        ({"height": 0}, "empty"),
        ({"width": 0}, "empty"),
        ({"height": 4}, "sides must be"),
        ({"encoding": "nv12", "height": 47}, "even sides"),
    ],
)
def test_bad_raw_images_say_why(picture, change, message):
    arguments = {"height": HEIGHT, "width": WIDTH, "encoding": "rgb8", "step": WIDTH * 3, **change}
    with pytest.raises(ImageError, match=message):
        decode_raw(picture.tobytes(), **arguments)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_compressed_images_show_the_picture(picture, kind):
    rgb = decode_compressed(_encode(picture, kind), kind.lower())
    assert np.abs(rgb.astype(int) - picture).max() <= (0 if kind in ("PNG", "BMP") else 12)
    assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous


def test_grey_and_deep_compressed_images_become_rgb(picture):
    grey = grey_of(picture)
    assert (decode_compressed(_encode(grey, "PNG")) == grey[..., None]).all()
    deep = cv2.imencode(".png", grey.astype(np.uint16) * 257)[1].tobytes()
    assert (decode_compressed(deep) == grey[..., None]).all()


def test_a_stored_orientation_is_ignored(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", exif=exif)
    assert decode_compressed(stream.getvalue()).shape == picture.shape


def _encode(image, kind):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


def test_bad_compressed_images_say_why(picture):
    jpeg, png = _encode(np.tile(picture, (4, 4, 1)), "JPEG"), _encode(picture, "PNG")
    huge = bytearray(png)
    huge[16:24] = b"\x00\x00\xff\xff" * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    for data, image_format, message in [
        (b"", "jpeg", "0 bytes"),
        (b"hello", "jpeg", "no image"),
        (jpeg[:-100], "jpeg", "cut off"),
        (jpeg[:3], "jpeg", "no image"),
        (png[: len(png) // 2], "png", "damaged|cannot be decoded"),
        (bytes(huge), "png", "claims more than"),
        (png, "16UC1; compressedDepth png", "depth image"),
    ]:
        with pytest.raises(ImageError, match=message):
            decode_compressed(data, image_format)


def test_a_whole_jpeg_in_a_larger_buffer_is_whole_and_one_that_is_cut_off_is_not(picture):
    jpeg = _encode(np.tile(picture, (4, 4, 1)), "JPEG")
    assert np.array_equal(decode_compressed(jpeg + bytes(5000), "jpeg"), decode_compressed(jpeg, "jpeg"))
    with pytest.raises(ImageError, match="cut off"):
        decode_compressed(jpeg[:-100] + bytes(5000), "jpeg")


def test_a_bayer_camera_compressed_as_it_is_comes_out_in_colour():
    """ROS's compressed_image_transport leaves Bayer mosaics unconverted and says so in the format."""
    red = np.zeros((32, 48), np.uint8)
    red[0::2, 0::2] = 200
    data = cv2.imencode(".png", red)[1].tobytes()
    rgb = decode_compressed(data, "bayer_rggb8; png compressed ")
    assert rgb.shape == (32, 48, 3) and rgb[4:-4, 4:-4, 0].min() >= 190 and rgb[4:-4, 4:-4, 1:].max() <= 10
    three = cv2.imencode(".png", np.zeros((32, 48, 3), np.uint8))[1].tobytes()
    with pytest.raises(ImageError, match="has 3 channels"):
        decode_compressed(three, "bayer_rggb8; png compressed ")
