"""Loading, saving and converting checkpoints of every format."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import stat

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification

from tinyvit_edge import checkpoint_source
from tinyvit_edge.checkpoint import (
    bundled_names,
    export_state_dict,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.errors import CheckpointError, InputError
from tinyvit_edge.keymaps import FORMATS
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.preprocessing import preset

CUSTOM = {
    "image_size": 224,
    "num_channels": 1,
    "hidden_sizes": [16, 24, 36],
    "depths": [2, 1, 3],
    "num_heads": [2, 3, 2],
    "window_sizes": [3, 3, 5],
    "mlp_ratio": 1.7,
    "mbconv_expand_ratio": 2.2,
    "local_conv_size": 5,
    "num_labels": 7,
}


@pytest.fixture
def custom(randomise):
    """A randomised model that is none of the family."""
    return randomise(TinyVitForImageClassification(TinyVitConfig(**CUSTOM)), seed=5)


@pytest.fixture(scope="module")
def tiny(randomise):
    """A randomised model with the family's depths, heads and windows at 224 px, but thin."""
    config = TinyVitConfig(
        hidden_sizes=[8, 16, 16, 16],
        num_heads=[1, 2, 2, 2],
        depths=[1, 1, 1, 1],
        window_sizes=[7, 7, 14, 7],
        num_labels=3,
    )
    return randomise(TinyVitForImageClassification(config), seed=6)


def write(model, path, form):
    """The model's weights in the file that the format's authors would write."""
    state = export_state_dict(model, form)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state} if form == "microsoft" else state, path)
    return path


def same_weights(a, b):
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor, rtol=0, atol=0)


def line_of(error):
    """The message, which must be one line."""
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_round_trip(form, suffix, custom, tmp_path):
    """Oracle: the model that was written; a custom one, so that shapes alone must tell it."""
    path = write(custom, tmp_path / f"weights{suffix}", form)
    loaded = load_checkpoint(path)
    same_weights(custom, loaded.model)
    for name in CUSTOM.keys() - {"num_heads", "window_sizes", "mlp_ratio", "mbconv_expand_ratio"}:
        assert getattr(loaded.model.config, name) == getattr(custom.config, name), name
    assert loaded.model.config.num_heads[1:] == [3, 2]
    assert loaded.model.config.window_sizes[1:] == [3, 5]
    assert not loaded.model.training
    assert (loaded.format, loaded.variant) == (form, "custom")
    assert loaded.labels == tuple(f"class {i}" for i in range(7))
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.source == str(path)
    expected = "timm" if form == "timm" else "microsoft"
    assert loaded.preprocessing == preset(expected, 224)


def test_loading_leaves_random_numbers_alone(custom, tmp_path):
    """Oracle: the state of torch's generator."""
    path = write(custom, tmp_path / "weights.pth", "timm")
    before = torch.get_rng_state()
    load_checkpoint(path)
    assert torch.equal(before, torch.get_rng_state())


def test_half_precision_is_upcast(custom, tmp_path):
    """Oracle: the rounding to float16."""
    state = export_state_dict(custom, "timm")
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(half, tmp_path / "weights.safetensors")
    weight = load_checkpoint(tmp_path / "weights.safetensors").model.classifier.weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, custom.classifier.weight.half().float())


def test_other_image_sizes(tiny, tmp_path):
    """Oracle: the family's windows at 384 px and 512 px; any other size keeps the windows."""
    path = write(tiny, tmp_path / "weights.pth", "timm")
    for size, windows in ((384, [12, 12, 24, 12]), (512, [16, 16, 32, 16])):
        moved = load_checkpoint(path, image_size=size)
        assert moved.model.config.window_sizes == windows
        assert moved.model.config.image_size == size
        assert moved.preprocessing == preset("timm", size)
    kept = load_checkpoint(path, image_size=256)
    assert kept.preprocessing.size == 256
    assert kept.model.config.window_sizes == [7, 7, 14, 7]
    same_weights(tiny, kept.model)
    assert load_checkpoint(path).model.config.image_size == 224


def test_larger_checkpoint_is_recognised(tiny, tmp_path):
    """Oracle: the family's windows: bare 384 px weights are used at 384 px."""
    moved = load_checkpoint(write(tiny, tmp_path / "a.pth", "timm"), image_size=384)
    again = load_checkpoint(write(moved.model, tmp_path / "b.pth", "microsoft"))
    assert again.model.config.image_size == 384
    assert again.preprocessing == preset("microsoft", 384)
    same_weights(moved.model, again.model)


