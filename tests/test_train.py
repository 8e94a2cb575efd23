"""Training end to end: on digits, from a store, killed and resumed, on two processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tinyvit_edge.checkpoint import load_checkpoint, save_checkpoint
from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.distill.augment import POLICIES
from tinyvit_edge.distill.teach import TeachRequest, teach
from tinyvit_edge.errors import InputError, StoreError
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.preprocessing import preset
from tinyvit_edge.training.log import MetricsLog
from tinyvit_edge.training.recipe import Recipe, Stage
from tinyvit_edge.training.request import TrainRequest
from tinyvit_edge.training.train import train


@pytest.fixture(scope="module")
def photos(digits_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder of 8 images of each of four digits."""
    folder = tmp_path_factory.mktemp("photos")
    for digit in "0137":
        (folder / digit).mkdir()
        for path in sorted((digits_images / "train" / digit).iterdir())[:8]:
            shutil.copy(path, folder / digit)
    return folder


@pytest.fixture(scope="module")
def store(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the bundled model says of two views of them."""
    out = tmp_path_factory.mktemp("stores") / "store"
    teach(
        TeachRequest(
            teacher="digits",
            data=photos,
            out=out,
            epochs=2,
            top_k=3,
            policy=POLICIES["light"],
            image_size=64,
            batch=8,
            workers=0,
            amp="fp32",
        )
    )
    return out


def recipe(**values: Any) -> Recipe:
    """Two epochs of fine-tuning in batches of 8, a few fields changed."""
    base: dict[str, Any] = {
        "targets": "labels",
        "stages": (Stage(size=None, epochs=2),),
        "batch": 8,
        "lr": 1e-3,
    }
    return Recipe(**{**base, **values})


def request(photos: Path, out: Path, **values: Any) -> TrainRequest:
    """Training of the bundled model in this process, a few fields changed."""
    base: dict[str, Any] = {
        "recipe": recipe(),
        "data": photos,
        "out": out,
        "weights": "digits",
        "hold_out": 4,
        "workers": 0,
        "amp": "fp32",
    }
    return TrainRequest(**{**base, **values})


def weights_of(run: Path) -> dict[str, Tensor]:
    """The tensors of a run's model."""
    return load_file(run / "model" / "model.safetensors")


def same_function(one: Path, other: Path) -> None:
    """Two runs gave the same logits, up to the order of sums, and not those of their start.

    Weights are not compared: the bias of k has no effect and a gradient of nothing but rounding,
    which AdamW makes as large as any other.
    """
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first, second, start = (
            load_checkpoint(weights).model(images).logits
            for weights in (one / "model", other / "model", "digits")
        )
    torch.testing.assert_close(second, first, atol=1e-4, rtol=1e-4)
    assert start.shape != first.shape or (start - first).abs().max() > 1e-2


class TestTrain:
    def test_new_head_learns_the_folder(self, photos: Path, tmp_path: Path) -> None:
        """Labels shuffled against the bundled model's are learnt: its own head has them wrong.

        The oracle is the accuracy on images that were held out.
        """
        data = tmp_path / "data"
        for name, digit in zip(("ape", "bee", "cow", "dog"), "7310", strict=True):
            shutil.copytree(photos / digit, data / name)
        facts = train(
            request(
                data,
                tmp_path / "run",
                recipe=recipe(stages=(Stage(size=None, epochs=12),), ema=0.9, lr=2e-3),
            )
        )
        assert facts["classes"] == 4
        assert facts["measured_on"] == 8
        assert facts["top1"] >= 0.8
        checkpoint = load_checkpoint(tmp_path / "run" / "model")
        assert checkpoint.labels == ("ape", "bee", "cow", "dog")

    def test_metrics_and_run_are_written(self, photos: Path, tmp_path: Path) -> None:
        """A line an epoch for what was measured, and what decided the result."""
        train(request(photos, tmp_path / "run"))
        lines = MetricsLog.lines(tmp_path / "run" / "metrics.jsonl")
        assert [(line["kind"], line["step"]) for line in lines] == [("val", 3), ("val", 6)]
        run = json.loads((tmp_path / "run" / "run.json").read_text())
        assert run["weights"] == "digits"
        assert run["recipe"]["batch"] == 8
        assert run["trained_on"] == 24

    def test_linear_probe_changes_the_head_alone(self, photos: Path, tmp_path: Path) -> None:
        """Every other tensor, BatchNorm's statistics among them, is the bundled one's."""
        train(
            request(photos, tmp_path / "run", recipe=recipe(train="head", freeze_bn=True, ema=0.0))
        )
        before = load_checkpoint("digits").model.state_dict()
        after = load_checkpoint(tmp_path / "run" / "model").model.state_dict()
        kept = [key for key in before if not key.startswith("classifier.")]
        assert all(torch.equal(before[key], after[key]) for key in kept)
        assert not torch.equal(before["classifier.weight"][0], after["classifier.weight"][0])

    @pytest.mark.parametrize("frozen", [True, False])
    def test_frozen_batch_norm_keeps_its_statistics(
        self, photos: Path, tmp_path: Path, frozen: bool
    ) -> None:
        """Statistics stay if frozen, and move if not; weights move in both."""
        train(request(photos, tmp_path / "run", recipe=recipe(freeze_bn=frozen, ema=0.0)))
        before = load_checkpoint("digits").model.state_dict()
        after = load_checkpoint(tmp_path / "run" / "model").model.state_dict()
        same = {key: torch.equal(before[key], after[key]) for key in before if key in after}
        assert all(same[key] == frozen for key in same if key.endswith("running_mean"))
        assert not same["tinyvit.encoder.stages.1.layers.0.attn.qkv.weight"]

    def test_accumulation_changes_nothing_but_memory(self, photos: Path, tmp_path: Path) -> None:
        """A batch in two parts gives the gradient of the whole, where no statistics are taken."""
        for parts in (1, 2):
            train(
                request(
                    photos,
                    tmp_path / str(parts),
                    recipe=recipe(freeze_bn=True, accumulate=parts, ema=0.0),
                    hold_out=0,
                )
            )
        same_function(tmp_path / "1", tmp_path / "2")

    def test_rising_resolution_ends_at_the_models_own(
        self, photos: Path, store: Path, tmp_path: Path
    ) -> None:
        """The saved model has its own windows, runs at its own size, and was trained at two."""
        stages = (Stage(size=32, epochs=1), Stage(size=64, epochs=1))
        train(
            request(
                photos, tmp_path / "run", recipe=recipe(stages=stages, targets="store"), store=store
            )
        )
        lines = MetricsLog.lines(tmp_path / "run" / "metrics.jsonl")
        assert [line["size"] for line in lines] == [32, 64]
        checkpoint = load_checkpoint(tmp_path / "run" / "model")
        assert checkpoint.model.config.window_sizes == [4, 4, 3, 2]
        assert checkpoint.preprocessing.size == 64

    def test_higher_resolution_resamples_the_biases(self, photos: Path, tmp_path: Path) -> None:
        """224 to 384 px: the family's windows of 7, 7, 14, 7 become 12, 12, 24, 12."""
        config = TinyVitConfig(
            hidden_sizes=[8, 16, 16, 16], depths=[1] * 4, num_heads=[1] * 4, num_labels=4
        )
        start = replace(
            load_checkpoint("digits"),
            model=TinyVitForImageClassification(config),
            labels=tuple("0137"),
            preprocessing=preset("microsoft", 224),
        )
        save_checkpoint(start, tmp_path / "start")
        train(
            request(
                photos,
                tmp_path / "run",
                weights=str(tmp_path / "start"),
                image_size=384,
                recipe=recipe(stages=(Stage(size=None, epochs=1),)),
                hold_out=0,
            )
        )
        checkpoint = load_checkpoint(tmp_path / "run" / "model")
        assert checkpoint.preprocessing == preset("microsoft", 384)
        assert checkpoint.model.config.window_sizes == [12, 12, 24, 12]
        table = checkpoint.model.state_dict()[
            "tinyvit.encoder.stages.2.layers.0.attn.attention_biases"
        ]
        assert table.shape == (1, 24**2)

    def test_half_writes_half_the_bytes(self, photos: Path, tmp_path: Path) -> None:
        """float16 in the file, float32 once loaded."""
        train(request(photos, tmp_path / "run", half=True))
        state = weights_of(tmp_path / "run")
        assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float16}
        model = load_checkpoint(tmp_path / "run" / "model").model
        assert {v.dtype for v in model.parameters()} == {torch.float32}


