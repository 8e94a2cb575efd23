"""What speaks against an artifact on phones' GPUs and NPUs, read from the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from executorch_samples import Written
from onnx_samples import Build
from tinyvit_edge.checkpoint import load_checkpoint
from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.errors import InputError
from tinyvit_edge.exporters import TARGETS
from tinyvit_edge.exporters import _tflite_file as tflite_file
from tinyvit_edge.exporters._executorch_vulkan import FORM as VULKAN_FORM
from tinyvit_edge.exporters._quiet import quiet_converter
from tinyvit_edge.exporters.executorch import ExecuTorchExporter
from tinyvit_edge.lint import LINTERS, Finding, lint, lint_bundle, lint_lowered, lint_made
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.preprocessing import preset

onnx = pytest.importorskip("onnx")
with quiet_converter():
    ct = pytest.importorskip("coremltools")
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types


def _broken(findings: tuple[Finding, ...]) -> dict[tuple[str, str], str]:
    assert all(one.remedy for one in findings if not one.passed)
    return {(one.device, one.rule): one.found for one in findings if not one.passed}


def _onnx_file(path: Path, shape: list[int], permutation: list[int]) -> Path:
    """Reshape, transpose: what windows are cut with in the original TinyViT."""
    helper = onnx.helper
    kind = onnx.TensorProto.FLOAT
    constant = onnx.numpy_helper.from_array(np.array(shape, np.int64), "shape")
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["parts"], "cut"),
        helper.make_node("Transpose", ["parts"], ["logits"], "turn", perm=permutation),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", kind, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", kind, None)],
        [constant],
    )
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    path.write_bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())
    return path


def _core_ml(build: Callable[[Any], Any], path: Path, *, half: bool) -> Path:
    dtype = types.fp16 if half else types.fp32

    @mb.program(input_specs=[mb.TensorSpec((1, 4, 6, 32), dtype)], opset_version=ct.target.iOS17)
    def program(x: Any) -> Any:
        return build(x)

    with quiet_converter():
        ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        ).save(str(path))
    return path


def test_every_target_has_a_linter() -> None:
    """Oracle: the table of targets."""
    assert LINTERS.keys() == TARGETS.keys()


def test_own_onnx_by_what_providers_take(onnx_artifacts: Build) -> None:
    """Oracle: ONNX Runtime's own lists. Core ML's lacks Pad, which windows that do not fit the map
    need; NNAPI's lacks GELU and LayerNorm, which every block has.
    """
    broken = _broken(lint("onnx", onnx_artifacts("fp32").path))
    core_ml = broken.pop(("Core ML execution provider", "one partition"))
    assert core_ml.endswith("nodes outside: ai.onnx:Pad")
    nnapi = broken.pop(("NNAPI execution provider", "one partition"))
    assert nnapi.endswith("nodes outside: ai.onnx:Gelu, ai.onnx:LayerNormalization")
    assert broken == {}


def test_tensors_of_rank_6_leave_core_ml(tmp_path: Path) -> None:
    """Oracle: rank 4 passes where the same file with rank 6 does not."""
    flat = _broken(lint("onnx", _onnx_file(tmp_path / "4.onnx", [1, 3, 8, 8], [0, 2, 3, 1])))
    cut = [1, 3, 2, 4, 2, 4], [0, 2, 4, 3, 5, 1]
    deep = _broken(lint("onnx", _onnx_file(tmp_path / "6.onnx", *cut)))
    assert not {device for device, _ in flat} & {"TFLite converters", "Core ML execution provider"}
    outside = deep["Core ML execution provider", "one partition"]
    assert outside == "1 partitions, 1 of 2 nodes outside: ai.onnx:Transpose"
    assert deep["TFLite converters", "profile"].startswith("2 breaches")


def test_own_tflite_files_are_taken_whole(tflite_artifacts: Callable[[str], Any]) -> None:
    """Oracle: none of the rules has anything to say."""
    for precision in ("fp32", "fp16"):
        assert _broken(lint("tflite", tflite_artifacts(precision).path)) == {}, precision


def test_an_operator_that_gpus_refuse_is_named(
    tflite_artifacts: Callable[[str], Any], tmp_path: Path
) -> None:
    """Oracle: softmax renamed to log-softmax, which TFLite computes and no GPU delegate takes."""
    model = tflite_file.read(tflite_artifacts("fp32").path)
    softmax = tflite_file.schema.BuiltinOperator.SOFTMAX
    (code,) = (c for c in model.operatorCodes if c.builtinCode == softmax)
    code.builtinCode = code.deprecatedBuiltinCode = tflite_file.schema.BuiltinOperator.LOG_SOFTMAX
    for operator in model.subgraphs[0].operators:
        if model.operatorCodes[operator.opcodeIndex] is code:
            operator.builtinOptionsType = tflite_file.schema.BuiltinOptions.LogSoftmaxOptions
            operator.builtinOptions = tflite_file.schema.LogSoftmaxOptionsT()
    path = tmp_path / "model.tflite"
    path.write_bytes(tflite_file.serialise(model))
    broken = _broken(lint("tflite", path))
    assert "operators unsupported, LOG_SOFTMAX x" in broken["GPU delegate", "operators"]
    assert ("XNNPACK", "one partition") in broken


def test_executorch_programs_say_what_is_outside(
    executorch_files: Mapping[str, Written], executorch_program: Any, tmp_path: Path
) -> None:
    """Oracle: XNNPACK takes all of fp32; the portable delegate is none."""
    assert _broken(lint("executorch", executorch_files["fp32"].path)) == {}
    portable = ExecuTorchExporter(delegate="portable")
    path = tmp_path / "model.pte"
    portable.export(executorch_program("fp32", portable.form), path)
    broken = _broken(lint("executorch", path))
    assert broken["no delegate", "one partition"] == "0 partitions"
    assert "aten::_softmax x" in broken["no delegate", "operators"]


class _Summed(nn.Module):
    """Two convolutions around a running sum, for which Vulkan has no operator."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        return cast("Tensor", self.second(self.first(image).cumsum(1)))


