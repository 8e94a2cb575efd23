"""The parts of training: recipes, the plan of steps, rates, averages, the student."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tinyvit_edge.checkpoint import Checkpoint
from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.data import scan_folder
from tinyvit_edge.distill.augment import POLICIES
from tinyvit_edge.errors import InputError
from tinyvit_edge.layers import DropPath
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.training.optimizer import Ema, learning_rate, make_optimizer, set_learning_rate
from tinyvit_edge.training.plan import Plan, held_out
from tinyvit_edge.training.recipe import PRESETS, Recipe, Stage, parse_stages, recipe_for
from tinyvit_edge.training.sources import LabelSource
from tinyvit_edge.training.student import fit_windows, set_drop_path, with_labels


def recipe(**values: Any) -> Recipe:
    """A recipe for labels, a few fields changed."""
    base: dict[str, Any] = {
        "targets": "labels",
        "stages": (Stage(size=None, epochs=3),),
        "batch": 8,
        "lr": 1e-3,
    }
    return Recipe(**{**base, **values})


class TestRecipe:
    def test_batch_scales_the_rate(self) -> None:
        """The paper's rule: the rate is linear in the batch, unless it is given."""
        row = PRESETS["finetune"]
        assert row.changed(batch=row.batch * 2).lr == pytest.approx(row.lr * 2)
        assert row.changed(batch=row.batch * 2, lr=1e-5).lr == 1e-5
        assert row.changed(lr=None, batch=None) == row

    def test_stages_are_read_as_written(self) -> None:
        """The two forms that --stages documents."""
        assert parse_stages("112:30, 168:4") == (
            Stage(size=112, epochs=30),
            Stage(size=168, epochs=4),
        )
        assert parse_stages("7") == (Stage(size=None, epochs=7),)

    @pytest.mark.parametrize("text", ["", "112:", "112:x", "16:2", "112-3", "112:0"])
    def test_bad_stages_are_refused(self, text: str) -> None:
        """One line, whether the text or the numbers are wrong."""
        with pytest.raises(InputError):
            recipe(stages=parse_stages(text))

    def test_unknown_preset_suggests(self) -> None:
        """A typo is answered with the name that was meant."""
        with pytest.raises(InputError, match="did you mean finetune"):
            recipe_for("finetun")

    @pytest.mark.parametrize(
        "values",
        [{"batch": 8, "accumulate": 3}, {"lr": 0.0}, {"ema": 1.0}, {"layer_decay": 0.0}],
    )
    def test_bad_numbers_are_refused(self, values: dict[str, Any]) -> None:
        """What cannot be trained with is refused before any work."""
        with pytest.raises(InputError):
            recipe(**values)


class TestPlan:
    def test_every_image_once_an_epoch(self) -> None:
        """Batches of an epoch are disjoint, and leave out fewer images than a batch."""
        plan = Plan(recipe=recipe(), own_size=64, images=tuple(range(5, 40)), seed=1)
        seen = [image for batch in plan.batches(0) for image in batch]
        assert len(seen) == len(set(seen)) == 32
        assert set(seen) <= set(range(5, 40))
        assert plan.batches(0) != plan.batches(1)
        assert plan.batches(0) == plan.batches(0)

    @pytest.mark.parametrize(("world", "parts"), [(2, 1), (1, 2), (2, 2), (4, 1)])
    def test_processes_and_parts_share_the_same_batches(self, world: int, parts: int) -> None:
        """The union over processes and parts of a step is the step of one process in one part."""
        images = tuple(range(48))
        whole = Plan(recipe=recipe(), own_size=64, images=images, seed=3).batches(2)
        split = Plan(recipe=recipe(accumulate=parts), own_size=64, images=images, seed=3)
        ranks = [split.batches(2, rank, world) for rank in range(world)]
        for step, batch in enumerate(whole):
            shared = [
                image
                for rank in ranks
                for part in rank[step * parts : (step + 1) * parts]
                for image in part
            ]
            assert sorted(shared) == sorted(batch)

    def test_a_batch_that_cannot_be_shared_is_refused(self) -> None:
        """8 images and 3 processes."""
        plan = Plan(recipe=recipe(), own_size=64, images=tuple(range(40)), seed=0)
        with pytest.raises(InputError, match="choose another --batch"):
            plan.batches(0, 0, 3)

    def test_few_images_make_a_smaller_batch(self) -> None:
        """A folder of 5 images trains in batches of 5."""
        plan = Plan(recipe=recipe(), own_size=64, images=tuple(range(5)), seed=0)
        assert plan.batch == 5
        assert plan.steps == 3

    def test_sizes_follow_the_stages(self) -> None:
        """A stage without a size has the model's."""
        stages = (Stage(size=32, epochs=2), Stage(size=None, epochs=1))
        plan = Plan(recipe=recipe(stages=stages), own_size=64, images=tuple(range(16)), seed=0)
        assert [(e.size, e.first_step) for e in plan.epochs()] == [(32, 0), (32, 2), (64, 4)]

    def test_held_out_images_are_not_trained_on(self) -> None:
        """Every n-th, and nothing twice or lost."""
        trained, measured = held_out(10, 3)
        assert list(measured) == [2, 5, 8]
        assert sorted([*trained, *measured]) == list(range(10))
        assert held_out(4, 0) == ([0, 1, 2, 3], [])


