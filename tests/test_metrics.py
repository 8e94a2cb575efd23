"""Metrics against cases worked out by hand, and the losses made of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tinyvit_edge import measure, metrics
from tinyvit_edge.deployment import FormOptions
from tinyvit_edge.exporters import Audit
from tinyvit_edge.program import Program

PAIRWISE = [
    metrics.sqnr_db,
    metrics.max_abs,
    metrics.cosine,
    metrics.kl_divergence,
    metrics.top1_agreement,
]
LOGITS = np.array([[3.0, 4.0], [0.0, -2.0]], np.float32)


def test_sqnr_of_known_powers() -> None:
    """Oracle: 10 log10(29 / 0.29) = 20 dB over all values together."""
    noisy = LOGITS + np.array([[0.5, 0.0], [0.0, 0.2]])  # noise power 0.25 + 0.04
    assert metrics.sqnr_db(LOGITS, noisy) == pytest.approx(20.0, abs=1e-6)
    assert metrics.sqnr_db(2 * LOGITS, LOGITS) == pytest.approx(10 * math.log10(4))
    assert metrics.sqnr_db(LOGITS, 2 * LOGITS) == pytest.approx(0.0)


def test_sqnr_of_equal_and_of_zero_references() -> None:
    """Oracle: the docstring."""
    zeros = np.zeros_like(LOGITS)
    assert metrics.sqnr_db(LOGITS, LOGITS) == math.inf
    assert metrics.sqnr_db(zeros, zeros) == math.inf
    assert metrics.sqnr_db(zeros, LOGITS) == -math.inf
    assert metrics.sqnr_db(LOGITS, zeros) == pytest.approx(0.0)


def test_float32_inputs_are_summed_in_float64() -> None:
    """Oracle: the exact power; float32 squares of 1e30 would overflow."""
    big = np.full((1, 2), 1e30, np.float32)
    assert metrics.sqnr_db(big, big * np.float32(0.5)) == pytest.approx(10 * math.log10(4))


def test_max_abs_is_over_all_values_and_signs() -> None:
    """Oracle: by hand."""
    assert metrics.max_abs(LOGITS, LOGITS) == 0.0
    for sign in (1, -1):
        apart = sign * np.array([[0.5, -3.0], [0, 0]])
        assert metrics.max_abs(LOGITS, LOGITS + apart) == 3.0


def test_cosine_is_the_mean_over_images() -> None:
    """Oracle: cos 0 = 1 and cos 90 degrees = 0 have mean 1/2; scale does not count."""
    assert metrics.cosine([[1, 0], [0, 2]], [[5, 0], [1, 0]]) == pytest.approx(0.5)
    assert metrics.cosine(LOGITS, -3 * LOGITS) == pytest.approx(-1.0)
    assert metrics.cosine([[3, 4]], [[4, 3]]) == pytest.approx(24 / 25)


def test_cosine_of_zero_vectors() -> None:
    """Oracle: the docstring: both zero 1, one zero 0, so the mean here is 1/3."""
    reference = [[0, 0], [0, 0], [1, 1]]
    measured = [[0, 0], [1, 1], [0, 0]]
    assert metrics.cosine(reference, measured) == pytest.approx(1 / 3)


def test_kl_of_known_probabilities() -> None:
    """Oracle: p = (1/2, 1/2), q = (1/4, 3/4): KL(p||q) = ln(4/3)/2, which is not KL(q||p)."""
    p, q = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]]) + 7.0  # a shift changes no softmax
    assert metrics.kl_divergence(p, q) == pytest.approx(0.5 * math.log(4 / 3))
    backward = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert metrics.kl_divergence(q, p) == pytest.approx(backward)


def test_kl_of_equal_is_zero_and_of_huge_logits_finite() -> None:
    """Oracle: KL >= 0; of certainty against the opposite certainty it is the logit gap."""
    assert metrics.kl_divergence(LOGITS, LOGITS) == 0.0
    assert metrics.kl_divergence([[1000.0, 0.0]], [[0.0, 1000.0]]) == pytest.approx(1000.0)
    rng = np.random.default_rng(0)
    near = rng.standard_normal((4, 9))
    assert metrics.kl_divergence(near, near + 1e-12 * rng.standard_normal((4, 9))) >= 0.0


def test_top1_agreement_counts_images() -> None:
    """Oracle: by hand: the second of four images differs."""
    reference = [[1, 0], [1, 0], [0, 1], [0, 1]]
    measured = [[9, 8], [0, 1], [-2, -1], [0, 1]]
    assert metrics.top1_agreement(reference, measured) == 0.75


def test_top_k_accuracy_by_rank() -> None:
    """Oracle: ranks of the labels are 1, 1, 2 and 3 of 3."""
    logits, labels = [[3, 2, 1]] * 4, [0, 0, 1, 2]
    accuracies = [metrics.top_k_accuracy(logits, labels, k) for k in (1, 2, 3, 5)]
    assert accuracies == [0.5, 0.75, 1.0, 1.0]


def test_a_tie_goes_to_the_lower_class_as_argmax_does() -> None:
    """Oracle: `numpy.argmax`."""
    flat = np.zeros((2, 4))
    assert metrics.top_k_accuracy(flat, [0, 1], 1) == 0.5
    assert (flat.argmax(1) == 0).all()


def test_is_finite() -> None:
    """Oracle: by hand."""
    assert metrics.is_finite(LOGITS)
    assert not metrics.is_finite([[1.0, math.nan]])
    assert not metrics.is_finite([[1.0, -math.inf]])


@pytest.mark.parametrize("metric", PAIRWISE, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("reference", "measured"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4))),
        (np.zeros((1, 3)), np.zeros((2, 3))),  # would broadcast
        (np.zeros(3), np.zeros(3)),
        (np.zeros((0, 3)), np.zeros((0, 3))),
    ],
    ids=["classes", "images", "rank", "empty"],
)
def test_shapes_that_do_not_fit_are_refused(
    metric: Callable[..., float], reference: np.ndarray, measured: np.ndarray
) -> None:
    """Oracle: two logit arrays of one non-empty shape (n, classes)."""
    with pytest.raises(ValueError, match="one shape"):
        metric(reference, measured)


# --- measure ----------------------------------------------------------------------------------


def test_losses_are_the_metrics_of_the_pair() -> None:
    """Oracle: each metric called directly, reference first."""
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((4, 5), np.float32)
    measured = reference + 0.1 * rng.standard_normal((4, 5), np.float32)
    conversion = measure.conversion_loss(reference, measured, name="fp32 program")
    assert conversion.sqnr_db == metrics.sqnr_db(reference, measured)
    assert conversion.max_abs == metrics.max_abs(reference, measured)
    assert conversion.cosine == metrics.cosine(reference, measured)
    assert conversion.kl == metrics.kl_divergence(reference, measured)
    assert conversion.top1_agreement == metrics.top1_agreement(reference, measured)
    assert conversion.reference == "fp32 program"
    quantization = measure.quantization_loss(reference, measured)
    assert quantization.sqnr_db == conversion.sqnr_db
    assert quantization.kl == conversion.kl
    assert quantization.top1_agreement == conversion.top1_agreement


def test_losses_of_non_finite_logits_are_absent() -> None:
    """Oracle: nothing can be said of NaN, so that gates fail."""
    broken = LOGITS * np.float32(math.nan)
    conversion = measure.conversion_loss(LOGITS, broken, name="x")
    assert conversion.sqnr_db is None
    assert conversion.top1_agreement is None
    assert conversion.reference == "x"
    assert measure.quantization_loss(LOGITS, broken).top1_agreement is None


def test_accuracy_is_over_the_labelled_images() -> None:
    """Oracle: by hand: of four images two have labels and one of those is right."""
    logits = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    found = measure.accuracy(logits, [0, None, 0, None])
    assert found is not None
    assert (found.top1, found.n) == (0.5, 2)
    assert measure.accuracy(logits, [None] * 4) is None


def test_int8_fractions_of_an_audit() -> None:
    """Oracle: by hand."""
    audit = Audit(
        weight_bytes={"int8": 30, "float32": 90}, macs={"int8": 3, "float32": 1}, left_float={}
    )
    fractions = measure.int8_of(audit)
    assert fractions.weight_bytes_fraction == 0.25
    assert fractions.mac_fraction == 0.75
    nothing = Audit(weight_bytes={}, macs={}, left_float={})
    assert measure.int8_of(nothing).weight_bytes_fraction == 0.0
    assert measure.int8_of(nothing).mac_fraction == 0.0


class _BatchSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return x.flatten(1)[:, :2]


def test_torch_logits_batches_and_keeps_the_order() -> None:
    """Oracle: the first two values of each image."""
    module, images = _BatchSizes(), np.random.default_rng(0).random((35, 3, 2, 2), np.float32)
    logits = measure.torch_logits(module, images)
    np.testing.assert_array_equal(logits, images.reshape(35, -1)[:, :2])
    assert module.seen == [16, 16, 3]


def test_torch_logits_of_large_images_take_no_more_memory() -> None:
    """Oracle: the first two values of each image; three of 512 pixels are as 16 of 224."""
    module, images = _BatchSizes(), np.random.default_rng(0).random((4, 1, 512, 512), np.float32)
    logits = measure.torch_logits(module, images)
    np.testing.assert_array_equal(logits, images.reshape(4, -1)[:, :2])
    assert module.seen == [3, 1]


def test_per_tensor_dynamic_ranges_see_one_image_at_a_time(
    small_program: Callable[..., Program],
) -> None:
    """Oracle: the module on each image alone; a batch would share its ranges."""
    program = small_program("w8-dynamic", FormOptions(dynamic_range="tensor"))
    rng = np.random.default_rng(0)
    images = rng.standard_normal((3, 3, 64, 64), np.float32) * np.float32([0.1, 1, 5])[
        :, None, None, None
    ].astype(np.float32)
    with torch.inference_mode():
        alone = torch.cat([program.module(torch.from_numpy(x[None])) for x in images]).numpy()
        together = program.module(torch.from_numpy(images)).numpy()
    np.testing.assert_array_equal(measure.torch_logits(program.module, images), alone)
    assert not np.array_equal(together, alone)


def test_sensitivity_is_of_int8_programs_only(small_program: Callable[..., Program]) -> None:
    """Oracle: a float program has none; coarser rounding moves an int8 program further."""
    images = np.random.default_rng(1).standard_normal((2, 3, 64, 64), np.float32)
    for precision in ("fp32", "fp16"):
        program = small_program(precision)
        logits = measure.torch_logits(program.module, images)
        assert measure.sensitivity(program, images, logits, rounding=1e-6) is None
    program = small_program("w8a8")
    logits = measure.torch_logits(program.module, images)
    found = measure.sensitivity(program, images, logits, rounding=1e-6)
    assert found is not None
    assert found == measure.sensitivity(program, images, logits, rounding=1e-6)
    assert found.sqnr_db > 10.0
    coarser = measure.sensitivity(program, images, logits, rounding=1e-2)
    assert coarser is not None
    assert coarser.sqnr_db < found.sqnr_db
    np.testing.assert_array_equal(measure.torch_logits(program.module, images), logits)