class _Gathered(nn.Module):
    """A row of a table for every pair of tokens, as `FormOptions` "gathered" has them."""

    table: Tensor
    index: Tensor

    def __init__(self, pairs: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(2, 9))
        self.register_buffer("index", torch.arange(pairs, dtype=torch.int32) % 9)

    def forward(self, image: Tensor) -> Tensor:
        return image.mean((2, 3), keepdim=True)[0, :2, 0] * self.table.index_select(1, self.index)


def test_vulkan_takes_the_form_whole_and_names_what_it_does_not(executorch_program: Any) -> None:
    """Oracle: ExecuTorch's partitioner for Vulkan; its tables lack cumsum, and textures end at
    16384 elements.
    """
    whole = executorch_program("fp32", VULKAN_FORM)
    (taken,) = lint_lowered("executorch", whole)
    assert taken.passed
    assert (taken.device, taken.rule) == ("Vulkan delegate", "one partition")
    assert taken.found.startswith("1 partitions, 0 operators outside; ")

    def outside(module: nn.Module) -> list[str]:
        found = _broken(lint_lowered("executorch", replace(whole, module=module)))
        return [text.partition(";")[0] for text in found.values()]

    assert outside(_Summed()) == ["2 partitions, 1 operators outside: aten::cumsum x1"]
    gathered = outside(_Gathered(196**2))
    assert gathered == ["1 partitions, 1 operators outside: aten::index_select x1"]


def test_only_float32_is_lowered_for_a_further_delegate(
    executorch_files: Mapping[str, Written], randomise: Callable[..., Any], tmp_path: Path
) -> None:
    """Oracle: what the file says by itself; what cannot be read is said, and ends nothing."""
    config = TinyVitConfig(
        image_size=32,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        num_heads=[1, 2],
        window_sizes=[4, 4],
        num_labels=10,
    )
    checkpoint = replace(
        load_checkpoint("digits"),
        model=randomise(TinyVitForImageClassification(config)),
        preprocessing=preset("microsoft", 32),
    )
    files = {name: executorch_files[name].path for name in ("fp32", "w8a8")}
    files["fp16"] = tmp_path / "absent.pte"
    found = lint_made("executorch", files, checkpoint)
    assert found["w8a8"] == lint("executorch", files["w8a8"])
    *read, lowered = found["fp32"]
    assert tuple(read) == lint("executorch", files["fp32"])
    assert (lowered.device, lowered.passed) == ("Vulkan delegate", True)
    (why,) = found["fp16"]
    assert (why.passed, "absent.pte" in why.found) == (False, True)


