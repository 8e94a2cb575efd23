"""Rounding of weights to few bits, so that the layer's output changes least.

Columns are rounded one after the other, and what rounding a column does to the output is made up
for by the columns that are still to come, as far as their inputs go together (GPTQ, arXiv
2210.17323, after Optimal Brain Surgeon): the closed form of what AdaRound (arXiv 2004.10568)
searches for by gradient descent. What is left of the error's mean goes into the bias.

Grids: a table of values a layer, from a one-dimensional k-means in which a weight counts by what
its error costs once the columns after it have made up for it; or multiples of a scale for each
block of inputs.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvit_edge.errors import InputError
from tinyvit_edge.precision import Precision
from tinyvit_edge.quantization.calibration import quantizable
from tinyvit_edge.quantization.coded import Coded
from tinyvit_edge.quantization.moments import InputMoments, Moments, rows_of, unrows

__all__ = ["code_layer", "round_weights"]

_DAMPING = 0.01  # of the mean diagonal, as in GPTQ: keeps rare directions from dominating
_SLICE = 64  # columns whose errors are spread to the rest in one product
_BINS = 512  # of the histogram that tables start from
_LLOYD_STEPS = 20
_SHRINKS = tuple(1 - 0.05 * step for step in range(9))


def round_weights(
    module: nn.Module, precision: Precision, moments: Moments | None
) -> dict[str, Coded]:
    """Round every layer of a float deployment form that a precision codes.

    Raises:
        InputError: the moments are missing, for all layers or for one; or no layer is of a shape
            that the precision codes.
    """
    if moments is None:
        raise InputError(f"precision {precision.name!r} needs calibration images: give --calib")
    layers = quantizable(module, precision)
    if not layers:
        raise InputError(
            f"precision {precision.name!r} suits no layer of this model: all are too small, or "
            "their inputs no whole number of blocks; use w8"
        )
    coded = {}
    for name, layer in layers.items():
        if name not in moments.layers:
            raise InputError(f"layer {name} has no moments: take them from this model")
        coded[name] = code_layer(layer, precision, moments.layers[name])
    return coded


def code_layer(layer: nn.Linear | nn.Conv2d, precision: Precision, seen: InputMoments) -> Coded:
    """Round one layer's weight.

    Args:
        layer: of a float deployment form; it is not changed.
        precision: a row that is ``coded``.
        seen: moments of the layer's input.
    """
    weight, bias = layer.weight.detach(), layer.bias
    assert bias is not None, "layers of the deployment form have a bias"
    rows = rows_of(weight)
    factor = _inverse_factor(seen.second)
    grid: _Table | _Blocks
    if precision.block is None:
        grid = _Table(rows, factor.diagonal() ** -2, precision.bits)
    else:
        grid = _Blocks(precision.block, precision.bits)
    codes, rounded = _compensated(rows, factor.to(rows.dtype), grid)
    shift = (rows - rounded).double() @ seen.mean  # (out,)
    return Coded(
        codes=unrows(codes, weight),
        bias=(bias.detach() + shift).float(),
        table=grid.table if isinstance(grid, _Table) else None,
        scale=unrows(grid.scale(), weight) if isinstance(grid, _Blocks) else None,
    )


class _Grid(Protocol):
    """Values that weights may take, column by column."""

    def open(self, column: int, rest: Tensor) -> None:
        """Learn that a column is next; `rest` (out, columns left) starts with it."""

    def round(self, column: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (out,) and values (out,) of a column (out,)."""


class _Table:
    """One table for the whole layer."""

    def __init__(self, rows: Tensor, importance: Tensor, bits: int) -> None:
        weights = importance.expand_as(rows).flatten()
        self.table = _half(_kmeans(rows.flatten(), weights, 2**bits))
        self._edges = (self.table[1:] + self.table[:-1]) / 2

    def open(self, column: int, rest: Tensor) -> None:
        """Nothing depends on the column."""

    def round(self, column: Tensor) -> tuple[Tensor, Tensor]:
        codes = torch.searchsorted(self._edges, column.contiguous())
        return codes.to(torch.uint8), self.table[codes]


