"""Write what the phone apps' unit tests compare with: `python apps/goldens.py OUT`.

The bundled digits model and drawn images are enough for it, so nothing has to be downloaded and
nothing is licensed. Pillow and NumPy are the reference::

    OUT/bundles/           index.json and one bundle, as they stand in an app
    OUT/cases/cases.json   resize: one entry a contract and image shape; orient: one an EXIF value
    OUT/cases/N.*.bin      raw little-endian arrays, C order, as in a bundle's golden folder
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tinyvit_edge.bundle import golden_images
from tinyvit_edge.export import ExportRequest, drawn_patterns, export
from tinyvit_edge.preprocessing import Preprocessing

_EXIF_ORIENTATION = 0x0112
_CROP = Preprocessing(size=48, crop_pct=0.875)
# What can differ between contracts, each against upright, flat, square, tiny and thin images.
_CONTRACTS = (
    _CROP,
    replace(_CROP, crop_pct=0.95, interpolation="bilinear"),
    replace(_CROP, crop_pct=1.0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0)),
    replace(_CROP, mode="squash"),
    replace(_CROP, mode="squash", interpolation="bilinear", size=33),
)
# The last is so much larger than the model's input that many taps add up.
_SHAPES = ((90, 70), (61, 97), (48, 48), (9, 7), (7, 150), (640, 411))


def write_goldens(root: Path, target: str) -> None:
    """Write a bundle of `target` and the cases into a new folder."""
    bundles = root / "bundles"
    facts = export(ExportRequest(target=target, weights="digits", precision="fp32", out=bundles))
    index = {"bundles": [{"name": Path(facts["bundle"]).name}]}
    (bundles / "index.json").write_text(json.dumps(index), encoding="utf-8")
    write_cases(root / "cases")


def write_cases(folder: Path) -> None:
    """Write the cases of steps 2 (orient) and 4 to 6 (resize, crop, normalise)."""
    folder.mkdir(parents=True)
    resize, count = [], 0
    for contract in _CONTRACTS:
        for width, height in _SHAPES:
            (golden,) = golden_images([(f"{width}x{height}", _drawn(width, height))], contract)
            arrays = {
                stage: _write(folder / f"{count}.{stage}.bin", getattr(golden, stage))
                for stage in ("decoded", "resized", "tensor")
            }
            resize.append({"preprocess": contract.to_dict(), **arrays})
            count += 1
    stored = _drawn(7, 5)
    orient = []
    for value in range(1, 9):
        stored.getexif()[_EXIF_ORIENTATION] = value
        upright = ImageOps.exif_transpose(stored)
        orient.append(
            {
                "orientation": value,
                "stored": _write(folder / f"{count}.stored.bin", np.asarray(stored)),
                "upright": _write(folder / f"{count}.upright.bin", np.asarray(upright)),
            }
        )
        count += 1
    text = json.dumps({"resize": resize, "orient": orient}, indent=1)
    (folder / "cases.json").write_text(text, encoding="utf-8")


def _drawn(width: int, height: int) -> Image.Image:
    """Edges, ramps and noise side by side, of the shape asked for."""
    stripes = [np.asarray(image) for _, image in drawn_patterns(max(width, height))]
    picked = np.arange(width) % len(stripes)
    pixels = np.stack([stripes[n][:height, x] for x, n in enumerate(picked)], axis=1)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _write(path: Path, values: NDArray[Any]) -> dict[str, Any]:
    values.astype(values.dtype.newbyteorder("<")).tofile(path)
    return {"file": path.name, "shape": list(values.shape), "dtype": values.dtype.name}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--target", default="onnx", help="of the bundle; default: onnx")
    arguments = parser.parse_args()
    write_goldens(arguments.out, arguments.target)
