"""The reference model against timm, and its Hugging Face behaviour."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    pipeline,
)

from tinyvit_edge.checkpoint import save_checkpoint
from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.errors import InputError
from tinyvit_edge.image_processing import TinyVitImageProcessor
from tinyvit_edge.keymaps import from_native
from tinyvit_edge.layers import attention_bias_indices
from tinyvit_edge.modeling import (
    TinyVitBackbone,
    TinyVitForImageClassification,
    TinyVitModel,
    register,
)
from tinyvit_edge.preprocessing import preset
from tinyvit_edge.variants import VARIANTS, config_for

SMALL = {
    "image_size": 64,
    "hidden_sizes": [16, 32, 64],
    "depths": [1, 2, 1],
    "num_heads": [1, 2, 4],
    "window_sizes": [4, 4, 4],
}


def small_config(**changes):
    return TinyVitConfig(**{**SMALL, "num_labels": 5, **changes})


@pytest.fixture
def small(randomise):
    """A randomised classifier of three stages and five classes."""
    torch.manual_seed(0)
    return randomise(TinyVitForImageClassification(small_config()), seed=3)


def pixels(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("row", VARIANTS.values(), ids=VARIANTS)
def test_parameter_count(row):
    """Oracle: the published counts, which timm's models have too."""
    with torch.device("meta"):
        model = TinyVitForImageClassification(config_for(row.name))
    assert sum(p.numel() for p in model.parameters()) == row.params


def both(name, timm_oracle, randomise, num_classes=1000, **kwargs):
    """A model of timm and ours with the same randomised weights, loaded strictly."""
    theirs = randomise(timm_oracle.timm_model(name, num_classes=num_classes, **kwargs), seed=11)
    config = config_for(name, num_labels=num_classes)
    config.num_channels = kwargs.get("in_chans", 3)
    ours = TinyVitForImageClassification(config)
    state = from_native(theirs.state_dict(), "timm")
    assert len(state) == 296
    ours.load_state_dict(state)
    return theirs, ours.eval()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if row.image_size == 512 else [])
        for name, row in VARIANTS.items()
    ],
)
def test_equals_timm(name, timm_oracle, randomise, sqnr_db):
    """Oracle: timm's TinyViT, every weight and statistic randomised."""
    theirs, ours = both(name, timm_oracle, randomise)
    x = pixels(1, 3, VARIANTS[name].image_size, VARIANTS[name].image_size)
    with torch.no_grad():
        expected, got = theirs(x), ours(x).logits
    assert expected.std() > 0.1  # not a constant that anything would equal
    assert sqnr_db(expected, got) >= 100
    assert (expected - got).abs().max() <= 1e-4


@pytest.mark.parametrize("size", [(200, 136), (97, 224), (33, 31)])
def test_equals_timm_on_odd_sizes(size, timm_oracle, randomise, sqnr_db):
    """Oracle: timm, on sizes that no window divides and that are not square."""
    theirs, ours = both("tiny_vit_21m_224", timm_oracle, randomise, num_classes=10)
    with torch.no_grad():
        expected, got = theirs(x := pixels(2, 3, *size)), ours(x).logits
    assert sqnr_db(expected, got) >= 100
    assert (expected - got).abs().max() <= 1e-4


def test_equals_timm_in_stages(timm_oracle, randomise, sqnr_db):
    """Oracle: timm's feature maps; ours are taken after a stage's blocks, as timm's."""
    theirs, ours = both("tiny_vit_5m_224", timm_oracle, randomise, num_classes=10, in_chans=1)
    x = pixels(1, 1, 96, 128)
    with torch.no_grad():
        expected = theirs.forward_intermediates(x, intermediates_only=True)
        maps = ours(x, output_hidden_states=True).reshaped_hidden_states
    assert len(maps) == 5
    for reference, got in zip(expected, maps[1:], strict=True):
        assert reference.shape == got.shape
        assert sqnr_db(reference, got) >= 100


def test_numbers_depend_on_what_initialisation_hides(small):
    """Oracle: the fixture; a comparison on it must see MBConv's inside and the bias table."""
    x = pixels(1, 3, 64, 64)
    with torch.no_grad():
        before = small(x).logits
        stages = small.tinyvit.encoder.stages
        stages[0].layers[0].conv1.convolution.weight.mul_(1.5)
        after_mbconv = small(x).logits
        stages[1].layers[0].attn.attention_biases.copy_(
            stages[1].layers[0].attn.attention_biases.flip(1)
        )
        after_bias = small(x).logits
    assert (before - after_mbconv).abs().max() > 1e-3
    assert (after_mbconv - after_bias).abs().max() > 1e-3


