"""What ExecuTorch's Vulkan delegate, for the GPUs of Android phones, would make of a model.

The model is lowered for it and thrown away: ExecuTorch's wheel has no Vulkan runtime to check such
a file in, so none is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyvit_edge.deployment import FormOptions
from tinyvit_edge.exporters._executorch_program import Contents, contents
from tinyvit_edge.exporters._quiet import quiet_converter
from tinyvit_edge.lint import Finding

if TYPE_CHECKING:
    from tinyvit_edge.program import Program

__all__ = ["FORM", "lint"]

FORM = FormOptions()
"""LayerNorm as one operator, which Vulkan has; biases expanded, as its index_select takes no axis
of more than 16384 elements, and windows of 14 have 38416 pairs."""


def lint(program: Program) -> tuple[Finding, ...]:
    """Say how the delegate would cut a float32 program that is in the form `FORM`."""
    found = lowered(program)
    outside = sum(found.operators.values())
    named = ", ".join(f"{name} x{calls}" for name, calls in found.operators.items())
    return (
        Finding(
            rule="one partition",
            device="Vulkan delegate",
            passed=len(found.delegates) == 1 and not outside,
            found=f"{len(found.delegates)} partitions, {outside} operators outside"
            + (f": {named}" if named else "")
            + "; lowered for it at float32, not run",
            remedy="stay with XNNPACK: each operator outside costs copies to the CPU and back",
        ),
    )


def lowered(program: Program) -> Contents:
    """The partitions, and the operators outside them, of a program that is lowered for Vulkan."""
    with quiet_converter():
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
        from executorch.exir import to_edge_transform_and_lower

        edge = to_edge_transform_and_lower(program.exported(), partitioner=[VulkanPartitioner()])
        return contents(edge.to_executorch().executorch_program)
