"""Entries that are found by their key alone, and only where they are whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import tinyvit_edge
from tinyvit_edge import cache
from tinyvit_edge.cache import Store, digest, environment, model_digest, tensors_digest
from tinyvit_edge.precision import PRECISIONS


@pytest.fixture
def store(tmp_path) -> Store:
    """With one entry, `name`, for the key `key`."""
    made = Store(tmp_path / "store")
    made.keep("name", "key", {"a": [1, 2.5]}, logits=np.eye(3, dtype=np.float32))
    return made


def test_what_was_kept_is_found_by_its_key(store):
    """Oracle: the values that were kept."""
    found = store.find("name", "key")
    assert found.value == {"a": [1, 2.5]}
    assert list(found.arrays) == ["logits"]
    np.testing.assert_array_equal(found.arrays["logits"], np.eye(3, dtype=np.float32))
    assert found.arrays["logits"].dtype == np.float32
    assert store.find("name", "other") is None
    assert store.find("other", "key") is None


def test_a_name_has_one_entry(store, tmp_path):
    """Oracle: the folder's content after a second entry of the name."""
    store.keep("name", "newer", None)
    assert store.find("name", "key") is None
    assert store.find("name", "newer").value is None
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["name"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
    ],
)
def test_a_damaged_entry_is_not_found_and_said(store, tmp_path, damage):
    """Oracle: cut, empty, and flipped in the digest and in the content."""
    path, said = tmp_path / "store" / "name", []
    path.write_bytes(damage(path.read_bytes()))
    assert Store(path.parent, say=said.append).find("name", "key") is None
    assert len(said) == 1
    assert "name: damaged" in said[0]


def test_a_fresh_store_finds_nothing_and_keeps(store, tmp_path):
    """Oracle: what another store finds afterwards."""
    fresh = Store(tmp_path / "store", fresh=True)
    assert fresh.find("name", "key") is None
    fresh.keep("name", "key", "anew")
    assert store.find("name", "key").value == "anew"


def test_digests_tell_values_apart():
    """Oracle: pairs that differ in one thing, and pairs that are equal."""
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest("ab", "c") != digest("a", "bc")
    assert digest(PRECISIONS["w8"]) != digest(PRECISIONS["w8a8"])
    with pytest.raises(TypeError, match="Path has no digest"):
        digest(Path("a").absolute().__class__("a"))
    a = torch.arange(4, dtype=torch.float32)
    assert tensors_digest({"a": a}) == tensors_digest({"a": a.clone()})
    others = [{"b": a}, {"a": a.reshape(2, 2)}, {"a": a.int()}, {"a": a + 1}]
    assert len({tensors_digest(one) for one in [{"a": a}, *others]}) == 5


def test_a_model_is_more_than_its_file(digits):
    """Oracle: one label, and one number of the contract, replaced."""
    from dataclasses import replace

    labels = replace(digits, labels=("other", *digits.labels[1:]))
    contract = replace(digits, preprocessing=replace(digits.preprocessing, crop_pct=0.5))
    assert len({model_digest(one) for one in (digits, labels, contract)}) == 3


@pytest.mark.parametrize("module", ["gates.py", "exporters/onnx.py", "quantization/qdq.py"])
def test_a_changed_line_of_source_is_another_environment(tmp_path, monkeypatch, module):
    """Oracle: a copy of the package, and one more line in one module of it."""
    package = tmp_path / "tinyvit_edge"
    source = Path(tinyvit_edge.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    here = environment()
    monkeypatch.setattr(cache, "__file__", str(package / "cache.py"))
    assert environment() == here
    with (package / module).open("a") as file:
        file.write("# changed\n")
    assert environment() != here
