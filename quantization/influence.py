"""What an error in one tensor does to the logits, for many candidate ranges at once.

To first order an error d in a tensor moves a logit by g . d, with g the logit's gradient. For a
random mix of the logits, signs of +-1, one backward pass gives g of every tensor in the model, and
the mean square over images is the mean squared error of the logits that the tensor would cause
alone. Rounding errors are independent of each other, so their squares add up; clipping errors all
point the same way, so they are added before they are squared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tinyvit_edge.data import at_a_time
from tinyvit_edge.quantization.hooks import attached
from tinyvit_edge.quantization.qdq import QuantParams

__all__ = ["Place", "logit_errors"]

_AT_A_TIME = 4  # images of 224 pixels

Place = tuple[str, str]
"""A layer's name, and "input" or "output"."""


def logit_errors(
    module: nn.Module,
    batches: Sequence[Tensor],
    candidates: Mapping[Place, Sequence[QuantParams]],
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[Place, list[float]]:
    """Estimate the squared error of the logits that each candidate would cause alone.

    Args:
        module: float deployment form.
        batches: normalised images (B, 3, S, S) float32.
        candidates: parameters to try, by place.
        progress: called with the number of images in each batch done.

    Returns:
        An error a candidate, in the candidates' order; their unit is the same everywhere.
    """
    errors = {place: torch.zeros(len(tried)).double() for place, tried in candidates.items()}
    present = 0  # images of the batch at hand

    def watched(place: Place, x: Tensor) -> Tensor:
        # a view, because the tensor itself may have other readers, as a residual branch's has
        view = x.view_as(x)
        values = x.detach()

        def backward(gradient: Tensor) -> None:
            one = (present, -1)  # tokens are rows, those of an image one after the other
            errors[place] += _errors(values.reshape(one), gradient.reshape(one), candidates[place])

        view.register_hook(backward)  # type: ignore[no-untyped-call]
        return view

    def attach(place: Place) -> RemovableHandle:
        layer = module.get_submodule(place[0])
        if place[1] == "input":
            return layer.register_forward_pre_hook(lambda _, inputs: (watched(place, inputs[0]),))
        return layer.register_forward_hook(lambda _, __, output: watched(place, output))

    generator = torch.Generator().manual_seed(0)
    images = 0
    with attached(attach(place) for place in candidates), torch.enable_grad():
        # few at a time: autograd keeps every activation until the backward pass
        for batch in (part for whole in batches for part in _split(whole)):
            present = len(batch)
            logits = module(batch.clone().requires_grad_())  # (B, classes)
            signs = torch.randint(0, 2, logits.shape, generator=generator) * 2.0 - 1.0
            (logits * signs).sum().backward()
            images += len(batch)
            if progress:
                progress(len(batch))
    return {place: (total / images).tolist() for place, total in errors.items()}


def _split(batch: Tensor) -> tuple[Tensor, ...]:
    return torch.split(batch, at_a_time(batch.shape[-1], _AT_A_TIME))


def _errors(x: Tensor, gradient: Tensor, tried: Sequence[QuantParams]) -> Tensor:
    """Squared errors summed over a batch, one a candidate; `x` and `gradient` are (B, n)."""
    # image by image, so that what one candidate needs of memory stays near the processor
    errors = []
    for image, slope in zip(x, gradient, strict=True):  # (n,) each
        ends = tuple(float(end) for end in torch.aminmax(image))
        errors.append([_error(image, slope, params, ends) for params in tried])
    return torch.tensor(errors, dtype=torch.float64).sum(0)


def _error(x: Tensor, gradient: Tensor, params: QuantParams, ends: tuple[float, ...]) -> float:
    """Squared error of one image's tensor (n,), of that minimum and maximum, for one candidate."""
    low, high = ((end - params.zero_point) * params.scale for end in (-128, 127))
    moved = torch.fake_quantize_per_tensor_affine(x, params.scale, params.zero_point, -128, 127)
    moved.sub_(x).mul_(gradient)
    together = 0.0
    if ends[0] < low or ends[1] > high:  # most candidates clip nothing of most images
        clipped = (x < low) | (x > high)
        together = float(torch.where(clipped, moved, 0.0).sum(dtype=torch.float64)) ** 2
        moved = torch.where(clipped, 0.0, moved)
    return float(moved.square_().sum(dtype=torch.float64)) + together
