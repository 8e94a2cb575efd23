"""The bundled weights, and the data that they were trained on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tinyvit_edge
from tinyvit_edge.checkpoint import Checkpoint
from tinyvit_edge.digits import LABELS, PREPROCESSING, evaluate, load_digits, write_images
from tinyvit_edge.errors import MissingDependencyError
from tinyvit_edge.files import sha256_of, size_of
from tinyvit_edge.preprocessing import decode, preprocess


def test_bundled_weights_read_98_percent_of_the_held_out_digits(
    digits: Checkpoint, digits_images: Path
) -> None:
    """Oracle: the labels of the PNG files, through the checkpoint's own preprocessing."""
    files = sorted((digits_images / "heldout").rglob("*.png"))
    assert len(files) == 1797 // 3
    tensors = np.stack([preprocess(decode(file), digits.preprocessing) for file in files])
    with torch.inference_mode():
        best = digits.model(torch.from_numpy(tensors)).logits.argmax(1).tolist()
    right = [digits.labels[i] == file.parent.name for i, file in zip(best, files, strict=True)]
    accuracy = sum(right) / len(right)
    assert accuracy >= 0.98
    assert evaluate(digits.model) == pytest.approx(accuracy)


def test_bundled_weights_are_small(digits: Checkpoint) -> None:
    """Oracle: 3 MB on disk and 1.5 million parameters."""
    folder = Path(tinyvit_edge.__file__).parent / "weights" / "digits"
    assert size_of(folder) < 3_000_000
    assert sum(p.numel() for p in digits.model.parameters()) < 1_500_000


def test_bundled_checkpoint_says_what_it_is(digits: Checkpoint) -> None:
    """Oracle: what `train` writes."""
    assert digits.labels == LABELS == tuple("0123456789")
    assert digits.preprocessing == PREPROCESSING
    assert digits.variant == "custom"
    assert digits.source == "digits"
    assert digits.model.config.image_size == PREPROCESSING.size
    assert not digits.model.training


def test_bundled_model_goes_through_every_kind_of_window(digits: Checkpoint) -> None:
    """Oracle: windows that tile 8 x 8, that pad 4 x 4, and that are the 2 x 2 map."""
    config = digits.model.config
    sides = [config.image_size // 4 // 2**stage for stage in range(1, config.num_stages)]
    remainders = [side % w for side, w in zip(sides, config.window_sizes[1:], strict=True)]
    assert sides == [8, 4, 2]
    assert remainders == [0, 1, 0]
    assert config.window_sizes[-1] == sides[-1]


def test_written_images_are_the_data_set(digits_images: Path) -> None:
    """Oracle: scikit-learn's arrays, 16 grey levels stretched to 255."""
    from sklearn.datasets import load_digits as load

    bunch = load()
    seen = 0
    for part, chosen in (("train", (0, 1)), ("heldout", (2,))):
        wanted = [i for i in range(len(bunch.target)) if i % 3 in chosen]
        files = sorted((digits_images / part).rglob("*.png"), key=lambda file: file.stem)
        assert [int(file.parent.name) for file in files] == [int(bunch.target[i]) for i in wanted]
        for file, index in list(zip(files, wanted, strict=True))[::50]:
            pixels = np.asarray(Image.open(file))
            np.testing.assert_array_equal(pixels, np.rint(bunch.images[index] * 255 / 16))
        seen += len(files)
    assert seen == 1797
    assert sorted(path.name for path in digits_images.iterdir()) == ["heldout", "train"]


def test_writing_images_is_deterministic(digits_images: Path, tmp_path: Path) -> None:
    """Oracle: the digest of a first folder; a second run replaces the folder as a whole."""
    folder = tmp_path / "images"
    write_images(folder)
    (folder / "stray").write_text("x")
    write_images(folder)
    assert sha256_of(folder) == sha256_of(digits_images)


def test_parts_do_not_overlap() -> None:
    """Oracle: every third image is held out."""
    pytest.importorskip("sklearn")
    (train, train_labels), (held, held_labels) = load_digits("train"), load_digits("heldout")
    assert (len(train), len(held)) == (1198, 599)
    assert (len(train_labels), len(held_labels)) == (1198, 599)
    assert set(held_labels) == set(range(10))
    assert all(image.size == (8, 8) and image.mode == "L" for image in (*train, *held))


def test_scikit_learn_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: an import that fails as one of a missing package does."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tinyvit-edge\[demo\]'"):
        load_digits("heldout")