class TestDistill:
    def test_student_gets_the_teachers_classes(
        self, photos: Path, store: Path, tmp_path: Path
    ) -> None:
        """All ten with --classes teacher, the four folders' with data."""
        for classes, count in (("teacher", 10), ("data", 4)):
            facts = train(
                request(
                    photos,
                    tmp_path / classes,
                    store=store,
                    classes=classes,
                    recipe=recipe(targets="store", lr=1e-5),
                )
            )
            assert facts["classes"] == count
            # the bundled model is its own teacher here: little can be lost
            assert facts["top1"] >= 0.8

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"store": None}, "needs --store"),
            ({"store": Path("nowhere")}, "not a store"),
            ({"recipe": recipe(targets="labels")}, "trains on labels"),
        ],
    )
    def test_what_does_not_go_together_is_refused(
        self, photos: Path, store: Path, tmp_path: Path, values: dict[str, Any], message: str
    ) -> None:
        """Before any work, and nothing is written."""
        base = {"store": store, "recipe": recipe(targets="store")}
        with pytest.raises(InputError, match=message):
            train(request(photos, tmp_path / "run", **{**base, **values}))
        assert not (tmp_path / "run").exists()

    def test_missing_image_is_refused(self, photos: Path, store: Path, tmp_path: Path) -> None:
        """The store names the image that is gone."""
        data = tmp_path / "data"
        shutil.copytree(photos, data)
        victim = sorted((data / "3").iterdir())[2]
        victim.unlink()
        with pytest.raises(StoreError, match=f"3/{victim.name} is missing"):
            train(request(data, tmp_path / "run", store=store, recipe=recipe(targets="store")))


