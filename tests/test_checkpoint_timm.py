"""Native checkpoints against timm: key names, inferred variants, logits, resampled biases."""

from __future__ import annotations

import pytest
import torch

from tinyvit_edge.architecture import infer_config, resample_biases
from tinyvit_edge.checkpoint import export_state_dict, load_checkpoint
from tinyvit_edge.imagenet import imagenet_labels
from tinyvit_edge.keymaps import from_native, recognise
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.variants import VARIANTS, config_for


@pytest.mark.parametrize("name", VARIANTS)
def test_timm_names_and_variants(name, timm_oracle):
    """Oracle: timm's own state dict: recognised, complete, and inferred to the published row."""
    with torch.device("meta"):
        theirs = timm_oracle.import_timm().create_model(name, num_classes=1000).state_dict()
        ours = TinyVitForImageClassification(config_for(name)).state_dict()
    assert recognise(theirs) == "timm"
    renamed = from_native(theirs, "timm")
    assert len(renamed) == 296
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in ours.items()}
    inferred, published = infer_config(renamed), config_for(name)
    assert inferred.to_diff_dict() == published.to_diff_dict()


def microsoft_from_timm(key):
    """The documented map, written the other way round and apart from the product's rows."""
    key = key.replace("patch_embed.conv1.conv", "patch_embed.seq.0.c")
    key = key.replace("patch_embed.conv2.conv", "patch_embed.seq.2.c")
    key = key.replace("patch_embed.conv1", "patch_embed.seq.0")
    key = key.replace("patch_embed.conv2", "patch_embed.seq.2")
    key = key.replace(".conv.weight", ".c.weight")
    if ".downsample." in key:
        stage = int(key.split(".")[1])
        key = key.replace(f"stages.{stage}.", f"layers.{stage - 1}.")
    key = key.replace("stages.", "layers.")
    return key.replace("head.norm.", "norm_head.").replace("head.fc.", "head.")


def test_microsoft_checkpoint_equals_timm(timm_oracle, randomise, sqnr_db, tmp_path):
    """Oracle: timm's logits, of weights put under Microsoft's names by the documented map."""
    theirs = randomise(timm_oracle.timm_model("tiny_vit_5m_224", num_classes=1000), seed=2)
    state = {microsoft_from_timm(k): v for k, v in theirs.state_dict().items()}
    state["layers.1.blocks.0.attn.attention_bias_idxs"] = torch.zeros(49, 49, dtype=torch.long)
    torch.save({"model": state}, tmp_path / "tiny_vit_5m_22kto1k_distill.pth")
    loaded = load_checkpoint(tmp_path / "tiny_vit_5m_22kto1k_distill.pth", num_classes=1000)
    assert (loaded.format, loaded.variant) == ("microsoft", "tiny_vit_5m_224")
    assert loaded.labels == imagenet_labels()
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert sqnr_db(theirs(x), loaded.model(x).logits) >= 100
    back = export_state_dict(loaded.model, "timm")
    theirs.load_state_dict(back, strict=True)
    again = export_state_dict(loaded.model, "microsoft")
    assert again.keys() == state.keys() - {"layers.1.blocks.0.attn.attention_bias_idxs"}


@pytest.mark.parametrize(("old", "new"), [(7, 12), (12, 16), (7, 14), (12, 7)])
def test_bias_resampling_equals_timm(old, new, timm_oracle):
    """Oracle: timm's `resize_rel_pos_bias_table_levit`."""
    table = torch.randn(5, old * old, generator=torch.Generator().manual_seed(0))
    key = "tinyvit.encoder.stages.1.layers.0.attn.attention_biases"
    resampled = resample_biases({key: table}, [1, new])[key]
    torch.testing.assert_close(resampled, timm_oracle.timm_biases(table, new), rtol=0, atol=0)