def test_preprocessing_can_be_chosen(tiny, tmp_path):
    """Oracle: the preset that was asked for."""
    path = write(tiny, tmp_path / "weights.pth", "timm")
    assert load_checkpoint(path, preprocessing="microsoft").preprocessing == preset(
        "microsoft", 224
    )


@pytest.fixture
def saved(tiny, tmp_path):
    """A checkpoint that was saved with labels and preprocessing of its own, and its folder."""
    checkpoint = load_checkpoint(write(tiny, tmp_path / "weights.pth", "timm"))
    checkpoint.model.config.id2label = {0: "ant", 1: "bee", 2: "cat"}
    contract = dataclasses.replace(checkpoint.preprocessing, mean=(0.1, 0.2, 0.3), crop_pct=0.8)
    checkpoint = dataclasses.replace(checkpoint, preprocessing=contract)
    save_checkpoint(checkpoint, tmp_path / "saved")
    return checkpoint, tmp_path / "saved"


def test_save_and_load_folder(saved, tiny):
    """Oracle: what was saved; also through transformers."""
    checkpoint, folder = saved
    loaded = load_checkpoint(folder)
    same_weights(tiny, loaded.model)
    assert loaded.labels == ("ant", "bee", "cat")
    assert loaded.preprocessing == checkpoint.preprocessing
    assert loaded.format == "huggingface"
    same_weights(tiny, AutoModelForImageClassification.from_pretrained(folder))
    larger = load_checkpoint(folder, image_size=384)
    assert larger.preprocessing == dataclasses.replace(checkpoint.preprocessing, size=384)
    assert larger.model.config.window_sizes == [12, 12, 24, 12]


@pytest.mark.parametrize("name", ["microsoft", "timm"])
def test_presets_survive_a_change_of_size(name, tiny, tmp_path):
    """Oracle: the preset of that name; of 384 px, crop and mode are others than of 224 px."""
    plain = load_checkpoint(write(tiny, tmp_path / "weights.pth", "timm"), preprocessing=name)
    save_checkpoint(plain, tmp_path / "imported")
    assert load_checkpoint(tmp_path / "imported").preprocessing == preset(name, 224)
    moved = load_checkpoint(tmp_path / "imported", image_size=384)
    assert moved.preprocessing == preset(name, 384)
    same = load_checkpoint(tmp_path / "imported", image_size=224)
    assert same.preprocessing == preset(name, 224)


def test_saved_weights_are_readable_as_other_files_are(tiny, tmp_path):
    """Oracle: the mode of a file that `open` makes under the same umask."""
    checkpoint = load_checkpoint(write(tiny, tmp_path / "weights.pth", "timm"))
    before = os.umask(0o027)
    try:
        (tmp_path / "plain").touch()
        save_checkpoint(checkpoint, tmp_path / "saved")
        save_weights(checkpoint, tmp_path / "timm.safetensors", "timm")
        save_weights(checkpoint, tmp_path / "microsoft.pth", "microsoft")
    finally:
        os.umask(before)
    made = [*(tmp_path / "saved").iterdir(), tmp_path / "timm.safetensors"]
    made.append(tmp_path / "microsoft.pth")
    wanted = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in made} == {
        path.name: wanted for path in made
    }


def test_saving_replaces_only_its_own(saved, tmp_path):
    """Oracle: the docstring; and nothing is left beside the folder."""
    checkpoint, folder = saved
    save_checkpoint(checkpoint, folder)
    (tmp_path / "empty").mkdir()
    save_checkpoint(checkpoint, tmp_path / "empty")
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "empty").iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == {"saved", "empty", "weights.pth"}
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not a saved checkpoint") as error:
        save_checkpoint(checkpoint, folder)
    line_of(error)
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="not a saved checkpoint"):
        save_checkpoint(checkpoint, tmp_path / "weights.pth")


