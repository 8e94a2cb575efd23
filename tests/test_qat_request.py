"""What quantization-aware training refuses of stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tinyvit_edge.distill.augment import POLICIES, VERSION
from tinyvit_edge.distill.store import Manifest, Store, StoreWriter
from tinyvit_edge.errors import InputError
from tinyvit_edge.quantization.qat_request import _columns


def test_a_store_has_to_know_each_class_once(tmp_path: Path) -> None:
    """Oracle: by hand; ImageNet has two classes of one name, and places tell them apart."""
    manifest = Manifest(
        teacher="t",
        teacher_sha256="0",
        teacher_input={},
        amp="fp32",
        labels=("crane", "cat", "crane"),
        top_k=1,
        samples=1,
        epochs=1,
        batch=1,
        seed=0,
        image_size=64,
        policy=POLICIES["light"],
        augmentation_version=VERSION,
        data_sha256="d",
    )
    writer = StoreWriter(tmp_path / "store", manifest, ["a.png"])
    (shard,) = writer.missing()
    with writer.open(shard) as file:
        file.append(np.zeros(1, np.int32), np.zeros((1, 1), np.int32), np.ones((1, 1)))
    store = Store(tmp_path / "store")
    assert _columns(store, ("crane", "cat", "crane")) is None
    assert _columns(store, ("cat",)) == [1]
    for label, problem in (("crane", "more than one class 'crane'"), ("dog", "no class 'dog'")):
        with pytest.raises(InputError, match=problem):
            _columns(store, (label, "cat"))
