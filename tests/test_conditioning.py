"""Conditioning: factors between a norm and its Linear layers that change no logit."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tinyvit_edge.deployment import FormOptions, deployment_form
from tinyvit_edge.errors import DataError, InputError
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.quantization.calibration import CalibrationOptions, calibrate
from tinyvit_edge.quantization.conditioning import apply_factors, conditioned_norms, factors_of
from tinyvit_edge.quantization.ptq import quantize

Sqnr = Callable[[Tensor, Tensor], float]


def test_every_layer_norm_is_conditioned(float_form: nn.Module) -> None:
    """Oracle: the form's own norms: two a block, and the head's."""
    names = conditioned_norms(float_form)
    assert "norm" in names
    assert len(names) == 1 + 2 * sum(
        name.endswith(".attention") for name, _ in float_form.named_modules()
    )


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("layer_norm", ["native", "linear"])
def test_conditioning_is_exact(
    strength: float,
    layer_norm: str,
    small_model: TinyVitForImageClassification,
    batches: list[Tensor],
    sqnr_db: Sqnr,
) -> None:
    """Oracle: the form before, to 100 dB, with factors that differ by a factor of two and more."""
    form = deployment_form(small_model, options=FormOptions(layer_norm=layer_norm))  # type: ignore[arg-type]
    factors = factors_of(form, batches, strength)
    assert any(max(values) > 2 * min(values) for values in factors.values())
    conditioned = deepcopy(form)
    apply_factors(conditioned, factors)
    with torch.inference_mode():
        for batch in batches:
            assert sqnr_db(form(batch), conditioned(batch)) >= 100.0


def test_factors_are_smoothquants(float_form: nn.Module, batches: list[Tensor]) -> None:
    """Oracle: the formula, for the head's norm, from its output as a hook sees it."""
    seen: list[Tensor] = []
    norm = float_form.get_submodule("norm")
    handle = norm.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.inference_mode():
        for batch in batches:
            float_form(batch)
    handle.remove()
    activations = torch.cat(seen).abs().amax(0).double()
    weights = float_form.get_submodule("classifier").weight.abs().amax(0).double()
    expected = activations**0.5 / weights**0.5
    expected = expected / expected.log().mean().exp()
    found = torch.tensor(factors_of(float_form, batches, 0.5)["norm"], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_strength_1_gives_every_channel_the_same_peak(
    float_form: nn.Module, batches: list[Tensor]
) -> None:
    """Oracle: what strength 1 means."""
    conditioned = deepcopy(float_form)
    apply_factors(conditioned, factors_of(conditioned, batches, 1.0))
    peaks: list[Tensor] = []
    conditioned.get_submodule("norm").register_forward_hook(
        lambda _, __, out: peaks.append(out.abs().amax(0))
    )
    with torch.inference_mode():
        for batch in batches:
            conditioned(batch)
    peak = torch.stack(peaks).amax(0)
    torch.testing.assert_close(peak, peak.mean().expand_as(peak), rtol=1e-4, atol=0)


def test_a_channel_that_is_always_zero_gets_a_finite_factor(
    float_form: nn.Module, batches: list[Tensor], sqnr_db: Sqnr
) -> None:
    """Oracle: the form itself, with a norm that gives zeros in one channel."""
    form = deepcopy(float_form)
    norm = form.get_submodule("norm")
    norm.factor = torch.ones(norm.channels)
    norm.factor[3] = 0.0
    with torch.inference_mode():
        before = form(batches[0])
    apply_factors(form, factors_of(form, batches, 0.5))
    with torch.inference_mode():
        assert sqnr_db(before, form(batches[0])) >= 100.0


def test_values_that_are_not_finite_are_refused(
    float_form: nn.Module, batches: list[Tensor]
) -> None:
    """Oracle: one pixel that is not a number; the message names the first norm that meets it."""
    images = batches[0].clone()
    images[0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match=r"attention\.norm gives values that are not finite"):
        factors_of(float_form, [images], 0.5)


def test_quantized_form_is_conditioned(
    float_form: nn.Module, batches: list[Tensor], sqnr_db: Sqnr
) -> None:
    """Oracle: weights of the quantized layers against conditioned float weights."""
    found = calibrate(float_form, batches, CalibrationOptions(strength=0.5))
    assert found.factors.keys() == set(conditioned_norms(float_form))
    made = quantize(float_form, PRECISIONS["w8a8"], calibration=found)
    conditioned = deepcopy(float_form)
    apply_factors(conditioned, found.factors)
    layer, exact = made.get_submodule("classifier"), conditioned.get_submodule("classifier")
    assert sqnr_db(exact.weight, layer.dequantized_weight()) > 35  # type: ignore[operator]
    with torch.inference_mode():
        plain = replace(found, factors={})
        assert sqnr_db(float_form(batches[0]), made(batches[0])) > sqnr_db(
            float_form(batches[0]),
            quantize(float_form, PRECISIONS["w8a8"], calibration=plain)(batches[0]),
        )


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ({"nobody": (1.0,)}, "conditions nobody"),
        ({"norm": (1.0, 2.0)}, "conditions norm"),
        ({"norm": None}, "must be positive"),
    ],
)
def test_factors_of_another_model_are_refused(
    factors: dict[str, tuple[float, ...] | None], words: str, float_form: nn.Module
) -> None:
    """Oracle: one line that names the norm."""
    size = float_form.get_submodule("classifier").in_features
    given = {name: values or (0.0,) * size for name, values in factors.items()}
    with pytest.raises(InputError, match=words):
        apply_factors(deepcopy(float_form), given)