def test_core_ml_rules(tmp_path: Path) -> None:
    """Oracle: programs of one defect each, and of none."""

    def broken(name: str, build: Callable[[Any], Any], *, half: bool = True) -> set[str]:
        found = _broken(lint("coreml", _core_ml(build, tmp_path / f"{name}.mlpackage", half=half)))
        return {rule for _, rule in found}

    assert broken("clean", lambda x: mb.gelu(x=mb.relu(x=x))) == set()
    assert broken("wide", lambda x: mb.gelu(x=mb.relu(x=x)), half=False) == {"float16"}
    turned = broken("turned", lambda x: mb.relu(x=mb.transpose(x=x, perm=[0, 2, 1, 3])))
    assert turned == {"movement"}
    narrow = broken("narrow", lambda x: mb.relu(x=mb.reshape(x=x, shape=[1, 4, 24, 8])))
    assert narrow == {"movement", "last axis"}


def test_a_package_of_channels_first_is_not_told_to_become_one(tmp_path: Path) -> None:
    """Oracle: the same transpose behind a 1x1 convolution of a map, and of tokens (1, C, 1, S)."""

    def remedy(name: str, shape: list[int]) -> str | None:
        def build(x: Any) -> Any:
            tokens = mb.reshape(x=x, shape=shape)  # (1, 4, 6, 32), or the same as tokens
            weight = np.full((shape[1], shape[1], 1, 1), 0.5, np.float16)
            return mb.relu(x=mb.transpose(x=mb.conv(x=tokens, weight=weight), perm=[0, 1, 3, 2]))

        findings = lint("coreml", _core_ml(build, tmp_path / f"{name}.mlpackage", half=True))
        (moved,) = (one for one in findings if one.rule == "movement")
        assert not moved.passed
        return moved.remedy

    assert "--layout ane" in (remedy("map", [1, 4, 6, 32]) or "")
    assert "channels come first already" in (remedy("tokens", [1, 4, 1, 192]) or "")


def test_a_package_in_float16_is_not_told_to_become_one(tmp_path: Path) -> None:
    """Oracle: a cast to float32 and back among operators in float16; and all in float32."""

    def remedy(name: str, build: Callable[[Any], Any], *, half: bool) -> str:
        findings = lint("coreml", _core_ml(build, tmp_path / f"{name}.mlpackage", half=half))
        (typed,) = (one for one in findings if one.rule == "float16")
        assert not typed.passed
        return str(typed.remedy)

    def mixed(x: Any) -> Any:
        wide = mb.cast(x=mb.gelu(x=mb.relu(x=x)), dtype="fp32")
        return mb.relu(x=mb.cast(x=wide, dtype="fp16"))

    assert remedy("mixed", mixed, half=True).startswith("most is float16 already")
    wide = remedy("wide", lambda x: mb.relu(x=mb.gelu(x=mb.relu(x=x))), half=False)
    assert wide.startswith("export at fp16")


def test_the_command_reads_bundles_and_files(
    cli: Callable[..., tuple[int, str, str]], onnx_artifacts: Build, tmp_path: Path
) -> None:
    """Oracle: JSON says what the text says, and advice does not fail."""
    path = onnx_artifacts("fp32").path
    code, out, _ = cli("lint", path, "--json", "-")
    (findings,) = json.loads(out).values()
    assert code == 0
    assert findings == [one.to_dict() for one in lint_bundle(path)]
    code, out, _ = cli("lint", path)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if "NNAPI" in line] == ["note"]
    with pytest.raises(InputError, match=r"neither a bundle nor an artifact \(\.onnx"):
        lint_bundle(tmp_path)
    code, _, err = cli("lint", tmp_path / "absent.tflite")
    assert (code, "absent.tflite" in err) == (2, True)


def test_deploy_lints_what_it_made(
    cli: Callable[..., tuple[int, str, str]], digits_images: Path, tmp_path: Path
) -> None:
    """Oracle: the lint command on the bundle; `report` says it again."""
    out = tmp_path / "out"
    photos = ("--data", digits_images / "heldout", "--limit", 10, "--runs", 1)
    made = ("--targets", "onnx", "--precisions", "fp32", "--out", out, "--lint", "--quiet")
    code, text, _ = cli("deploy", "--weights", "digits", *photos, *made)
    assert code == 0
    judged = [one.to_dict() for one in lint_bundle(out / "onnx-fp32")]
    (row,) = json.loads((out / "report.json").read_text())["rows"]
    assert row["lint"] == judged
    (said,) = (line for line in text.splitlines() if "NNAPI" in line)
    assert said.startswith("  note ")
    assert said in cli("report", out)[1]
