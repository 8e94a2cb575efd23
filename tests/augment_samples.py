"""A picture without a file, and the digest of pixels: what the tests of augmentation share."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from tinyvit_edge.distill.augment import Pixels, View

CHANGED = "the bytes have changed: every store that exists would replay other pixels; undo it, or"
CHANGED += " raise augment.VERSION and write the new digests down here"


def picture(width: int = 96, height: int = 64, shift: int = 0) -> Image.Image:
    """Gradients, a chequer and a hyperbolic pattern by integer arithmetic, in 18..217."""
    y, x = np.mgrid[0:height, 0:width]
    red = (x * 150 // width + y * 49 // height + shift) % 200
    green = (x * y // 3 + shift) % 200
    blue = 120 * ((x // 5 + y // 7) % 2) + (x + 2 * y + shift) % 80
    return Image.fromarray((np.stack((red, green, blue), 2) + 18).astype(np.uint8))


def plain(image: Image.Image, **changes: Any) -> View:
    """The whole image as it is, but for the changes."""
    whole = View(
        box=(0, 0, image.width, image.height), flip=False, operations=(), erase=None, noise_seed=0
    )
    return replace(whole, **changes)


def digest(*pixels: Pixels) -> str:
    return hashlib.sha256(b"".join(part.tobytes() for part in pixels)).hexdigest()[:16]