def test_fresh_initialisation():
    """Oracle: the original's initialisation."""
    model = TinyVitForImageClassification(small_config())
    stages = model.tinyvit.encoder.stages
    assert stages[0].layers[0].conv3.batch_norm.weight.abs().max() == 0
    assert stages[1].layers[0].attn.attention_biases.abs().max() == 0
    assert 0.01 < stages[1].layers[0].mlp.fc1.weight.std() < 0.03


def test_attention_bias_indices():
    """Oracle: the definition, pair by pair: one column per (|dy|, |dx|), in order of first use."""
    window, seen, expected = 3, {}, []
    points = list(itertools.product(range(window), repeat=2))
    for (y1, x1), (y2, x2) in itertools.product(points, points):
        expected.append(seen.setdefault((abs(y1 - y2), abs(x1 - x2)), len(seen)))
    assert attention_bias_indices(window).flatten().tolist() == expected


def test_outputs(small):
    """Oracle: shapes from the configuration; probabilities sum to one; the head by hand."""
    x = pixels(2, 3, 64, 40)
    with torch.no_grad():
        out = small(x, output_hidden_states=True, output_attentions=True)
        base = small.tinyvit(x)
        by_hand = small.classifier(small.tinyvit.layernorm(base.last_hidden_state.mean(1)))
    assert base.hidden_states is None
    assert base.attentions is None
    assert [tuple(h.shape) for h in out.hidden_states] == [
        (2, 160, 16),
        (2, 160, 16),
        (2, 40, 32),
        (2, 12, 64),
    ]
    assert [tuple(h.shape) for h in out.reshaped_hidden_states] == [
        (2, 16, 16, 10),
        (2, 16, 16, 10),
        (2, 32, 8, 5),
        (2, 64, 4, 3),
    ]
    torch.testing.assert_close(out.hidden_states[-1], base.last_hidden_state)
    torch.testing.assert_close(base.pooler_output, base.last_hidden_state.mean(1))
    torch.testing.assert_close(out.logits, by_hand)
    assert [tuple(a.shape) for a in out.attentions] == [(8, 2, 16, 16), (2, 4, 16, 16)]
    for attention in out.attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
    assert len(small(x, return_dict=False)) == 1


def test_loss_is_cross_entropy(small):
    """Oracle: torch's cross-entropy on the logits."""
    labels = torch.tensor([1, 4])
    out = small(pixels(2, 3, 64, 64), labels=labels)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, labels))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing(small):
    """Oracle: the gradients without it."""

    def gradients():
        small.zero_grad()
        small.train()
        small(pixels(2, 3, 64, 64), labels=torch.tensor([0, 3])).loss.backward()
        return {name: p.grad.clone() for name, p in small.named_parameters()}

    expected = gradients()
    small.gradient_checkpointing_enable()
    layers = [layer for stage in small.tinyvit.encoder.stages for layer in stage.layers]
    assert all(layer.gradient_checkpointing for layer in layers)
    got = gradients()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, msg=name)


def test_drop_path_and_dropout():
    """Oracle: the definition; rates grow linearly and act in training alone."""
    config = small_config(drop_path_rate=0.6, hidden_dropout_prob=0.2)
    model = TinyVitForImageClassification(config)
    layers = [layer for stage in model.tinyvit.encoder.stages for layer in stage.layers]
    assert [layer.drop_path.rate for layer in layers] == pytest.approx([0, 0.2, 0.4, 0.6])
    torch.manual_seed(0)
    dropped = layers[-1].drop_path.train()(torch.ones(4000, 2, 3))
    assert dropped.unique().tolist() == pytest.approx([0, 2.5])
    assert (dropped.flatten(1).std(1) == 0).all()  # a sample is dropped whole
    assert dropped.mean() == pytest.approx(1, abs=0.1)
    x = pixels(1, 3, 64, 64)
    model.eval()
    torch.testing.assert_close(model(x).logits, model(x).logits, rtol=0, atol=0)


@pytest.mark.parametrize("stages", [2, 5])
def test_any_number_of_stages(stages, randomise):
    """Oracle: shapes from the configuration: the stride doubles with each stage."""
    config = small_config(
        hidden_sizes=[16] * stages,
        depths=[1] * stages,
        num_heads=[2] * stages,
        window_sizes=[3] * stages,
    )
    out = randomise(TinyVitModel(config))(pixels(1, 3, 70, 70), output_hidden_states=True)
    sides = [18, 18, 9, 5, 3, 2][: stages + 1]
    assert [m.shape[-1] for m in out.reshaped_hidden_states] == sides
    assert config.stage_names == ["stem", *(f"stage{i + 1}" for i in range(stages))]


