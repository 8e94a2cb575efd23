"""Layers to train by: forward as deployed, gradients straight through the rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.quantization.calibration import Calibration
from tinyvit_edge.quantization.fake import FakeStaticLayer, trainable_form
from tinyvit_edge.quantization.ptq import quantize
from tinyvit_edge.quantization.qdq import QuantParams, StaticLayer

INPUT, OUTPUT = QuantParams(scale=0.03, zero_point=-7), QuantParams(scale=0.05, zero_point=11)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("output", [OUTPUT, None])
@pytest.mark.parametrize("kind", ["linear", "conv", "depthwise"])
def test_forward_is_that_of_the_static_layer(kind: str, output: QuantParams | None) -> None:
    """Oracle: `StaticLayer`, bit for bit, clipped inputs and outputs included."""
    torch.manual_seed(0)
    layer, x = {
        "linear": (nn.Linear(8, 6), 3 * normal(5, 8)),
        "conv": (nn.Conv2d(8, 6, 3, stride=2, padding=1), 3 * normal(2, 8, 9, 9)),
        "depthwise": (nn.Conv2d(8, 8, 3, padding=1, groups=8), 3 * normal(2, 8, 9, 9)),
    }[kind]
    fake = FakeStaticLayer(layer, input_params=INPUT, output_params=output)
    static = StaticLayer(layer, input_params=INPUT, output_params=output)
    with torch.no_grad():
        assert torch.equal(fake(x), static(x))
        assert not torch.equal(fake(x), layer(x))


def test_gradients_pass_the_rounding_and_stop_where_values_are_clipped() -> None:
    """Oracle: the gradients of a product of the rounded values, by hand."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    fake = FakeStaticLayer(layer, input_params=INPUT, output_params=None)
    x = torch.tensor([[0.5, -0.2, 100.0, -100.0]], requires_grad=True)
    upstream = torch.tensor([[1.0, -2.0, 0.5]])
    fake(x).backward(upstream)
    rounded = INPUT.dequantize(INPUT.quantize(x.detach()))
    weight = StaticLayer(layer, input_params=INPUT, output_params=None).dequantized_weight()
    assert fake.weight.grad is not None
    assert fake.bias.grad is not None
    assert x.grad is not None
    torch.testing.assert_close(fake.weight.grad, upstream.T @ rounded)
    torch.testing.assert_close(fake.bias.grad, upstream[0])
    inside = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(x.grad, upstream @ weight * inside)


@pytest.mark.parametrize("precision", ["w8a8", "w8a8-mixed"])
def test_form_to_train_is_the_deployed_one(
    precision: str, float_form: nn.Module, calibration: Calibration
) -> None:
    """Oracle: `quantize`, bit for bit; the parameters of the float form, by name and shape."""
    row, x = PRECISIONS[precision], normal(2, 3, 64, 64)
    made = trainable_form(float_form, row, calibration)
    with torch.no_grad():
        assert torch.equal(made(x), quantize(float_form, row, calibration=calibration)(x))
    shapes = {name: p.shape for name, p in made.named_parameters() if p.requires_grad}
    assert shapes == {name: p.shape for name, p in float_form.named_parameters()}
    made(x).square().sum().backward()
    assert all(p.grad is not None for p in made.parameters())
    before = float_form.state_dict()
    assert not any(p.requires_grad for p in float_form.parameters())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5)
    assert all(torch.equal(before[name], value) for name, value in float_form.state_dict().items())


def test_trained_weights_deploy_as_they_were_trained(
    float_form: nn.Module, calibration: Calibration
) -> None:
    """Oracle: the form that was trained, bit for bit; training goes on from the same weights."""
    row, x = PRECISIONS["w8a8-mixed"], normal(2, 3, 64, 64)
    made = trainable_form(float_form, row, calibration)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
    tuned = {name: p.detach() for name, p in made.named_parameters()}
    trained = replace(calibration, tuned=tuned)
    deployed = quantize(float_form, row, calibration=trained)
    going_on = trainable_form(float_form, row, trained)
    with torch.no_grad():
        assert torch.equal(deployed(x), made(x))
        assert torch.equal(going_on(x), made(x))
        assert not torch.equal(deployed(x), quantize(float_form, row, calibration=calibration)(x))
