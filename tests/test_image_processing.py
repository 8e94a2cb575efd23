"""The image processor against the preprocessing functions, alone and inside `transformers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.errors import InputError
from tinyvit_edge.image_processing import TinyVitImageProcessor
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.preprocessing import Preprocessing, decode, preprocess, preset

CONTRACT = Preprocessing(
    size=32, crop_pct=0.9, interpolation="bilinear", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)


def pixels(height: int = 50, width: int = 70, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def expected(*arrays: np.ndarray, contract: Preprocessing = CONTRACT) -> np.ndarray:
    return np.stack([preprocess(Image.fromarray(array), contract) for array in arrays])


def test_every_kind_of_input_gives_the_same_tensor() -> None:
    """Oracle: `preprocess` of the same pixels, bit for bit."""
    processor = TinyVitImageProcessor.from_contract(CONTRACT)
    hwc = pixels()
    chw = np.ascontiguousarray(hwc.transpose(2, 0, 1))
    alpha = np.concatenate([hwc, pixels()[..., :1]], axis=-1)
    for image in (
        Image.fromarray(hwc),
        Image.fromarray(alpha),
        hwc,
        hwc[None],
        chw,
        alpha,
        torch.from_numpy(hwc),
        torch.from_numpy(chw),
        torch.from_numpy(chw)[None],
        [Image.fromarray(hwc)],
        [[torch.from_numpy(chw)]],
    ):
        values = processor(image, return_tensors="np")["pixel_values"]
        assert (values.dtype, values.shape) == (np.float32, (1, 3, 32, 32))
        np.testing.assert_array_equal(values, expected(hwc))


def test_grey_images_are_repeated() -> None:
    """Oracle: `preprocess` of the grey image in mode RGB."""
    processor = TinyVitImageProcessor.from_contract(CONTRACT)
    grey = pixels()[..., 0]
    wanted = expected(np.stack([grey] * 3, axis=-1))
    for image in (Image.fromarray(grey), grey, grey[..., None], torch.from_numpy(grey)[None]):
        np.testing.assert_array_equal(processor(image, return_tensors="np").pixel_values, wanted)


def test_batches_of_mixed_sizes_and_files(tmp_path: Path) -> None:
    """Oracle: `preprocess` of each, in order."""
    processor = TinyVitImageProcessor.from_contract(CONTRACT)
    one, two = pixels(40, 90, seed=1), pixels(64, 33, seed=2)
    path = tmp_path / "photo.png"
    Image.fromarray(one).save(path)
    values = processor([path, two, str(path)], return_tensors="pt")["pixel_values"]
    assert isinstance(values, torch.Tensor)
    np.testing.assert_array_equal(values.numpy(), expected(one, two, one))


def test_the_layout_can_be_said() -> None:
    """Oracle: `preprocess`; 3 x 40 x 3 may be read either way."""
    processor = TinyVitImageProcessor.from_contract(CONTRACT)
    ambiguous = pixels(3, 40)  # (3, 40, 3)
    first = np.ascontiguousarray(ambiguous.transpose(1, 2, 0))  # (40, 3, 3)

    def run(image: Any, **options: Any) -> np.ndarray:
        return processor(image, return_tensors="np", **options).pixel_values

    np.testing.assert_array_equal(run(ambiguous), expected(ambiguous))
    np.testing.assert_array_equal(run(torch.from_numpy(ambiguous)), expected(first))
    np.testing.assert_array_equal(
        run(ambiguous, input_data_format="channels_first"), expected(first)
    )
    np.testing.assert_array_equal(
        run(torch.from_numpy(ambiguous), input_data_format="channels_last"), expected(ambiguous)
    )


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (pixels().astype(np.float32), "dtype float32"),
        (torch.zeros(3, 8, 8), "dtype float32"),
        (pixels().astype(np.int64), "dtype int64"),
        (pixels()[..., :2], r"shape \(50, 70, 2\)"),
        (np.zeros((2, 2, 2, 2, 3), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (7, "from int"),
        ([], "empty"),
    ],
)
def test_inputs_that_would_need_a_guess_are_refused(image: Any, problem: str) -> None:
    """Oracle: the documented InputError."""
    with pytest.raises(InputError, match=problem):
        TinyVitImageProcessor.from_contract(CONTRACT)(image)


def test_the_saved_file_holds_the_contract(tmp_path: Path) -> None:
    """Oracle: the JSON text itself, and equality after loading it."""
    processor = TinyVitImageProcessor.from_contract(CONTRACT)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved == {**CONTRACT.to_dict(), "image_processor_type": "TinyVitImageProcessor"}

    for loaded in (
        TinyVitImageProcessor.from_pretrained(tmp_path),
        AutoImageProcessor.from_pretrained(tmp_path),
    ):
        assert type(loaded) is TinyVitImageProcessor
        assert loaded.contract == CONTRACT
        loaded.save_pretrained(tmp_path / "again")
        again = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
        assert again == saved


def test_unknown_fields_and_grey_models_are_refused(tmp_path: Path) -> None:
    """Oracle: the documented InputError; a foreign file would otherwise lose its meaning."""
    with pytest.raises(InputError, match="num_channels is 1"):
        TinyVitImageProcessor(size=32, num_channels=1)
    with pytest.raises(InputError, match="crop_pct"):
        TinyVitImageProcessor(size=32, crop_pct=2)
    foreign = {"size": 224, "do_resize": True, "image_processor_type": "TinyVitImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(foreign))
    with pytest.raises(InputError, match="do_resize"):
        TinyVitImageProcessor.from_pretrained(tmp_path)


def test_pipeline_from_a_saved_folder(tmp_path: Path) -> None:
    """Oracle: softmax of the model on `preprocess` of the file."""
    torch.manual_seed(0)
    labels = {i: f"thing {i}" for i in range(5)}
    config = TinyVitConfig(
        image_size=32,
        hidden_sizes=[32, 64],
        depths=[1, 1],
        num_heads=[1, 2],
        window_sizes=[4, 4],
        id2label=labels,
        label2id={label: i for i, label in labels.items()},
    )
    model = TinyVitForImageClassification(config).eval()
    contract = preset("timm", 32)
    model.save_pretrained(tmp_path)
    TinyVitImageProcessor.from_contract(contract).save_pretrained(tmp_path)
    photo = tmp_path / "photo.png"
    Image.fromarray(pixels()).save(photo)

    with torch.no_grad():
        logits = model(torch.from_numpy(preprocess(decode(photo), contract))[None]).logits[0]
    probabilities = logits.softmax(-1)  # (5,)
    classify = pipeline("image-classification", model=str(tmp_path), device="cpu")
    answer = classify(str(photo), top_k=5)
    assert [row["label"] for row in answer] == [labels[i] for i in logits.argsort().tolist()[::-1]]
    for row in answer:
        assert row["score"] == pytest.approx(float(probabilities[config.label2id[row["label"]]]))
