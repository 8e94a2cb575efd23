"""Where checkpoints come from: containers, damaged files, names that lead nowhere."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from tinyvit_edge.checkpoint import load_checkpoint
from tinyvit_edge.checkpoint_source import locate, read_state
from tinyvit_edge.errors import CheckpointError


@pytest.fixture
def state():
    """A state dict of which little is enough to be told apart."""
    return {"a.weight": torch.randn(64, 64), "b.weight": torch.arange(3.0)}


def line_of(error):
    """The message, which must be one line."""
    message = str(error.value)
    assert "\n" not in message
    return message


def test_content_counts_and_not_the_suffix(state, tmp_path):
    """Oracle: what was written; both containers, and a pickle of torch before 1.6."""
    save_file(state, tmp_path / "safetensors.pth")
    with (tmp_path / "zip.safetensors").open("wb") as file:
        torch.save(state, file)
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        found = read_state(path)
        assert found.keys() == state.keys()
        for key, tensor in state.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=0)


class Payload:
    """A pickle that runs a command where it is loaded as code."""

    def __reduce__(self):
        import os

        return os.system, ("false",)


def test_code_is_refused(tmp_path):
    """Oracle: the pickle's own reference to a function, which the message names."""
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Payload()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"evil.pth: refused.*asks to run \w+\.system") as e:
        load_checkpoint(tmp_path / "evil.pth")
    line_of(e)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.0005, 0.5, 0.999])
def test_truncated_file(suffix, kept, state, tmp_path):
    """Oracle: the file is not whole."""
    path = tmp_path / f"cut{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match=r"cut\.\w+: not a readable .*truncated") as error:
        load_checkpoint(path)
    line_of(error)


def test_an_empty_name_is_refused():
    """Oracle: the message; an empty path would be the folder one happens to be in."""
    with pytest.raises(CheckpointError, match=r"^--weights is empty: .*bundled: ") as error:
        load_checkpoint("")
    line_of(error)


def test_a_folder_of_photos_does_not_hide_bundled_weights(monkeypatch, tmp_path, state):
    """Oracle: the package's own folder; a folder that has weights is what it says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits" / "0").mkdir(parents=True)
    found = locate("digits").weights
    assert found.parent.parent.name == "weights"
    assert found.is_file()
    save_file(state, tmp_path / "digits" / "model.safetensors")
    assert locate("digits").weights.samefile(tmp_path / "digits" / "model.safetensors")


def test_hub_offline(monkeypatch, tmp_path):
    """Oracle: huggingface_hub's offline mode, which a machine without a network is in effect."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="timm/tiny: not a local path, and the Hugging") as e:
        load_checkpoint("timm/tiny")
    line_of(e)
