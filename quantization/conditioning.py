"""Function-preserving conditioning: even out channels before they share one int8 scale.

A LayerNorm's output goes to Linear layers and nowhere else. So its channels may be divided by any
positive factors that those layers' weight columns are multiplied by: W z = (W diag(s)) (z / s).
SmoothQuant's factors (arXiv 2211.10438, equation 4) move range from activations, which have one
scale a tensor, to weights, which have one an output channel: s = max|z|^a / max|W|^(1 - a).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyvit_edge.attention import Attention
from tinyvit_edge.deployment import DeploymentForm, Mlp
from tinyvit_edge.errors import DataError, InputError
from tinyvit_edge.folding import LinearStandardise, Standardise
from tinyvit_edge.quantization.hooks import attached

__all__ = ["apply_factors", "conditioned_norms", "factors_of"]

Factors = Mapping[str, tuple[float, ...]]
"""A norm's name in the deployment form -> one divisor a channel of its output."""

_CONSUMERS: Mapping[type[nn.Module], tuple[str, ...]] = {
    Attention: ("q", "k", "v"),
    Mlp: ("fc1",),
    DeploymentForm: ("classifier",),
}
_TINY = 1e-30
_LEAST = 1e-5  # of the largest: a channel that is always zero needs no factor of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    name: str
    norm: Standardise | LinearStandardise
    consumers: tuple[nn.Linear, ...]


def _sites(module: nn.Module) -> Iterator[_Site]:
    for name, owner in module.named_modules():
        names = _CONSUMERS.get(type(owner))
        if names is not None:
            norm = owner.get_submodule("norm")
            assert isinstance(norm, (Standardise, LinearStandardise))
            consumers = tuple(owner.get_submodule(consumer) for consumer in names)
            yield _Site(
                name=f"{name}.norm" if name else "norm",
                norm=norm,
                consumers=consumers,
            )


def conditioned_norms(module: nn.Module) -> tuple[str, ...]:
    """Names of the norms of a deployment form that can be conditioned."""
    return tuple(site.name for site in _sites(module))


def factors_of(module: nn.Module, batches: Iterable[Tensor], strength: float) -> Factors:
    """Choose factors for every norm of a float deployment form.

    Args:
        module: float deployment form; it is not changed.
        batches: normalised images (B, 3, S, S) float32.
        strength: a in 0..1: 0 evens out the weights' columns alone, 1 the activations' channels.

    Raises:
        DataError: a norm gives a value that is not finite.
    """
    sites = tuple(_sites(module))
    peaks: dict[str, Tensor] = {}

    def watch(name: str, x: Tensor) -> None:
        peak = x.abs().flatten(0, -2).amax(0)  # (C,)
        peaks[name] = peak if name not in peaks else torch.maximum(peaks[name], peak)

    handles = [
        site.norm.register_forward_hook(lambda _, __, out, name=site.name: watch(name, out))
        for site in sites
    ]
    with attached(handles), torch.inference_mode():
        for batch in batches:
            module(batch)
    for name, peak in peaks.items():
        if not peak.isfinite().all():
            raise DataError(f"layer {name} gives values that are not finite on these images")
    return {site.name: _factors(peaks[site.name], site.consumers, strength) for site in sites}


def _factors(peak: Tensor, consumers: tuple[nn.Linear, ...], strength: float) -> tuple[float, ...]:
    columns = torch.cat([linear.weight for linear in consumers]).abs().amax(0)  # (C,)
    peak = peak.clamp_min(max(_LEAST * float(peak.max()), _TINY))
    columns = columns.clamp_min(max(_LEAST * float(columns.max()), _TINY))
    factors = peak**strength / columns ** (1 - strength)
    factors /= factors.log().mean().exp()  # the common part changes nothing
    return tuple(factors.tolist())


def apply_factors(module: nn.Module, factors: Factors) -> None:
    """Condition a float deployment form in place; its function stays what it was.

    Raises:
        InputError: a name or a length that this form does not have, or a factor that is not > 0.
    """
    sites = {site.name: site for site in _sites(module)}
    with torch.no_grad():
        for name, values in factors.items():
            site = sites.get(name)
            if site is None or any(len(values) != x.in_features for x in site.consumers):
                raise InputError(f"the calibration conditions {name}: calibrate this model")
            exact = torch.tensor(values, dtype=torch.float64)
            if not bool((exact > 0).all() and exact.isfinite().all()):
                raise InputError(f"the calibration's factors of {name} must be positive")
            site.norm.divide(exact)
            for linear in site.consumers:
                linear.weight.copy_(linear.weight.double() * exact)
