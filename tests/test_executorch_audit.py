"""The ExecuTorch target's audit of saved files, against torch's counts and XNNPACK's nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from audit_samples import asked, failed, with_pair
from executorch_samples import Written, images_of
from tinyvit_edge.exporters import _executorch_program
from tinyvit_edge.exporters.executorch import ExecuTorchExporter
from tinyvit_edge.program import Program
from tinyvit_edge.quantization.accounting import integer_demand

pytest.importorskip("executorch")


@pytest.fixture
def written(executorch_files: Mapping[str, Written]) -> Mapping[str, Written]:
    """One file per precision, all through XNNPACK."""
    return executorch_files


def _layer_macs(program: Program) -> dict[str, int]:
    """Multiply-accumulates of Linear layers, convolutions and, among these, local ones."""
    macs = {"linear": 0, "conv": 0, "local": 0}

    def counter(*kinds: str) -> Any:
        def count(layer: Any, _: Any, output: torch.Tensor) -> None:
            for kind in kinds:
                macs[kind] += output.numel() * layer.weight[0].numel()

        return count

    hooks = []
    for name, layer in program.module.named_modules():
        if hasattr(layer, "weight"):
            kinds = ["linear"] if layer.weight.ndim == 2 else ["conv"]
            kinds += ["local"] if name.endswith("local_conv") else []
            hooks.append(layer.register_forward_hook(counter(*kinds)))
    with torch.no_grad():
        program.module(program.example_input())
    for hook in hooks:
        hook.remove()
    return macs


def test_audit_counts_what_runs_in_int8(written: Mapping[str, Written]) -> None:
    """Oracle: multiply-accumulates counted by hooks on the module's layers in torch."""
    audits = {name: ExecuTorchExporter().audit(file.path) for name, file in written.items()}
    macs = _layer_macs(written["fp32"].program)
    local = macs.pop("local")
    # 4 windows of 3 x 3 tokens cover 4 x 4 positions; 2 heads of 16 channels, 2 products
    attention = 4 * 2 * 2 * 9 * 9 * 16
    assert {audit.total_macs for audit in audits.values()} == {sum(macs.values()) + attention}
    kinds = {**macs, "attention": attention}
    for name, integer in (
        ("fp32", set()),
        ("w8-dynamic", {"linear"}),
    ):
        left = {kind: share.macs for kind, share in audits[name].left_float.items()}
        assert left == {kind: count for kind, count in kinds.items() if kind not in integer}
    left = {kind: share.macs for kind, share in audits["w8a8"].left_float.items()}
    assert left == {"attention": attention, "conv": local}
    assert audits["fp16"].macs == {"float16": sum(kinds.values())}
    mixed = written["w8a8-mixed"].program
    assert {name: audit.int8_macs for name, audit in audits.items()} == {
        "fp32": 0,
        "fp16": 0,
        "w8-dynamic": macs["linear"],
        "w8a8": macs["linear"] + macs["conv"] - local,
        "w8a8-mixed": integer_demand(mixed.module, mixed.example_input()).int8_macs,
    }


def test_audit_finds_the_weights_in_their_storage_type(written: Mapping[str, Written]) -> None:
    """Oracle: the modules: their int8 layers, and the sizes of their own tensors."""
    audits = {name: ExecuTorchExporter().audit(file.path) for name, file in written.items()}
    for name in ("w8-dynamic", "w8a8-mixed", "w8a8"):
        demand = integer_demand(written[name].program.module, images_of(1))
        found = audits[name].weight_bytes["int8"], audits[name].int8_macs
        assert found == (demand.weight_bytes["int8"], demand.int8_macs)
    assert set(audits["fp32"].weight_bytes) == {"float32"}
    half = audits["fp16"].weight_bytes
    convolutions = 4 * sum(
        tensor.numel()
        for layer in written["fp16"].program.module.modules()
        if isinstance(layer, torch.nn.Conv2d)
        for tensor in layer.parameters()
    )
    assert half["float32"] == convolutions  # the rest of the weights is in float16
    assert written["w8a8"].path.stat().st_size < written["fp16"].path.stat().st_size


def _converts(path: Path) -> Counter[tuple[str, str]]:
    """Convert nodes of activations in the file's delegate, by the types that they take and give."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    file = deserialize_pte_binary(path.read_bytes())
    plan = next(plan for plan in file.program.execution_plan if plan.name == "forward")
    index = plan.delegates[0].processed.index
    graph = _executorch_program._xnnpack_graph(
        bytes(file.program.backend_delegate_data[index].data)
    )
    types, biases = {}, set()
    for value in graph["xvalues"]:
        tensor = value["xvalue_union"].get("tensor_value", value["xvalue_union"])
        types[tensor["id_out"]] = tensor["datatype"].removeprefix("xnn_datatype_")
        if tensor["dims"][-2:] == [9, 9]:  # attention's: 3 x 3 tokens a window
            biases.add(tensor["id_out"])
    return Counter(
        (types[node["xnode_union"]["input_id"]], types[node["xnode_union"]["output_id"]])
        for node in graph["xnodes"]
        if node["xnode_union_type"] == "XNNConvert"
        and node["xnode_union"]["input_id"] not in biases
    )


def test_audit_counts_the_conversions_that_run(written: Mapping[str, Written]) -> None:
    """Oracles: what torch's layers read and give; XNNPACK's convert nodes, by their types."""
    for name, file in written.items():
        audit, found = ExecuTorchExporter().audit(file.path), _converts(file.path)
        widened = found["qint8", "fp32"]
        assert (audit.quantize, audit.dequantize) == (found.total() - widened, widened), name
        assert failed(audit, file.program) == set(), name
    wanted = asked(written["w8a8"].program)
    audit = ExecuTorchExporter().audit(written["w8a8"].path)
    # a result that the next layer takes as it is is neither widened nor rounded again
    assert audit.dequantize == wanted.layers - wanted.chained
    assert audit.quantize == audit.dequantize - 2  # q, k and v read one tensor


def test_a_layer_left_float_is_caught(written: Mapping[str, Written]) -> None:
    """Oracle: the file of a program that leaves two layers out, and the other way round."""
    whole, mixed = written["w8a8"], written["w8a8-mixed"]
    audit = ExecuTorchExporter().audit(mixed.path)
    # and the local convolution
    assert sum(audit.left_float[kind].count for kind in ("linear", "conv")) == 2 + 1
    assert "int8 multiply-accumulates" in failed(audit, whole.program)
    audit = ExecuTorchExporter().audit(whole.path)
    assert "float multiply-accumulates" in failed(audit, mixed.program)


def test_a_pair_that_no_layer_asks_for_is_caught(
    written: Mapping[str, Written], tmp_path: Path
) -> None:
    """Oracle: the program with a quantize/dequantize pair before one LayerNorm."""
    program, path = written["w8a8"].program, tmp_path / "model.pte"
    ExecuTorchExporter().export(with_pair(program), path)
    audit = ExecuTorchExporter().audit(path)
    assert audit.needless == 2
    assert "needless conversions" in failed(audit, program)