class _Blocks:
    """Whole multiples of a scale, which is chosen when its block comes up."""

    def __init__(self, block: int, bits: int) -> None:
        self._block, self._most = block, 2 ** (bits - 1) - 1
        self._scales: list[Tensor] = []

    def scale(self) -> Tensor:
        """(out, columns / block)."""
        return torch.stack(self._scales, 1)

    def open(self, column: int, rest: Tensor) -> None:
        if column % self._block == 0:
            self._scales.append(self._best_scale(rest[:, : self._block]))

    def round(self, column: Tensor) -> tuple[Tensor, Tensor]:
        scale = self._scales[-1]
        codes = self._codes(column, scale)
        return codes.to(torch.int8), codes * scale

    def _codes(self, values: Tensor, scale: Tensor) -> Tensor:
        codes: Tensor = torch.round(values / scale).clamp(-self._most - 1, self._most)
        return codes

    def _best_scale(self, block: Tensor) -> Tensor:
        """(out,): of some that cut more or less of the peaks off, the one with the least error."""
        peak = block.abs().amax(1)
        peak = torch.where(peak > 0, peak, torch.ones_like(peak))
        tried = torch.stack([_half(peak * shrink / self._most) for shrink in _SHRINKS])
        # below float16's normal numbers a scale would be coarse itself, or zero
        tried = tried.clamp_min(torch.finfo(torch.float16).tiny)
        errors = torch.stack(
            [(self._codes(block, s[:, None]) * s[:, None] - block).square().sum(1) for s in tried]
        )
        best: Tensor = tried.gather(0, errors.argmin(0)[None])[0]
        return best


def _compensated(rows: Tensor, factor: Tensor, grid: _Grid) -> tuple[Tensor, Tensor]:
    """Round rows (out, in) to a grid, each column's error made up for by those after it.

    Returns:
        Codes and values, both (out, in).
    """
    rest = rows.clone()
    codes, rounded = [], []
    for start in range(0, rows.shape[1], _SLICE):
        end = min(start + _SLICE, rows.shape[1])
        errors = []
        for column in range(start, end):
            grid.open(column, rest[:, column:])
            code, value = grid.round(rest[:, column])
            error = (rest[:, column] - value) / factor[column, column]
            rest[:, column:end] -= error[:, None] * factor[column, column:end]
            codes.append(code)
            rounded.append(value)
            errors.append(error)
        rest[:, end:] -= torch.stack(errors, 1) @ factor[start:end, end:]
    return torch.stack(codes, 1), torch.stack(rounded, 1)


def _inverse_factor(second: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of damped second moments (in, in)."""
    scale = second.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    damped = second + _DAMPING * scale * torch.eye(len(second), dtype=second.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _kmeans(values: Tensor, weights: Tensor, count: int) -> Tensor:
    """Centres (count,), ascending, of values (n,) with weights (n,).

    Where the clusters end is found on a histogram, where dynamic programming gives the best answer
    there is; Lloyd's algorithm then goes on with the values themselves. They are sorted once, so
    that a step is a search for the edges and a difference of running sums.
    """
    values, order = values.double().sort()
    weights = weights.double()[order]
    sums = _running_sums(values, weights)
    ends = torch.linspace(float(values[0]), float(values[-1]), _BINS + 1, dtype=torch.float64)
    bounds = torch.searchsorted(values, ends)
    bounds[-1] = len(values)
    held, moment, _ = sums[:, bounds[_best_edges(sums[:, bounds], count)]].diff()
    centres = torch.where(held > 0, moment / held, values[-1]).sort().values
    for _ in range(_LLOYD_STEPS):
        edges = torch.searchsorted(values, (centres[1:] + centres[:-1]) / 2)
        cuts = torch.cat([edges.new_zeros(1), edges, edges.new_full((1,), len(values))])
        held, moment, _ = sums[:, cuts].diff()
        centres = torch.where(held > 0, moment / held, centres).sort().values
    return centres.float()


def _running_sums(values: Tensor, weights: Tensor) -> Tensor:
    """(3, n + 1): of the weights, and of the values and squares that they count."""
    terms = torch.stack([weights, weights * values, weights * values.square()])
    return F.pad(terms.cumsum(1), (1, 0))


def _best_edges(sums: Tensor, count: int) -> Tensor:
    """Edges (count + 1,) of the clusters with the least squared error, as bins.

    Args:
        sums: running sums up to the edge of each bin, (3, bins + 1).
        count: of clusters.
    """
    held, moment, square = sums[:, None, :] - sums[:, :, None]  # from edge i to edge j
    cost = square - moment.square() / held.clamp_min(torch.finfo(torch.float64).tiny)
    cost = torch.where(held > 0, cost, 0.0).triu()
    cost += torch.full_like(cost, torch.inf).tril(-1)  # no cluster ends before it begins
    best, choices = cost[0], []  # of the first clusters, up to each edge
    for _ in range(count - 1):
        best, chosen = (best[:, None] + cost).min(0)
        choices.append(chosen)
    edges = [sums.shape[1] - 1]
    for chosen in reversed(choices):
        edges.append(int(chosen[edges[-1]]))
    return torch.tensor([0, *reversed(edges)])


def _half(values: Tensor) -> Tensor:
    """Rounded to what float16 holds, because that is what the artifact stores."""
    return values.half().float()
