"""The channels-first form against the reference, and the Core ML packages made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.deployment import FormOptions, deployment_form
from tinyvit_edge.deployment_ane import channels_first
from tinyvit_edge.errors import InputError, UnsupportedError
from tinyvit_edge.exporters import Exporter, exporter, require_precision
from tinyvit_edge.exporters._mlprogram_reader import load_program
from tinyvit_edge.lint import lint
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.program import Program
from tinyvit_edge.variants import config_for

Model = TinyVitForImageClassification
Sqnr = Callable[[Tensor, Tensor], float]


def _image(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(3))


def _assert_equal(model: Model, x: Tensor, sqnr_db: Sqnr) -> None:
    form = channels_first(deployment_form(model, image_size=(x.shape[2], x.shape[3])))
    with torch.inference_mode():
        assert sqnr_db(model(x).logits, form(x)) >= 100.0


@pytest.mark.parametrize("size", [(64, 64), (63, 63), (65, 97), (33, 130)])
def test_equals_the_reference_at_any_size(
    size: tuple[int, int], small_model: Model, sqnr_db: Sqnr
) -> None:
    """Oracle: the reference with randomised statistics and biases; windows are padded."""
    _assert_equal(small_model, _image(*size), sqnr_db)


def test_equals_the_reference_with_other_layers(
    randomise: Callable[..., Any], sqnr_db: Sqnr
) -> None:
    """Oracle: the reference; another activation, epsilon, ratio and size of local convolution."""
    config = TinyVitConfig(
        image_size=48,
        hidden_sizes=[16, 32, 64],
        depths=[1, 1, 2],
        num_heads=[1, 2, 4],
        window_sizes=[7, 4, 3],
        num_labels=5,
        hidden_act="relu",
        layer_norm_eps=0.1,
        mlp_ratio=2.0,
        local_conv_size=5,
    )
    _assert_equal(randomise(Model(config)), _image(48, 48), sqnr_db)


def test_equals_the_reference_at_full_size(randomise: Callable[..., Any], sqnr_db: Sqnr) -> None:
    """Oracle: the reference at 224 px, whose windows are cut in one stage and whole in two."""
    _assert_equal(randomise(Model(config_for("tiny_vit_5m_224"))), _image(224, 224), sqnr_db)


def test_a_norm_of_another_kind_is_refused(small_model: Model) -> None:
    """Oracle: LayerNorm from Linear layers is another target's form."""
    form = deployment_form(small_model, options=FormOptions(layer_norm="linear"))
    with pytest.raises(TypeError, match="native LayerNorm"):
        channels_first(form)


def test_quantized_layers_and_other_layouts_are_refused() -> None:
    """Oracle: the rewrite makes new layers of floating-point ones; rows takes every precision."""
    target = exporter("coreml", layout="ane")
    for precision in PRECISIONS.values():
        if precision.quantized:
            with pytest.raises(UnsupportedError, match=r"it can do fp32, fp16$"):
                require_precision(target, precision)
        else:
            require_precision(target, precision)
    require_precision(exporter("coreml"), PRECISIONS["w8a8"])
    with pytest.raises(InputError, match=r"--layout is 'nhwc'; choose from rows, ane"):
        exporter("coreml", layout="nhwc")


def _saved(target: Exporter, program: Program, path: Path) -> Path:
    assert target.export(program, path).details["layout"] == target.layout  # type: ignore[attr-defined]
    return path


@pytest.mark.parametrize(("precision", "lowest"), [("fp32", 90.0), ("fp16", 35.0)])
def test_saved_package_equals_the_module_and_moves_less(
    precision: str,
    lowest: float,
    small_program: Callable[..., Program],
    tmp_path: Path,
    sqnr_db: Sqnr,
) -> None:
    """Oracle: the program's own module, and the package of the usual layout."""
    pytest.importorskip("coremltools")
    program = small_program(precision)
    x = _image(64, 64)
    with torch.no_grad():
        reference = program.module(x)
    transposes = {}
    for layout in ("rows", "ane"):
        target = exporter("coreml", package="tensor", layout=layout)
        path = _saved(target, program, tmp_path / f"{layout}.mlpackage")
        logits = torch.from_numpy(target.load(path, threads=1)(x.numpy()))
        assert sqnr_db(reference, logits) >= lowest
        types = [operation.type for operation in load_program(path).operations]
        transposes[layout] = types.count("transpose")
        assert layout == "rows" or types.count("linear") == 1  # the classifier
        (moved,) = (one for one in lint("coreml", path) if one.rule == "movement")
        assert ("--layout ane" in str(moved.remedy)) == (layout == "rows")
        macs = target.audit(path).total_macs
        assert macs == exporter("coreml").audit(tmp_path / "rows.mlpackage").total_macs
    windows = sum(block.window < block.resolution[0] for block in _blocks(program))
    assert transposes["ane"] == 2 * windows < transposes["rows"]


def _blocks(program: Program) -> list[Any]:
    stages: Any = program.module.stages
    return [block for stage in stages if not stage.convolutional for block in stage.blocks]
