"""Translations of the operators of `tinyvit_edge.quantization.coded` to Core ML's."""

from __future__ import annotations

from typing import Any

__all__ = ["register_coded_weights"]


def register_coded_weights() -> None:
    """Teach coremltools' PyTorch frontend the two operators; a second call changes nothing."""
    from coremltools.converters.mil.frontend._utils import (
        _construct_constexpr_dequant_op,
        _construct_constexpr_lut_op,
    )
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op

    def table_weight(context: Any, node: Any) -> None:
        codes, table = (source.val for source in _get_inputs(context, node, expected=2))
        entries = table.reshape(*[1] * codes.ndim, -1, 1)  # one table, of scalars
        context.add(_construct_constexpr_lut_op(codes, entries, name=node.name))

    def block_weight(context: Any, node: Any) -> None:
        from coremltools.converters.mil.mil import types

        codes, scale = (source.val for source in _get_inputs(context, node, expected=2))
        int4 = types.nptype_from_builtin(types.int4)
        made = _construct_constexpr_dequant_op(codes.astype(int4), None, scale, name=node.name)
        context.add(made)

    for translate in (table_weight, block_weight):
        name = translate.__name__
        aliases = [f"tinyvit_edge::{name}", f"tinyvit_edge.{name}"]
        register_torch_op(torch_alias=aliases, override=True)(translate)
