"""Media as the bytes of a file, which is how they travel: clients and servers decode nothing."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any, Final

from tandem.errors import InvalidRequest

_IEEE_FLOAT: Final = 3  # WAVE_FORMAT_IEEE_FLOAT
_SAMPLE_BYTES: Final = 4
_LARGEST: Final = 2**31  # bytes; no message carries more


def file_bytes(path: str | os.PathLike[str], field: str) -> bytes:
    """A file's content. Raises InvalidRequest, naming the field, where it cannot be read."""
    try:
        file = Path(path)
        if file.exists() and not file.is_file():  # a device or a pipe may never end
            raise InvalidRequest("is no file", field=field)
        if (size := file.stat().st_size) >= _LARGEST:
            raise InvalidRequest(f"has {size} bytes, the limit is {_LARGEST - 1}", field=field)
        return file.read_bytes()
    except InvalidRequest:
        raise
    except (OSError, ValueError) as error:  # a path with a null character is a ValueError
        raise InvalidRequest(f"cannot be read: {error}", field=field) from None


def wav(samples: Any, rate: object, field: str) -> bytes:
    """A mono waveform as a WAV file of 32-bit floats.

    Args:
        samples: [n] floats between -1 and 1, as an array of NumPy or anything that becomes one.
        rate: samples a second, in Hz.

    Raises InvalidRequest, naming the field, for anything else.
    """
    import numpy as np

    waveform = np.asarray(samples)
    if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating):
        shape = list(waveform.shape)
        raise InvalidRequest(f"must be mono floats, [n], got {waveform.dtype} {shape}", field=field)
    if not np.isfinite(waveform).all():
        raise InvalidRequest("has samples that are not finite", field=field)
    if not isinstance(rate, int | np.integer) or not 0 < rate < 2**29:
        raise InvalidRequest(f"the sample rate must be a positive number of Hz, got {rate!r}", field=field)
    data = waveform.astype("<f4").tobytes()
    chunks = [
        # format, channels, rate, bytes a second, bytes a frame, bits a sample, size of an extension
        (b"fmt ", struct.pack("<HHIIHHH", _IEEE_FLOAT, 1, rate, rate * _SAMPLE_BYTES, _SAMPLE_BYTES, 32, 0)),
        (b"fact", struct.pack("<I", len(waveform))),  # frames; asked for of every format but PCM
        (b"data", data),
    ]
    body = b"WAVE" + b"".join(name + struct.pack("<I", len(chunk)) + chunk for name, chunk in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def png(image: Any, field: str) -> bytes:
    """An image as a PNG file of RGB, upright as its EXIF says: what transformers' `load_image` makes of it.

    Args:
        image: a Pillow image of any mode, or an array of NumPy, uint8 [height, width],
            [height, width, 3] or [height, width, 4].

    Raises InvalidRequest, naming the field, for anything else and for an image that cannot be read.
    """
    import numpy as np
    from PIL import Image, ImageOps

    if isinstance(image, np.ndarray):
        shape = image.shape
        if image.dtype != np.uint8 or len(shape) not in (2, 3) or shape[2:] not in ((), (3,), (4,)):
            raise InvalidRequest(
                f"must be uint8 [height, width] or [height, width, 3], got {image.dtype} {list(shape)}",
                field=field,
            )
        if not image.size:
            raise InvalidRequest("has no pixels", field=field)
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise InvalidRequest(
            f"must be a file's bytes or path, a PIL.Image or an array, got {type(image).__name__}",
            field=field,
        )
    made = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        upright.info.clear()  # colour profiles and texts would travel, too
        upright.save(made, "PNG", compress_level=1)
    except Exception as error:  # an image opened from a file is read here: anything may be wrong with it
        raise InvalidRequest(f"cannot be read: {error}", field=field) from None
    return made.getvalue()