class TestPace:
    def test_steps_are_equal_by_default(self) -> None:
        """The schedule is where the steps are."""
        plan = self.plan("steps")
        assert [plan.pace(step) for step in range(plan.steps + 1)] == list(range(plan.steps + 1))

    def test_pixels_share_the_schedule(self) -> None:
        """Oracle by hand: 3 epochs of 32 px and 1 of 64 px cost 3 and 4 parts of 7, in 8 steps."""
        plan = self.plan("pixels")
        assert plan.steps == 8
        expected = [8 / 7 * part for part in (0, 0.5, 1, 1.5, 2, 2.5, 3, 5, 7)]
        assert [plan.pace(step) for step in range(9)] == pytest.approx(expected)

    def plan(self, pace: str) -> Plan:
        """Four epochs of two steps, the last at twice the resolution."""
        stages = (Stage(size=32, epochs=3), Stage(size=None, epochs=1))
        row = recipe(stages=stages, pace=pace)
        return Plan(recipe=row, own_size=64, images=tuple(range(16)), seed=0)


class TestOptimizer:
    def test_learning_rate(self) -> None:
        """Linear to the peak, then (1 + cos)/2 down to a hundredth of it."""
        row = recipe(lr=2.0)
        rates = [learning_rate(row, step, 100, 10) for step in range(101)]
        assert rates[0] == pytest.approx(0.2)
        assert rates[9] == pytest.approx(2.0)
        assert rates[10] == pytest.approx(2.0)
        middle = 2.0 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 0.5)))
        assert rates[55] == pytest.approx(middle)
        assert rates[100] == pytest.approx(0.02)

    def test_layers_below_learn_slower(self, small_model: TinyVitForImageClassification) -> None:
        """The head has factor 1, and each block below it one factor more: 5 blocks, then the stem.

        The order is that of `named_parameters`, in which data flows through the model.
        """
        model = copy.deepcopy(small_model)
        optimizer = make_optimizer(model, recipe(layer_decay=0.5))
        set_learning_rate(optimizer, 1.0)
        rate = {
            id(parameter): group["lr"]
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        named = {name: rate[id(parameter)] for name, parameter in model.named_parameters()}
        assert named["classifier.weight"] == named["tinyvit.layernorm.weight"] == 1.0
        assert named["tinyvit.encoder.stages.3.layers.0.attn.qkv.weight"] == 0.5
        assert named["tinyvit.encoder.stages.0.layers.0.conv1.convolution.weight"] == 0.5**5
        stem = [value for name, value in named.items() if "embeddings" in name]
        assert set(stem) == {0.5**6}
        ordered = [value for name, value in named.items() if "downsample" not in name]
        assert ordered == sorted(ordered)

    def test_only_matrices_decay(self, small_model: TinyVitForImageClassification) -> None:
        """Norms, biases and the tables of attention biases are left alone; kernels are not."""
        model = copy.deepcopy(small_model)
        optimizer = make_optimizer(model, recipe(weight_decay=0.3))
        decay = {
            id(parameter): group["weight_decay"]
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for name, parameter in model.named_parameters():
            free = parameter.ndim == 1 or name.endswith("attention_biases")
            assert decay[id(parameter)] == (0.0 if free else 0.3), name

    def test_ema_is_the_weighted_sum(self) -> None:
        """Against the recurrence written out, with its young phase."""
        torch.manual_seed(0)
        layer = nn.BatchNorm1d(3)
        ema = Ema(layer, 0.9)
        expected = layer.weight.detach().clone()
        for step in range(30):
            with torch.no_grad():
                layer.weight.copy_(torch.randn(3))
                layer.num_batches_tracked += 1
            decay = min(0.9, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * layer.weight.detach()
            ema.update(layer, step)
        torch.testing.assert_close(ema.state["weight"], expected)
        assert int(ema.state["num_batches_tracked"]) == 30


def smaller_windows(
    model: TinyVitForImageClassification, windows: list[int]
) -> TinyVitForImageClassification:
    """The same weights in a model that is made with other windows: the oracle of `fit_windows`.

    The biases of offsets beyond a window are cut off its table.
    """
    config = TinyVitConfig(**{**model.config.to_dict(), "window_sizes": windows})
    state = model.state_dict()
    for key, table in state.items():
        if key.endswith("attention_biases"):
            side = math.isqrt(table.shape[1])
            window = windows[int(key.split(".")[3])]
            square: Tensor = table.view(-1, side, side)[:, :window, :window]
            state[key] = square.reshape(len(table), -1)
    other = TinyVitForImageClassification(config)
    other.load_state_dict(state)
    return other.eval()


class TestStudent:
    def test_windows_fit_the_map(self, small_model: TinyVitForImageClassification) -> None:
        """A model that is made with the smaller windows gives the same logits."""
        model = copy.deepcopy(small_model)
        # 32 px: maps of 8, 4, 2 and 1 tokens a side under windows of 4, 4, 3 and 2
        oracle = smaller_windows(model, [4, 4, 2, 1])
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            padded = model(images).logits
            fit_windows(model, 32)
            torch.testing.assert_close(model(images).logits, oracle(images).logits)
            assert (model(images).logits - padded).abs().max() > 1e-2

    def test_own_size_restores_the_model(self, small_model: TinyVitForImageClassification) -> None:
        """There and back again changes nothing."""
        model = copy.deepcopy(small_model)
        images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            before = model(images).logits
            fit_windows(model, 32)
            fit_windows(model, 64)
            assert torch.equal(model(images).logits, before)

    def test_drop_path_grows_over_the_blocks(
        self, small_model: TinyVitForImageClassification
    ) -> None:
        """Five blocks at 0, 1/4, 2/4, 3/4 and 4/4 of the rate."""
        model = copy.deepcopy(small_model)
        set_drop_path(model, 0.2)
        rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
        assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])

    def test_rows_of_known_labels_are_kept(self, digits: Checkpoint) -> None:
        """A head for other classes answers for the old ones as before."""
        checkpoint = copy.deepcopy(digits)
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            before = checkpoint.model(images).logits
            other = with_labels(checkpoint, ["7", "cat", "0"], seed=0)
            after = other.model(images).logits
        assert other.labels == ("7", "cat", "0")
        assert other.model.config.id2label == {0: "7", 1: "cat", 2: "0"}
        torch.testing.assert_close(after[:, [0, 2]], before[:, [7, 0]])
        assert after.shape == (2, 3)


def test_labels_are_mixed_in_the_share_of_the_pixels(digits_images: Path) -> None:
    """Every target has the image's own class at its share, and the partner's at the rest."""
    dataset = scan_folder(digits_images / "heldout", [str(digit) for digit in range(10)])
    source = LabelSource(dataset, policy=POLICIES["strong"], seed=5, classes=10, smoothing=0.0)
    views = source.views(1, 32)
    indices = list(range(0, 60, 3))
    for index, target in zip(indices, source.targets(1, indices), strict=True):
        mixed = views.partner(index)
        assert mixed is not None
        own, other = dataset.samples[index].label, dataset.samples[mixed[0]].label
        assert own is not None
        assert other is not None
        expected = torch.zeros(10)
        expected[own] += mixed[1].keep / 256
        expected[other] += 1 - mixed[1].keep / 256
        torch.testing.assert_close(target, expected)