class TestResume:
    def test_other_settings_are_refused(self, photos: Path, tmp_path: Path) -> None:
        """A folder that holds another run is not written over, and what differs is named."""
        train(request(photos, tmp_path / "run"))
        with pytest.raises(InputError, match="differs in recipe, seed"):
            train(request(photos, tmp_path / "run", seed=1, recipe=recipe(lr=1e-4)))

    def test_damaged_state_is_refused(self, photos: Path, tmp_path: Path) -> None:
        """Half a state is not trained on."""
        train(request(photos, tmp_path / "run"))
        state = tmp_path / "run" / "state.pt"
        state.write_bytes(state.read_bytes()[:1000])
        with pytest.raises(InputError, match="remove it to begin again"):
            train(request(photos, tmp_path / "run"))

    def test_finished_run_is_cheap_and_the_same(self, photos: Path, tmp_path: Path) -> None:
        """Asked again, it writes the same model without a step."""
        train(request(photos, tmp_path / "run"))
        before = weights_of(tmp_path / "run")
        log = (tmp_path / "run" / "metrics.jsonl").read_text()
        train(request(photos, tmp_path / "run"))
        after = weights_of(tmp_path / "run")
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == log

    def test_killed_run_ends_as_if_it_had_not_been(
        self, photos: Path, store: Path, tmp_path: Path, cli: Callable[..., Any]
    ) -> None:
        """Kill -9 between two states; every tensor equals the uninterrupted run's, to the bit."""
        arguments = [
            *("train", "distill", "--data", str(photos), "--store", str(store)),
            *("--weights", "digits", "--stages", "32:20,64:10", "--batch", "8", "--lr", "1e-3"),
            *("--threads", "1", "--workers", "0", "--save-steps", "5", "--amp", "fp32", "-q"),
        ]
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        assert cli(*arguments, "--out", whole)[0] == 0
        command = [sys.executable, "-m", "tinyvit_edge", *arguments, "--out", str(killed)]
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 120
        while not (killed / "state.pt").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (killed / "model").exists()
        assert subprocess.run(command, check=False).returncode == 0
        expected, resumed = weights_of(whole), weights_of(killed)
        assert all(torch.equal(expected[key], resumed[key]) for key in expected)
        logs = [
            [line for line in MetricsLog.lines(run / "metrics.jsonl") if line["kind"] == "val"]
            for run in (whole, killed)
        ]
        assert logs[0] == logs[1]


def test_two_processes_equal_one(photos: Path, tmp_path: Path) -> None:
    """Under torchrun with gloo, the same batch of 8 in halves; BatchNorm keeps its statistics.

    The oracle is the run on one process.
    """
    arguments = [
        *("-m", "tinyvit_edge", "train", "finetune", "--data", str(photos), "--weights", "digits"),
        *("--stages", "2", "--batch", "8", "--lr", "1e-4", "--workers", "0", "--threads", "1"),
        *("--amp", "fp32", "-q", "--hold-out", "4", "--ema", "0", "--out"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments, str(tmp_path / "one")], check=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [sys.executable, *launcher, *arguments, str(tmp_path / "two")],
        check=True,
        env=environment,
        capture_output=True,
    )
    same_function(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "finetun"], "did you mean finetune"),
        (["train", "finetune"], "give --weights"),
        (["train", "finetune", "--weights", "nowhere"], "no such file"),
        (["train", "scratch", "--variant", "tiny_vit_5m"], "did you mean"),
        (["train", "finetune", "--weights", "digits", "--amp", "fp16"], "needs a GPU"),
        (["train", "finetune", "--weights", "digits", "--stages", "x"], "SIZE:EPOCHS"),
        (["train", "distill", "--weights", "digits"], "needs --store"),
    ],
)
def test_bad_input_is_one_line(
    photos: Path,
    tmp_path: Path,
    arguments: list[str],
    words: str,
    cli: Callable[..., Any],
) -> None:
    """Exit code 2, one line on stderr, nothing written."""
    out = tmp_path / "run"
    status, _, err = cli(*arguments, "--data", photos, "--out", out)
    assert status == 2
    lines = err.strip().splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    assert not out.exists()
