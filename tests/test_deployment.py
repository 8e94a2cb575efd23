"""The deployment form against the reference model, and the graph that exporters get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.deployment import FormOptions, deployment_form
from tinyvit_edge.errors import InputError
from tinyvit_edge.folding import (
    LinearStandardise,
    Standardise,
    fold_batch_norm,
    fold_layer_norm,
    split_qkv,
)
from tinyvit_edge.layers import ConvNorm
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.program import Program
from tinyvit_edge.variants import config_for

FORMS = [
    FormOptions(layer_norm="native"),
    FormOptions(layer_norm="linear", softmax="bounded"),
]
# float32 rounding alone is at about 128 dB
LOWEST_SQNR_DB = 100.0

Model = TinyVitForImageClassification
Sqnr = Callable[[Tensor, Tensor], float]
MakeProgram = Callable[..., Program]


def images(size: tuple[int, int], count: int = 2, seed: int = 3) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def assert_same_logits(model: Model, x: Tensor, options: FormOptions, sqnr_db: Sqnr) -> None:
    form = deployment_form(model, options=options, image_size=(x.shape[2], x.shape[3]))
    with torch.inference_mode():
        reference, logits = model(x).logits, form(x)
    assert logits.shape == reference.shape
    assert logits.dtype == torch.float32
    assert sqnr_db(reference, logits) >= LOWEST_SQNR_DB


@pytest.mark.parametrize(
    "name",
    [
        "tiny_vit_5m_224",
        "tiny_vit_11m_224",
        "tiny_vit_21m_224",
        "tiny_vit_21m_384",
        pytest.param("tiny_vit_21m_512", marks=pytest.mark.slow),
    ],
)
def test_equals_the_reference_on_every_variant(
    name: str, randomise: Callable[..., Any], sqnr_db: Sqnr
) -> None:
    """Oracle: the reference model with randomised weights, at the variant's own size."""
    model = randomise(Model(config_for(name)))
    x = images((model.config.image_size,) * 2, count=1)
    with torch.inference_mode():
        reference = model(x).logits
        for options in FORMS:
            assert sqnr_db(reference, deployment_form(model, options=options)(x)) >= LOWEST_SQNR_DB


@pytest.mark.parametrize("options", FORMS, ids=lambda o: o.layer_norm)
@pytest.mark.parametrize("size", [(64, 64), (63, 63), (65, 97), (96, 40), (33, 130)])
def test_equals_the_reference_at_odd_and_non_square_sizes(
    size: tuple[int, int], options: FormOptions, small_model: Model, sqnr_db: Sqnr
) -> None:
    """Oracle: the reference model, which takes any size; windows are padded on either side."""
    assert_same_logits(small_model, images(size), options, sqnr_db)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_channels": 1},
        {"hidden_act": "relu"},
        {"local_conv_size": 5, "mlp_ratio": 2.0, "mbconv_expand_ratio": 2.0},
        {"layer_norm_eps": 0.1},
        {"num_labels": 1},
    ],
    ids=lambda c: "-".join(c),
)
def test_equals_the_reference_on_other_configurations(
    changes: dict[str, Any], randomise: Callable[..., Any], sqnr_db: Sqnr
) -> None:
    """Oracle: the reference model of each configuration."""
    config = TinyVitConfig(
        **{
            "image_size": 48,
            "hidden_sizes": [16, 32, 64],
            "depths": [1, 1, 2],
            "num_heads": [1, 2, 4],
            "window_sizes": [7, 4, 3],
            "num_labels": 5,
            **changes,
        }
    )
    model = randomise(Model(config))
    x = torch.randn(2, config.num_channels, 48, 48, generator=torch.Generator().manual_seed(3))
    for options in FORMS:
        assert_same_logits(model, x, options, sqnr_db)


def test_the_reference_is_not_changed(small_model: Model) -> None:
    """Oracle: the state dict from before; changing the form must not reach it either."""
    before = deepcopy(small_model.state_dict())
    form = deployment_form(small_model)
    with torch.no_grad():
        for tensor in (*form.parameters(), *form.buffers()):
            tensor.fill_(7.0)
    after = small_model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_batch_norm_and_gradients_are_gone(small_model: Model) -> None:
    """Oracle: the form is for inference only, and its norms are the parameter-free kind."""
    assert any(isinstance(m, nn.BatchNorm2d) for m in small_model.modules())
    for options, kind in zip(FORMS, (Standardise, LinearStandardise), strict=True):
        form = deployment_form(small_model, options=options)
        assert not any(isinstance(m, (nn.BatchNorm2d, nn.LayerNorm)) for m in form.modules())
        # two per attention block (3 of them), one before the classifier
        norms = [m for m in form.modules() if isinstance(m, (Standardise, LinearStandardise))]
        attention_blocks = sum(small_model.config.depths[1:])
        assert len(norms) == 2 * attention_blocks + 1
        assert all(type(m) is kind for m in norms)
        assert not any(p.requires_grad for p in form.parameters())
        assert not form.training