def test_timm_folder(tiny, tmp_path):
    """Oracle: timm's config.json as its hub repositories have it."""
    write(tiny, tmp_path / "model.safetensors", "timm")
    config = {
        "architecture": "tiny_vit_5m_224",
        "num_classes": 3,
        "label_names": ["ant", "bee", "cat"],
        "pretrained_cfg": {
            "input_size": [3, 256, 256],
            "interpolation": "bilinear",
            "crop_pct": 0.9,
            "crop_mode": "squash",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_checkpoint(tmp_path)
    assert loaded.labels == ("ant", "bee", "cat")
    assert loaded.model.config.image_size == 256
    assert loaded.preprocessing.to_dict() == {
        "size": 256,
        "crop_pct": 0.9,
        "mode": "squash",
        "interpolation": "bilinear",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "channel_order": "rgb",
    }
    config["pretrained_cfg"]["crop_mode"] = "border"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config.json: .*mode"):
        load_checkpoint(tmp_path)
    assert load_checkpoint(tmp_path, preprocessing="timm").preprocessing == preset("timm", 256)


def test_state_dict_wrapper(tiny, tmp_path):
    """Oracle: timm's training checkpoints, which hold more than the weights."""
    state = export_state_dict(tiny, "timm")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "last.pth")
    same_weights(tiny, load_checkpoint(tmp_path / "last.pth").model)


def test_bundled_names(saved, tmp_path, monkeypatch):
    """Oracle: the folders under the package's weights."""
    _, folder = saved
    monkeypatch.setattr(checkpoint_source, "_BUNDLED", tmp_path / "weights")
    assert bundled_names() == ()
    shutil.copytree(folder, tmp_path / "weights" / "digits")
    assert bundled_names() == ("digits",)
    assert load_checkpoint("digits").labels == ("ant", "bee", "cat")
    with pytest.raises(CheckpointError, match=r"digit: no such file.*did you mean digits"):
        load_checkpoint("digit")
    with pytest.raises(CheckpointError, match=r"bundled: digits; a hub id looks like org/name"):
        load_checkpoint("tiny.pth")


def damage_missing(state):
    del state["stages.1.blocks.0.mlp.fc2.bias"]


def damage_shape(state):
    state["stages.2.downsample.conv1.conv.weight"] = torch.zeros(9, 9, 1, 1)


def damage_unexpected(state):
    state["stages.1.blocks.0.extra"] = torch.zeros(1)


def damage_headless(state):
    del state["head.fc.weight"]


def damage_not_tensor(state):
    state["epoch"] = 3


def damage_foreign(state):
    state.clear()
    state["layer4.conv1.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, r"stages.1.blocks.0.mlp.fc2.bias is missing"),
        (damage_shape, r"stages.2.downsample.conv1.conv.weight has shape \(9, 9, 1, 1\).*\(36, 24"),
        (damage_unexpected, r"stages.1.blocks.0.extra is not part of the model"),
        (damage_headless, r"not a whole classifier, head.fc.weight is missing"),
        (damage_not_tensor, r"entry 'epoch' is a int"),
        (damage_foreign, r"not a TinyViT \(its first key is 'layer4.conv1.weight'\)"),
        (dict.clear, r"not a TinyViT \(its first key is 'missing'\)"),
    ],
)
def test_wrong_contents(damage, message, custom, tmp_path):
    """Oracle: the damage; keys are named as the file names them."""
    state = export_state_dict(custom, "timm")
    damage(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=f"weights.pth: .*{message}") as error:
        load_checkpoint(tmp_path / "weights.pth")
    line_of(error)


def test_wrong_requests(tiny, tmp_path):
    """Oracle: each request's fault."""
    path = write(tiny, tmp_path / "weights.pth", "timm")
    with pytest.raises(CheckpointError, match="has 3 classes, not 1000"):
        load_checkpoint(path, num_classes=1000)
    with pytest.raises(CheckpointError, match=r"--image-size -1: .*must be a positive"):
        load_checkpoint(path, image_size=-1)
    with pytest.raises(CheckpointError, match=r"nothing.pth: no such file"):
        load_checkpoint(tmp_path / "nothing.pth")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=r"no weights in this folder; it needs model.safe"):
        load_checkpoint(tmp_path / "folder")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list; a state dict of tensors is needed"):
        load_checkpoint(tmp_path / "list.pth")
    with pytest.raises(InputError, match="unknown format 'onnx'; known: microsoft, timm, hugging"):
        export_state_dict(tiny, "onnx")


def test_wrong_folders(saved):
    """Oracle: each file's fault."""
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_size": 256}))
    with pytest.raises(CheckpointError, match=r"224 px images .* 256 px.* --image-size$"):
        load_checkpoint(folder)
    assert load_checkpoint(folder, image_size=256).preprocessing.size == 256
    (folder / "config.json").write_text(json.dumps(config | {"depths": [1, 1]}))
    with pytest.raises(
        CheckpointError, match=r"config.json: no valid.*lengths hidden_sizes 4"
    ) as e:
        load_checkpoint(folder)
    line_of(e)
    (folder / "config.json").write_text(json.dumps(config | {"mlp_ratio": 2.0}))
    with pytest.raises(CheckpointError, match=r"fc1.weight has shape \(64, 16\)"):
        load_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json: not readable as JSON"):
        load_checkpoint(folder)
