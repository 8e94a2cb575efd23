"""Bundles: one folder that holds an artifact and everything an app needs to run and check it.

::

    manifest.json       what it is, made from what, by what; names, shapes, quantization parameters
    model.*             the artifact
    preprocess.json     the preprocessing contract
    labels.txt          one label a line, in class order
    golden/golden.json  index of the golden vectors
    golden/N.*.bin      raw little-endian arrays, C order:
                        decoded  uint8   (H, W, 3)  upright RGB photo
                        resized  uint8   (S, S, 3)  after resize and crop
                        tensor   float32 (3, S, S)  normalised: the input of an artifact that
                                 takes a tensor; one that takes an image gets `resized`
                        reference_logits float32 (classes,)  float32 PyTorch model
                        artifact_logits  float32 (classes,)  the artifact, in its runtime here
    rounded.safetensors rounded weights, where the precision has fewer than 8 bits
    tuned.safetensors   weights that quantize qat trained, where the ranges came from it
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyvit_edge.audit import audited, left_out
from tinyvit_edge.errors import InputError
from tinyvit_edge.files import sha256_of, size_of, write_json
from tinyvit_edge.preprocessing import Preprocessing, normalise, resize
from tinyvit_edge.program import INPUT_NAME, OUTPUT_NAME

if TYPE_CHECKING:
    from tinyvit_edge.exporters import Audit, Exported, Exporter
    from tinyvit_edge.program import Program
    from tinyvit_edge.quantization.calibration import Calibration
    from tinyvit_edge.quantization.coded import Coded
    from tinyvit_edge.quantization.moments import Moments
    from tinyvit_edge.types import FloatArray

__all__ = [
    "NOT_SHIPPED",
    "Bundle",
    "GoldenImage",
    "golden_images",
    "read_bundle",
    "write_bundle",
]

_SCHEMA_VERSION = 1
_GOLDEN_SIDE = 512
_CODED, _TUNED = "rounded.safetensors", "tuned.safetensors"
NOT_SHIPPED = (_CODED, _TUNED)
"""What is there to make the bundle again, and of no use to an app."""
_DTYPES = {"uint8": np.uint8, "float32": np.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenImage:
    """One photo on its way to the model, with the logits it gives."""

    name: str
    decoded: NDArray[np.uint8]
    """(H, W, 3), upright RGB."""
    resized: NDArray[np.uint8]
    """(S, S, 3)."""
    tensor: FloatArray
    """(3, S, S), normalised."""
    reference_logits: FloatArray | None = None
    """(classes,), of the float32 PyTorch model."""
    artifact_logits: FloatArray | None = None
    """(classes,), of the artifact; None where its runtime does not exist on the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that was read back."""

    root: Path
    manifest: Mapping[str, Any]
    preprocessing: Preprocessing
    labels: tuple[str, ...]

    @property
    def target(self) -> str:
        """Target name."""
        return str(self.manifest["target"])

    @property
    def precision(self) -> str:
        """Precision name."""
        return str(self.manifest["recipe"]["name"])

    @property
    def artifact(self) -> Path:
        """Path of the artifact."""
        return self.root / str(self.manifest["artifact"]["file"])

    def ranges(self) -> Calibration | None:
        """What activations were quantized by, where the precision is calibrated.

        Raises:
            InputError: the trained weights that go with it are missing or damaged.
        """
        from tinyvit_edge.quantization.calibration import Calibration
        from tinyvit_edge.quantization.tuned import read_tuned

        values = self.manifest["quantization"]
        if values is None:
            return None
        tuned = read_tuned(self.root, values["tuned"]) if "tuned" in values else {}
        return replace(Calibration.from_dict(values), tuned=tuned)

    def coded(self) -> dict[str, Coded]:
        """Rounded weights, by layer, where the precision has weights of few bits.

        Raises:
            InputError: their file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from tinyvit_edge.quantization.coded import coded_weights

        path = self.root / _CODED
        try:
            return coded_weights(load_file(path))
        except (OSError, TypeError, SafetensorError) as error:
            raise InputError(f"{path}: not readable ({error}); export again") from error

    def goldens(self) -> tuple[GoldenImage, ...]:
        """The golden vectors.

        Raises:
            InputError: the index or an array is missing or damaged.
        """
        folder = self.root / "golden"
        try:
            index = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
            return tuple(_read_golden(folder, entry) for entry in index["images"])
        except (OSError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder}: golden vectors are damaged ({error}); export again"
            ) from error


