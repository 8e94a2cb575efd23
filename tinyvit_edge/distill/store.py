"""A teacher's sparse outputs on disk: fixed-size records, and a manifest of what wrote them.

::

    STORE/manifest.json            what the records are and what they were made from
    STORE/keys.txt                 the images, one relative path a line, in record order
    STORE/epoch-0000/shard-00.bin  records of an epoch, in up to 16 contiguous shards

A record is ``int32 seed``, then K class indices (``uint16``, or ``uint32`` above 65,536 classes),
then K ``float16`` probabilities in falling order, little-endian: 404 bytes at K = 100, as the
original's (microsoft/Cream, TinyViT). A shard that is being written is called ``.part`` and grows
by whole batches; whatever a kill leaves beyond the last whole batch is cut off on resumption.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyvit_edge.distill import augment
from tinyvit_edge.distill.augment import Policy
from tinyvit_edge.errors import StoreError
from tinyvit_edge.files import atomic_file, write_json

__all__ = ["Manifest", "Shard", "Store", "StoreWriter", "record_dtype"]

MANIFEST_NAME, KEYS_NAME = "manifest.json", "keys.txt"
SCHEMA_VERSION = 1
_SHARDS = 16


def record_dtype(top_k: int, classes: int) -> np.dtype[np.void]:
    """The layout of a record: fields ``seed`` (), ``index`` (K,) and ``probability`` (K,)."""
    index = "<u2" if classes <= 1 << 16 else "<u4"
    return np.dtype([("seed", "<i4"), ("index", index, (top_k,)), ("probability", "<f2", (top_k,))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a store's records are and what they were made from.

    Attributes:
        teacher: as it was asked for.
        teacher_sha256: over its weights as loaded.
        teacher_input: its preprocessing contract, in JSON form.
        amp: what the teacher computed in, "fp32", "bf16" or "fp16".
        labels: of the classes that the indices mean, in order.
        top_k: entries a record.
        samples: records an epoch.
        epochs: how many were asked for.
        batch: records that the teacher saw at a time, and a part file grows by.
        seed: all samples' seeds are drawn from it.
        image_size: side in pixels of the views that the teacher saw.
        policy: how they were drawn.
        augmentation_version: of the code that drew them.
        data_sha256: over the images' paths and contents.
    """

    teacher: str
    teacher_sha256: str
    teacher_input: Mapping[str, Any]
    amp: str
    labels: tuple[str, ...]
    top_k: int
    samples: int
    epochs: int
    batch: int
    seed: int
    image_size: int
    policy: Policy
    augmentation_version: int
    data_sha256: str

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The layout of a record."""
        return record_dtype(self.top_k, len(self.labels))

    def shards(self) -> list[Shard]:
        """The shards of every epoch, in order: multiples of `batch` long, but for the last."""
        batches = -(-self.samples // self.batch)
        length = -(-batches // _SHARDS) * self.batch
        starts = range(0, self.samples, length)
        return [
            Shard(epoch=epoch, number=number, start=start, stop=min(start + length, self.samples))
            for epoch in range(self.epochs)
            for number, start in enumerate(starts)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, with what a reader in another language needs spelled out."""
        dtype = self.dtype
        parts = [(name, dtype[name]) for name in dtype.names or ()]
        layout = {
            "bytes": dtype.itemsize,
            "fields": [[name, part.base.str, *part.shape] for name, part in parts],
        }
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "record": layout}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """Build from the JSON form."""
        known = {k: v for k, v in values.items() if k not in ("schema_version", "record")}
        known |= {"labels": tuple(known["labels"]), "policy": Policy.from_dict(known["policy"])}
        return cls(**known)

    def differences(self, other: Manifest) -> list[str]:
        """Names of the fields that differ, without `epochs`, which may grow."""
        mine, theirs = asdict(self), asdict(other)
        return [name for name in mine if name != "epochs" and mine[name] != theirs[name]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Records `start`..`stop` - 1 of one epoch."""

    epoch: int
    number: int
    start: int
    stop: int

    def path(self, root: Path) -> Path:
        """Where it lies in a store."""
        return root / f"epoch-{self.epoch:04d}" / f"shard-{self.number:02d}.bin"


class StoreWriter:
    """Fills a store shard by shard; several processes may fill different shards of one store.

    Args:
        root: the folder; made, or continued where it holds a store of the same manifest.
        manifest: what is being written; more epochs than before extend the store.
        keys: the images, one relative path a record.

    Raises:
        StoreError: the folder holds something else, or a store made in another way.
    """

    def __init__(self, root: Path, manifest: Manifest, keys: Sequence[str]) -> None:
        self.root, self.manifest = root, manifest
        if (root / MANIFEST_NAME).exists():
            self._continue(_read_manifest(root))
            return
        if root.exists() and any(root.iterdir()):
            raise StoreError(f"{root}: exists and is not a store; name another folder")
        root.mkdir(parents=True, exist_ok=True)
        with atomic_file(root / KEYS_NAME) as temporary:
            temporary.write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
        write_json(root / MANIFEST_NAME, manifest.to_dict())

    def _continue(self, before: Manifest) -> None:
        changed = self.manifest.differences(before)
        if changed:
            raise StoreError(
                f"{self.root}: holds a store that differs in {', '.join(changed)}; continue it as"
                " it was begun, or name another folder"
            )
        if self.manifest.epochs > before.epochs:
            write_json(self.root / MANIFEST_NAME, self.manifest.to_dict())

    def missing(self) -> list[Shard]:
        """The shards that are not whole yet."""
        return [shard for shard in self.manifest.shards() if not shard.path(self.root).exists()]

    @contextmanager
    def open(self, shard: Shard) -> Iterator[_ShardFile]:
        """Continue a shard where it ended; it gets its name once it is whole."""
        path = shard.path(self.root)
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        step = self.manifest.batch * self.manifest.dtype.itemsize
        with part.open("ab") as stream:
            whole = part.stat().st_size // step * step
            os.truncate(part, whole)
            start = shard.start + whole // self.manifest.dtype.itemsize
            yield _ShardFile(stream, start, self.manifest.dtype)
            stream.flush()
            os.fsync(stream.fileno())
        if part.stat().st_size != (shard.stop - shard.start) * self.manifest.dtype.itemsize:
            raise StoreError(f"{part}: has not the size of its records; remove it and go on")
        part.replace(path)


class _ShardFile:
    """An open shard: `start` is the first record it lacks."""

    def __init__(self, stream: Any, start: int, dtype: np.dtype[np.void]) -> None:
        self.start = start
        self._stream, self._dtype = stream, dtype

    def append(
        self,
        seeds: npt.NDArray[np.int32],
        indices: npt.NDArray[np.integer[Any]],
        probabilities: npt.NDArray[np.floating[Any]],
    ) -> None:
        """Write a batch: seeds (B,), class indices (B, K), probabilities (B, K)."""
        records = np.zeros(len(seeds), self._dtype)
        records["seed"], records["index"] = seeds, indices
        records["probability"] = probabilities
        self._stream.write(records.tobytes())
        self._stream.flush()


class Store:
    """A finished store, read through a memory map.

    Raises:
        StoreError: not a store, unfinished, truncated, or of an augmentation that this version
            does not draw.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.manifest = root, _read_manifest(root)
        manifest = self.manifest
        if manifest.augmentation_version != augment.VERSION:
            raise StoreError(
                f"{root}: written by version {manifest.augmentation_version} of the augmentation,"
                f" this is version {augment.VERSION}: other pixels would be replayed; teach again"
            )
        self.keys = _read_keys(root)
        if len(self.keys) != manifest.samples:
            raise StoreError(f"{root / KEYS_NAME}: {len(self.keys)} images, not {manifest.samples}")
        self._starts = [shard.start for shard in manifest.shards() if shard.epoch == 0]
        self._maps = {(s.epoch, s.number): _map(root, s, manifest) for s in manifest.shards()}

    def records(self, epoch: int, indices: Sequence[int]) -> npt.NDArray[np.void]:
        """Records of some images in an epoch (n,); epochs beyond the stored ones begin again."""
        epoch %= self.manifest.epochs
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        places = zip(numbers.tolist(), indices, strict=True)
        return np.stack([self._maps[epoch, n][i - self._starts[n]] for n, i in places])

    def seeds(self, epoch: int) -> npt.NDArray[np.int32]:
        """The augmentation seeds of all images in an epoch: int32 (samples,)."""
        epoch %= self.manifest.epochs
        shards = [self._maps[epoch, number]["seed"] for number in range(len(self._starts))]
        return np.concatenate(shards).astype(np.int32)

    @property
    def size(self) -> int:
        """Bytes of all records."""
        return self.manifest.epochs * self.manifest.samples * self.manifest.dtype.itemsize

    def check_data(self, keys: Sequence[str], data_sha256: str) -> None:
        """Refuse images that are not those the teacher saw.

        Raises:
            StoreError: an image is missing or new, or a content differs.
        """
        absent = sorted(set(self.keys) - set(keys))
        added = sorted(set(keys) - set(self.keys))
        for names, what in ((absent, "is missing"), (added, "is not in the store")):
            if names:
                raise StoreError(
                    f"{self.root}: {names[0]} {what} ({len(names)} such): give the"
                    " folder that it was made from, or teach again"
                )
        if data_sha256 != self.manifest.data_sha256:
            raise StoreError(
                f"{self.root}: the images have other contents than those the teacher saw; give the"
                " folder that it was made from, or teach again"
            )

    def check_teacher(self, sha256: str) -> None:
        """Refuse another teacher.

        Raises:
            StoreError: its weights are not those that wrote the store.
        """
        if sha256 != self.manifest.teacher_sha256:
            raise StoreError(
                f"{self.root}: written by another teacher than this one (their weights"
                f" differ): {self.manifest.teacher}"
            )


def _map(root: Path, shard: Shard, manifest: Manifest) -> npt.NDArray[np.void]:
    path, count = shard.path(root), shard.stop - shard.start
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise StoreError(
            f"{root}: unfinished, {path.relative_to(root)} is missing; run teach again to go on"
        ) from None
    if size != count * manifest.dtype.itemsize:
        raise StoreError(
            f"{path}: {size} bytes, not {count * manifest.dtype.itemsize}: truncated or damaged;"
            " remove it and run teach again"
        )
    return np.memmap(path, manifest.dtype, "r", shape=(count,))


def _read_manifest(root: Path) -> Manifest:
    path = root / MANIFEST_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["schema_version"] != SCHEMA_VERSION:
            raise StoreError(f"{path}: schema {values['schema_version']}, not {SCHEMA_VERSION}")
        return Manifest.from_dict(values)
    except FileNotFoundError:
        raise StoreError(
            f"{root}: not a store, it has no {MANIFEST_NAME}; make one with teach"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: not a readable manifest ({error}); teach again") from error


def _read_keys(root: Path) -> tuple[str, ...]:
    try:
        return tuple((root / KEYS_NAME).read_text(encoding="utf-8").splitlines())
    except OSError as error:
        raise StoreError(f"{root / KEYS_NAME}: cannot be read ({error.strerror})") from error