def test_headless_and_grey_scale():
    """Oracle: the definition: no classifier is the identity on the normalised features."""
    model = TinyVitForImageClassification(small_config(num_channels=1, num_labels=0)).eval()
    x = pixels(2, 1, 64, 64)
    features = model.tinyvit.layernorm(model.tinyvit(x).pooler_output)
    torch.testing.assert_close(model(x).logits, features)


def test_backbone(small):
    """Oracle: the classifier's own stage outputs, with the weights of its `tinyvit`."""
    config = small_config(out_features=["stem", "stage2", "stage3"])
    backbone = TinyVitBackbone(config).eval()
    backbone.load_state_dict(
        {k: v for k, v in small.state_dict().items() if not k.startswith("classifier")}
    )
    x = pixels(1, 3, 64, 48)
    out = backbone(x)
    assert out.hidden_states is None
    expected = small(x, output_hidden_states=True).reshaped_hidden_states
    for got, index in zip(out.feature_maps, (0, 2, 3), strict=True):
        torch.testing.assert_close(got, expected[index])
    assert backbone.channels == [16, 32, 64]
    assert [m.shape[1] for m in out.feature_maps] == backbone.channels


def test_save_and_load(small, tmp_path):
    """Oracle: the model before saving; statistics and index buffers must come back."""
    small.save_pretrained(tmp_path)
    x = pixels(2, 3, 64, 64)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is TinyVitForImageClassification
    for key, tensor in small.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], tensor, rtol=0, atol=0)
    torch.testing.assert_close(loaded(x).logits, small(x).logits, rtol=0, atol=0)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is TinyVitModel
    torch.testing.assert_close(base(x).pooler_output, small.tinyvit(x).pooler_output)
    assert type(AutoBackbone.from_config(AutoConfig.from_pretrained(tmp_path))) is TinyVitBackbone
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == small.config.to_diff_dict()


@pytest.mark.parametrize("auto", [TinyVitBackbone, AutoBackbone])
def test_backbone_from_pretrained(auto, small, tmp_path):
    """Oracle: the classifier that was saved."""
    small.save_pretrained(tmp_path)
    backbone = auto.from_pretrained(tmp_path, out_features=["stage1"])
    assert type(backbone) is TinyVitBackbone
    x = pixels(1, 3, 64, 64)
    expected = small(x, output_hidden_states=True).reshaped_hidden_states[1]
    torch.testing.assert_close(backbone(x).feature_maps[0], expected)


def test_pipeline(small, tmp_path):
    """Oracle: preprocessing and softmax by hand."""
    from tinyvit_edge.checkpoint import Checkpoint
    from tinyvit_edge.preprocessing import preprocess

    register()  # a second time is harmless
    small.config.id2label = dict(enumerate("abcde"))
    contract = preset("timm", 64)
    save_checkpoint(
        Checkpoint(
            model=small,
            labels=tuple("abcde"),
            preprocessing=contract,
            variant="custom",
            format="timm",
            sha256="",
            source="",
        ),
        tmp_path / "saved",
    )
    processor = AutoImageProcessor.from_pretrained(tmp_path / "saved")
    assert type(processor) is TinyVitImageProcessor
    assert processor.contract == contract
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    best = pipeline("image-classification", model=str(tmp_path / "saved"))(image)[0]
    with torch.no_grad():
        logits = small(torch.from_numpy(preprocess(image, contract))[None]).logits[0]
    assert best["label"] == "abcde"[int(logits.argmax())]
    assert best["score"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": [1, 2]}, "one entry per stage.*depths 2"),
        ({name: [2] for name in SMALL if name != "image_size"}, "at least 2 stages"),
        ({"num_heads": [1, 3, 4]}, r"hidden_sizes\[1\] = 32 is not divisible by num_heads"),
        ({"hidden_sizes": [15, 32, 64]}, r"hidden_sizes\[0\] must be even"),
        ({"depths": [1, 0, 1]}, "depths must be a list of positive integers"),
        ({"window_sizes": 7}, "window_sizes must be a list of positive integers"),
        ({"image_size": 0}, "image_size must be a positive integer"),
        ({"mlp_ratio": -1}, "mlp_ratio must be a positive number"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\)"),
        ({"local_conv_size": 4}, "local_conv_size must be odd"),
    ],
)
def test_bad_configurations(changes, message):
    """Oracle: the rules in the docstring of `TinyVitConfig`."""
    with pytest.raises(InputError, match=message):
        small_config(**changes)


def test_unknown_variant():
    """Oracle: the name that was meant."""
    with pytest.raises(InputError, match="did you mean tiny_vit_5m_224"):
        config_for("tinyvit_5m_224")
    with pytest.raises(InputError, match=r"known: tiny_vit_5m_224, .*512"):
        config_for("resnet")
