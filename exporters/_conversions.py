"""Which of a file's quantize and dequantize operators run, and which of them no layer needs."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Conversions", "Role", "Step", "conversions"]

Role = Literal["layer", "quantize", "dequantize", "move"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An operator that 8-bit activations may go through, as the recipes have it."""

    role: Role
    """``layer``: a product in int8. ``move``: 8-bit values to other places, such as a reshape."""
    source: Hashable
    """The activation that it reads."""
    result: Hashable


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversions:
    """How many conversions of activations run."""

    quantize: int
    dequantize: int
    needless: int
    """Those among them that neither bring an int8 layer its input nor take up its result."""


def conversions(
    steps: Iterable[Step],
    *,
    constants: Collection[Hashable] = (),
    floats: Collection[Hashable] = (),
    folds: bool = False,
) -> Conversions:
    """Count a file's conversions.

    Args:
        steps: the operators of these kinds, in order, one for each of several inputs; an int8
            GELU, say, is none.
        constants: what is no activation. Steps that read one, or what is made of one by moves
            alone, do not count.
        floats: activations that operators in floating point, or nobody in the file, read.
        folds: the file is in QDQ form: a layer of floats behind a dequantize and before a quantize,
            which the runtime makes one int8 kernel of.
    """
    fixed, live = set(constants), []
    for step in steps:
        if step.source not in fixed:
            live.append(step)
        elif step.role == "move":
            fixed.add(step.result)
    return _Flow(tuple(live), floats=frozenset(floats), folds=folds).count()


class _Flow:
    """Who makes and who reads each activation."""

    def __init__(
        self, steps: tuple[Step, ...], *, floats: frozenset[Hashable], folds: bool
    ) -> None:
        self.steps, self.floats, self.folds = steps, floats, folds
        self.makers = {step.result: step for step in steps}
        self.readers: dict[Hashable, list[Step]] = {}
        for step in steps:
            self.readers.setdefault(step.source, []).append(step)

    def count(self) -> Conversions:
        running = [step for step in self.steps if not self._is_part_of_a_layer(step)]
        rounding = [step for step in running if step.role == "quantize"]
        widening = [step for step in running if step.role == "dequantize"]
        needless = sum(not self._feeds_a_layer(step.result) for step in rounding)
        needless += sum(not self._is_of_a_layer(step.source) for step in widening)
        return Conversions(quantize=len(rounding), dequantize=len(widening), needless=needless)

    def _is_part_of_a_layer(self, step: Step) -> bool:
        if not self.folds or step.role not in ("quantize", "dequantize"):
            return False
        if step.role == "quantize":
            maker = self.makers.get(step.source)
            return maker is not None and maker.role == "layer"
        readers = self.readers.get(step.result, [])
        return bool(readers) and step.result not in self.floats and _all_layers(readers)

    def _feeds_a_layer(self, activation: Hashable) -> bool:
        for reader in self.readers.get(activation, ()):
            if reader.role == "layer":
                return True
            through = reader.role == "move" or (reader.role == "dequantize" and self.folds)
            if through and self._feeds_a_layer_next(reader):
                return True
        return False

    def _feeds_a_layer_next(self, reader: Step) -> bool:
        if reader.role == "move":
            return self._feeds_a_layer(reader.result)
        return any(one.role == "layer" for one in self.readers.get(reader.result, ()))

    def _is_of_a_layer(self, activation: Hashable) -> bool:
        maker = self.makers.get(activation)
        if maker is None:
            return False
        if maker.role == "move":
            return self._is_of_a_layer(maker.source)
        return maker.role == "layer" or (
            maker.role == "quantize" and self._is_part_of_a_layer(maker)
        )


def _all_layers(steps: Iterable[Step]) -> bool:
    return all(step.role == "layer" for step in steps)