def golden_images(
    photos: Sequence[tuple[str, Image.Image]], preprocessing: Preprocessing
) -> tuple[GoldenImage, ...]:
    """Take photos through the preprocessing contract.

    A photo whose shorter side has 1024 pixels or more is first reduced by a whole factor, to 512
    or more, so that a bundle stays small; the golden vectors start from the reduced image.

    Args:
        photos: name and upright RGB image of each.
        preprocessing: the contract.
    """
    goldens = []
    for name, photo in photos:
        factor = max(1, min(photo.size) // _GOLDEN_SIDE)
        decoded = photo.reduce(factor) if factor > 1 else photo
        resized = resize(decoded, preprocessing)
        goldens.append(
            GoldenImage(
                name=name,
                decoded=np.asarray(decoded, np.uint8),
                resized=resized,
                tensor=normalise(resized, preprocessing),
            )
        )
    return tuple(goldens)


def write_bundle(
    root: Path,
    *,
    target: Exporter,
    program: Program,
    exported: Exported,
    audit: Audit | None,
    options: Mapping[str, Any],
    calibration: Calibration | None,
    moments: Moments | None,
    goldens: Sequence[GoldenImage],
    source: Mapping[str, Any],
    command: Sequence[str],
    packages: Mapping[str, str],
) -> None:
    """Write everything beside the artifact, which already stands in `root`."""
    artifact = root / target.artifact
    size, classes = program.preprocessing.size, len(program.labels)
    manifest = {
        "schema_version": _SCHEMA_VERSION,
        "target": target.name,
        "options": dict(options),
        "recipe": asdict(program.precision),
        "tool": {"name": "tinyvit-edge", "version": _version()},
        "packages": dict(packages),
        "command": list(command),
        "source": dict(source),
        "artifact": {
            "file": target.artifact,
            "sha256": sha256_of(artifact),
            "size_bytes": size_of(artifact),
            "reproducible": exported.reproducible,
            "details": dict(exported.details),
            "audit": None
            if audit is None
            else audited(
                audit, program.precision, left_out(program.precision, calibration)
            ).to_dict(),
        },
        "preprocessing": program.preprocessing.to_dict(),
        "input": _input(exported.input, size),
        "output": {"name": OUTPUT_NAME, "shape": [1, classes], "dtype": "float32"},
        "outputs": list(exported.outputs),
        "quantization": None if calibration is None else _write_ranges(root, calibration),
        "rounding": _write_coded(root, program, moments) if program.precision.coded else None,
    }
    write_json(root / "manifest.json", manifest)
    write_json(root / "preprocess.json", program.preprocessing.to_dict())
    (root / "labels.txt").write_text("\n".join(program.labels) + "\n", encoding="utf-8")
    _write_goldens(root / "golden", goldens)


def read_bundle(root: Path) -> Bundle:
    """Read a bundle's manifest, preprocessing and labels.

    Raises:
        InputError: not a bundle, of another schema version, or without its artifact.
    """
    path = root / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
        if version != _SCHEMA_VERSION:
            raise InputError(f"{path}: schema version {version} is not {_SCHEMA_VERSION}")
        contract = json.loads((root / "preprocess.json").read_text(encoding="utf-8"))
        bundle = Bundle(
            root=root,
            manifest=manifest,
            preprocessing=Preprocessing.from_dict(contract),
            labels=tuple((root / "labels.txt").read_text(encoding="utf-8").split("\n")[:-1]),
        )
        classes = manifest["output"]["shape"][1]
        present = bundle.artifact.exists()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{root}: not a readable bundle ({error}); give a folder that deploy or export wrote"
        ) from error
    if not present:
        raise InputError(f"{bundle.artifact}: the bundle's artifact is missing; export again")
    if len(bundle.labels) != classes:
        raise InputError(
            f"{root / 'labels.txt'}: {len(bundle.labels)} labels for {classes} classes; "
            "export again"
        )
    return bundle


def _write_ranges(root: Path, calibration: Calibration) -> dict[str, Any]:
    from tinyvit_edge.quantization.tuned import write_tuned

    values = calibration.to_dict()
    if calibration.tuned:
        values["tuned"] = write_tuned(root / _TUNED, calibration.tuned)
    return values


def _write_coded(root: Path, program: Program, moments: Moments | None) -> dict[str, Any]:
    """Write the rounded weights, which nothing but the same photos would give again."""
    from safetensors.torch import save_file

    from tinyvit_edge.quantization.calibration import quantizable
    from tinyvit_edge.quantization.coded import coded_tensors

    assert moments is not None, "a program of few bits was rounded by moments"
    save_file(coded_tensors(program.module), root / _CODED)
    return {
        "file": _CODED,
        "images": moments.images,
        "photos_sha256": moments.photos_sha256,
        "left_half": list(quantizable(program.module)),  # what was coded is no Linear any more
    }


def _input(kind: Literal["tensor", "image"], size: int) -> dict[str, Any]:
    """The manifest's description of what the artifact takes."""
    shape, dtype = {
        "tensor": ([1, 3, size, size], "float32"),
        "image": ([size, size, 3], "uint8"),
    }[kind]
    return {"name": INPUT_NAME, "kind": kind, "shape": shape, "dtype": dtype}


def _write_goldens(folder: Path, goldens: Sequence[GoldenImage]) -> None:
    folder.mkdir()
    entries = []
    for number, golden in enumerate(goldens):
        arrays = {}
        for key in ("decoded", "resized", "tensor", "reference_logits", "artifact_logits"):
            value = getattr(golden, key)
            if value is None:
                continue
            file = f"{number}.{key}.bin"
            # "<f4" and "u1": little-endian whatever the host
            value.astype(value.dtype.newbyteorder("<")).tofile(folder / file)
            arrays[key] = {"file": file, "shape": list(value.shape), "dtype": value.dtype.name}
        entries.append({"name": golden.name, **arrays})
    write_json(folder / "golden.json", {"schema_version": _SCHEMA_VERSION, "images": entries})


def _read_golden(folder: Path, entry: Mapping[str, Any]) -> GoldenImage:
    arrays = {}
    for key, about in entry.items():
        if key != "name":
            dtype = np.dtype(_DTYPES[about["dtype"]]).newbyteorder("<")
            arrays[key] = np.fromfile(folder / about["file"], dtype).reshape(about["shape"])
    return GoldenImage(name=str(entry["name"]), **arrays)


def _version() -> str:
    from tinyvit_edge._version import __version__

    return __version__
