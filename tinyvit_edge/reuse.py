"""What of an earlier `deploy` to the same folder still holds, so that it is not made again.

Every result has a key, a digest of all that it comes from:

===============  ================================================================================
calibration      environment, model, photos and how ranges and layers are chosen on them
bundle           environment, model, target, options, precision, its part of the calibration,
                 the photos of the golden vectors
evaluation       the bundle's key and bytes, the photos, how many of them conversion loss is of
float32 logits   environment, model, photos
===============  ================================================================================

The environment is what `tinyvit_edge.cache.environment` says. Latency has no key: a clock's
reading is of the minute that it was taken in. A manifest's ``command`` is that of the run that made
the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tinyvit_edge.build import Cell, ranges_of
from tinyvit_edge.bundle import Bundle, read_bundle
from tinyvit_edge.cache import Store, digest, environment, model_digest, tensors_digest
from tinyvit_edge.data import fingerprint, scan_folder
from tinyvit_edge.errors import InputError
from tinyvit_edge.files import sha256_of
from tinyvit_edge.quantization.calibration import Calibration
from tinyvit_edge.report import Row
from tinyvit_edge.verify import Verified

if TYPE_CHECKING:
    from tinyvit_edge.checkpoint import Checkpoint
    from tinyvit_edge.console import QuietDisplay
    from tinyvit_edge.data import ImageDataset
    from tinyvit_edge.precision import Precision
    from tinyvit_edge.quantization.choose import ChooseRequest
    from tinyvit_edge.types import FloatArray

__all__ = ["FOLDER", "Earlier", "Results", "calib_digest"]

FOLDER = ".cache"
"""In the folder that `deploy` writes to."""
_TIMES = "times"


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """An unchanged bundle of an earlier run."""

    bundle: Bundle
    seconds: float | None
    """What its conversion took then."""


class Results:
    """Results of runs to one folder; what does not fit this run's inputs is not found."""

    def __init__(
        self,
        out: Path,
        *,
        checkpoint: Checkpoint,
        dataset: ImageDataset,
        parity_images: int,
        goldens: ImageDataset,
        calib: str | None,
        fresh: bool,
        display: QuietDisplay,
    ) -> None:
        """Take the digests of all inputs.

        Args:
            out: the folder.
            checkpoint: the model.
            dataset: photos to evaluate on.
            parity_images: see `Yardstick`.
            goldens: the photos of the golden vectors.
            calib: `calib_digest` of the photos to quantize by, if any.
            fresh: find nothing.
            display: is told of what is damaged.
        """
        self._out, self._display = out, display
        self._store = Store(out / FOLDER, fresh=fresh, say=display.say)
        self._model = digest(environment(), model_digest(checkpoint))
        self._photos, self._parity_images = fingerprint(dataset), parity_images
        self._goldens, self._calib = fingerprint(goldens), calib

    def calibration(self) -> Calibration | None:
        """Ranges that were chosen on the same photos."""
        found = self._store.find("calibration", digest(self._model, self._calib))
        return None if found is None else Calibration.from_dict(found.value)

    def keep_calibration(self, calibration: Calibration) -> None:
        """Keep ranges that were chosen on photos."""
        key = digest(self._model, self._calib)
        self._store.keep("calibration", key, calibration.to_dict())

    def reference(self) -> FloatArray | None:
        """Logits (n, classes) of the float32 model."""
        found = self._store.find("reference", digest(self._model, self._photos))
        return None if found is None else found.arrays["logits"]

    def keep_reference(self, logits: FloatArray) -> None:
        """Keep logits (n, classes) of the float32 model."""
        self._store.keep("reference", digest(self._model, self._photos), None, logits=logits)

    def bundle(self, cell: Cell, calibration: Calibration | None) -> Earlier | None:
        """The cell's bundle, where making it again would give the same; says what it lacks."""
        found = self._store.find(f"{cell.name}.bundle", self._bundle_key(cell, calibration))
        root = self._out / cell.name
        if found is None or not root.is_dir():
            return None
        try:
            if sha256_of(root) == found.value["sha256"]:
                return Earlier(bundle=read_bundle(root), seconds=found.value["seconds"])
            problem = "has changed since it was written"
        except (InputError, OSError) as error:
            problem = f"cannot be read ({error})"
        self._display.say(f"{root}: {problem}; it is made again")
        return None

    def keep_bundle(
        self, cell: Cell, calibration: Calibration | None, seconds: float | None
    ) -> None:
        """Note what the bundle that stands in the folder was made from."""
        key = self._bundle_key(cell, calibration)
        value = {"sha256": sha256_of(self._out / cell.name), "seconds": seconds}
        self._store.keep(f"{cell.name}.bundle", key, value)

    def verified(self, name: str, earlier: Earlier) -> Verified | None:
        """How the unchanged bundle of a cell of that name did on the same photos."""
        found = self._store.find(f"{name}.evaluation", self._evaluation_key(earlier.bundle))
        if found is None:
            return None
        return Verified(row=Row.from_dict(found.value), classes=found.arrays["classes"])

    def keep_verified(self, verified: Verified) -> None:
        """Keep how the bundle that stands in the folder did."""
        row = verified.row
        bundle = read_bundle(self._out / f"{row.target}-{row.precision}")
        self._store.keep(
            f"{bundle.root.name}.evaluation",
            self._evaluation_key(bundle),
            row.to_dict(),
            classes=verified.classes,
        )

    def seconds(self) -> Mapping[str, float]:
        """What the steps of an earlier run took, whatever it was of."""
        found = self._store.find(_TIMES, "")
        return {} if found is None else found.value

    def keep_seconds(self, seconds: Mapping[str, float]) -> None:
        """Keep what steps took, for the next run's time left."""
        self._store.keep(_TIMES, "", {**self.seconds(), **seconds})

    def _bundle_key(self, cell: Cell, calibration: Calibration | None) -> str:
        ranges = ranges_of(cell, calibration)
        return digest(
            self._model,
            cell.target,
            cell.options,
            cell.precision,
            ranges and digest(ranges.to_dict(), tensors_digest(ranges.tuned)),
            self._calib if cell.precision.coded else None,
            self._goldens,
        )

    def _evaluation_key(self, bundle: Bundle) -> str:
        return digest(self._model, sha256_of(bundle.root), self._photos, self._parity_images)


def calib_digest(request: ChooseRequest | None, precisions: Sequence[Precision]) -> str | None:
    """Digest of the photos to quantize by, and of what decides how they are used.

    None where there are none, or no precision needs any.

    Raises:
        DataError: the folder is not one of photos, or one of them cannot be read.
    """
    if request is None or not any(precision.needs_photos for precision in precisions):
        return None
    photos = scan_folder(request.photos)
    mixed = [precision.name for precision in precisions if precision.mixed]
    searched = (fingerprint(photos), request.max_drop, sorted(request.targets)) if mixed else ()
    return digest(fingerprint(photos.subset(request.images)), request.options, mixed, searched)