def test_a_model_without_classifier_is_refused() -> None:
    """Oracle: `num_labels=0` gives the reference an identity for a head."""
    config = TinyVitConfig(
        image_size=32,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_heads=[1, 1],
        window_sizes=[2, 2],
        num_labels=0,
    )
    with pytest.raises(InputError, match="no classifier"):
        deployment_form(Model(config))


# --- the exported graph -----------------------------------------------------------------------

FORBIDDEN = (
    "index.", "index_select", "gather", "split", "chunk", "unbind",
    "expand", "batch_norm", "scaled_dot_product", "sym_size", "where",
)  # fmt: skip


def tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_of(item)


@pytest.mark.parametrize("options", FORMS, ids=lambda o: o.layer_norm)
@pytest.mark.parametrize("precision", ["fp32", "w8-dynamic", "w8a8"])
def test_exported_graph_has_low_rank_and_no_forbidden_operator(
    precision: str, options: FormOptions, small_program: MakeProgram
) -> None:
    """Oracle: the fake tensors and operator names of `torch.export`'s graph."""
    graph = small_program(precision, options).exported().graph
    calls = [node for node in graph.nodes if node.op == "call_function"]
    assert len(calls) > 100
    for node in graph.nodes:
        for tensor in tensors_of(node.meta.get("val")):
            assert tensor.ndim <= 4, f"{node.name}: {tuple(tensor.shape)}"
            assert all(type(side) is int for side in tensor.shape), node.name
    names = {str(node.target) for node in calls}
    bad = {name for name in names for word in FORBIDDEN if word in name.split("::")[-1]}
    assert not bad
    assert ("aten.layer_norm.default" in names) == (options.layer_norm == "native")


def test_exported_graph_equals_the_module(small_program: MakeProgram) -> None:
    """Oracle: `Program.module` run eagerly."""
    program = small_program("fp32")
    x = program.example_input()
    assert x.is_contiguous()
    assert x.shape == (1, 3, 64, 64)
    assert torch.equal(x, program.example_input())
    exported = program.exported().module()
    with torch.inference_mode():
        assert torch.equal(exported(x), program.module(x))


# --- the parts --------------------------------------------------------------------------------


def test_batch_norm_is_folded_with_stride_groups_and_statistics(
    randomise: Callable[..., Any],
) -> None:
    """Oracle: convolution and BatchNorm one after the other, in float64."""
    pair = randomise(ConvNorm(6, 12, kernel=3, stride=2, groups=3))
    with torch.no_grad():
        folded = fold_batch_norm(pair)
        x = images((9, 8)).repeat(1, 2, 1, 1)
        expected = deepcopy(pair).double()(x.double())
        torch.testing.assert_close(folded(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert (folded.stride, folded.padding, folded.groups) == ((2, 2), (1, 1), 3)


def test_layer_norm_is_folded_into_every_consumer(randomise: Callable[..., Any]) -> None:
    """Oracle: LayerNorm, then each Linear, in float64."""
    norm, consumers = nn.LayerNorm(8, eps=1e-3), (nn.Linear(8, 5), nn.Linear(8, 3))
    randomise(nn.ModuleList((norm, *consumers)))
    x = 3 + 2 * torch.randn(4, 7, 8, generator=torch.Generator().manual_seed(1))
    for options in FORMS:
        with torch.no_grad():
            plain, folded = fold_layer_norm(norm, consumers, options)
            for before, after in zip(consumers, folded, strict=True):
                expected = before.double()(norm.double()(x.double()))
                torch.testing.assert_close(after(plain(x)).double(), expected, rtol=1e-5, atol=1e-5)
                before.float()
                norm.float()


def test_standardise_gives_mean_zero_and_variance_one() -> None:
    """Oracle: the definition; the constant row must not cost the mean of far-off values."""
    x = 50 + 3 * torch.randn(16, 96, generator=torch.Generator().manual_seed(1))
    for module in (Standardise(96, 1e-5), LinearStandardise(96, 1e-5)):
        y = module(x)
        assert y.mean(-1).abs().max() < 1e-4
        assert (y.var(-1, unbiased=False) - 1).abs().max() < 1e-4


def test_qkv_rows_are_grouped_by_head() -> None:
    """Oracle: a projection whose every row says which head, part and dimension it is."""
    heads, dim = 2, 3
    qkv = nn.Linear(1, heads * 3 * dim)
    rows = [
        100 * head + 10 * part + i for head in range(heads) for part in range(3) for i in range(dim)
    ]
    with torch.no_grad():
        qkv.weight.copy_(torch.tensor(rows).float()[:, None])
        qkv.bias.copy_(torch.tensor(rows).float() + 0.5)
        parts = split_qkv(qkv, heads)
    for part, linear in enumerate(parts):
        expected = [100 * head + 10 * part + i for head in range(heads) for i in range(dim)]
        assert linear.weight[:, 0].tolist() == expected
        assert linear.bias.tolist() == [value + 0.5 for value in expected]
