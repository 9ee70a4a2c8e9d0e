"""The training loop: exact over workers, exact after a restart, honest about divergence."""

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from encoders.batch_norm import GlobalBatchNorm2d, convert_sync_batch_norm
from encoders.bundle import Encoder, new_encoder
from encoders.loop import TrainingLoop, TrainingRows, map_sharded
from encoders.losses import LabelStatistics, build_loss
from encoders.places import PlaceRows
from encoders.spec import EncoderSpec, LoopSpec
from storage.errors import ConfigError, DivergedError

ROWS, CLASSES = 48, 5


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny networks lose time to threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _data() -> TrainingRows:
    rng = np.random.default_rng(0)
    labels = (rng.random((ROWS, CLASSES)) < 0.35).astype(np.uint8)
    pixels = rng.normal(3, 2, (ROWS + 8, 2, 16, 16)).astype(np.float32)
    pixels[8:, 0] += 3 * labels[:, :1, None]
    return TrainingRows(inputs=pixels, rows=np.arange(8, ROWS + 8), labels=labels)


def _encoder(double: bool = False) -> Encoder:
    spec = EncoderSpec(
        backbone="tiny-cnn",
        backbone_options={"width": 8},
        bands=("red", "nir"),
        band_mean=(3.0, 3.0),
        band_std=(2.0, 2.0),
        tile_px=16,
        dimension=8,
        head={"kind": "mlp", "hidden": 16},
    )
    return new_encoder(spec).double() if double else new_encoder(spec)


def _loop(
    spec: LoopSpec, *, double: bool = False, options: dict | None = None, **place
) -> TrainingLoop:
    data = _data()
    torch.manual_seed(0)
    statistics = LabelStatistics.from_labels(data.labels)
    criterion = build_loss("macl", statistics, dimension=8, **(options or {}))
    return TrainingLoop(_encoder(double), criterion, data, spec, **place)


def _weights(loop: TrainingLoop) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in loop.encoder.parameters()])


def _gradient(loop: TrainingLoop) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in loop.encoder.parameters()])


SPEC = LoopSpec(augment=None, epochs=2, batch_size=12, learning_rate=1e-3, gradient_clip=1e9)


AUGMENTED = replace(SPEC, augment={"noise": 0.1, "band_dropout": 0.3, "cutout": 0.2})


def _augmented(**place) -> TrainingLoop:
    """Return a loop with labels and pairs of places, whose six pairs 1, 2 and 3 workers share."""
    pixels = np.random.default_rng(1).normal(3, 2, (18, 2, 16, 16)).astype(np.float32)
    acquisitions = tuple(np.arange(2 * place, 2 * place + 2) for place in range(9))
    places = PlaceRows(inputs=pixels, places=acquisitions, weight=2.0, batch_size=6)
    return _loop(AUGMENTED, double=True, places=places, **place)


def _one_of_several(rank: int, folder: str, workers: int) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=workers)
    loop = _augmented(rank=rank, world_size=workers)
    steps = iter(loop.run_epoch())
    next(steps)
    rows = np.arange(ROWS - 1)  # not a multiple of the workers
    first = _gradient(loop)
    next(steps)
    torch.save(
        {
            "gradient": first,
            "weights": _weights(loop),
            "running": loop.encoder.backbone.stem[3].running_var,
            "embedded": torch.from_numpy(loop.embed(rows)),
        },
        f"{folder}/{rank}.pt",
    )
    # Gloo's threads abort a process that ends while something still holds the group.
    steps.close()
    del loop, steps
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("workers", [2, 3])
def test_several_workers_train_as_one_with_the_whole_augmented_batch(tmp_path: Path, workers: int):
    torch.multiprocessing.spawn(_one_of_several, (str(tmp_path), workers), nprocs=workers)
    alone = _augmented()
    steps = iter(alone.run_epoch())
    next(steps)
    expected = _gradient(alone)
    next(steps)
    for rank in range(workers):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        error = (found["gradient"] - expected).norm() / expected.norm()
        assert error < 1e-9
        torch.testing.assert_close(found["weights"], _weights(alone), atol=1e-6, rtol=0)
        running = alone.encoder.backbone.stem[3].running_var
        torch.testing.assert_close(found["running"], running)
        embedded = torch.from_numpy(alone.embed(np.arange(ROWS - 1)))
        torch.testing.assert_close(found["embedded"], embedded, atol=1e-4, rtol=0)


def test_layers_of_a_frozen_backbone_stay_frozen_on_several_workers():
    """A layer that needs no gradient but asks for one makes DDP wait for it in vain."""
    backbone = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(4))
    backbone[0].requires_grad_(False)
    convert_sync_batch_norm(backbone)
    assert [type(layer) for layer in backbone] == [GlobalBatchNorm2d] * 2
    assert [p.requires_grad for p in backbone.parameters()] == [False, False, True, True]


def test_a_global_batch_norm_alone_is_the_plain_one():
    plain = nn.Sequential(nn.BatchNorm2d(3)).train()
    ours = nn.Sequential(nn.BatchNorm2d(3)).train()
    convert_sync_batch_norm(ours)
    assert type(ours[0]) is GlobalBatchNorm2d
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(plain(x), ours(x))
    plain.load_state_dict(ours.state_dict())


def test_chunks_give_the_gradient_of_the_whole_batch():
    spec = LoopSpec(augment=None, epochs=1, batch_size=12, gradient_clip=1e9)
    whole = _loop(spec, double=True, pretrained=True)
    parts = _loop(replace(spec, chunk_rows=5), double=True, pretrained=True)
    for loop in (whole, parts):
        next(iter(loop.run_epoch()))
    torch.testing.assert_close(_gradient(parts), _gradient(whole), atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize(
    ("queue_rows", "options"), [(0, {"prototypes": 1.0, "temperature_start": 0.3}), (24, {})]
)  # the second with a moving average
def test_a_loop_restored_in_mid_epoch_ends_with_the_same_weights(queue_rows: int, options: dict):
    spec = LoopSpec(
        epochs=2,
        batch_size=12,
        augment={"noise": 0.1},
        queue_rows=queue_rows,
        ema_decay=0.9 if queue_rows else 0.0,
    )
    straight = _loop(spec, options=options)
    for _ in range(spec.epochs):
        list(straight.run_epoch())
    first = _loop(spec, options=options)
    list(first.run_epoch())
    steps = iter(first.run_epoch())
    next(steps)
    tensors, plain = first.state()
    saved = {name: value.clone() for name, value in tensors.items()}
    second = _loop(spec, options=options)
    second.restore(saved, plain)
    assert second.step == first.steps_per_epoch + 1
    list(second.run_epoch())
    assert second.step == straight.step == straight.total_steps
    assert torch.equal(_weights(second), _weights(straight))
    assert all(torch.equal(second.weights()[k], v) for k, v in straight.weights().items())


def test_training_lowers_the_loss_and_a_frozen_backbone_keeps_its_weights():
    encoder, labels = _encoder(), _data().labels
    rng = np.random.default_rng(1)
    directions = rng.standard_normal((CLASSES, encoder.backbone.dimension))
    features = labels @ directions + rng.normal(0, 0.1, (ROWS, directions.shape[1]))
    data = TrainingRows(inputs=features.astype(np.float32), rows=np.arange(ROWS), labels=labels)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    loss = build_loss("supcon-any", LabelStatistics.from_labels(labels))
    spec = LoopSpec(
        augment=None, epochs=20, batch_size=24, learning_rate=0.01, freeze_backbone=True
    )
    loop = TrainingLoop(encoder, loss, data, spec)
    list(loop.run_epoch())
    first = loop.epoch_loss
    while loop.epoch < spec.epochs:
        list(loop.run_epoch())
    assert loop.epoch_loss < first - 0.1
    after = encoder.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("head.")}
    assert set(loop.trained_weights()) == changed


def test_the_learning_rate_warms_up_and_falls_to_zero():
    loop = _loop(
        LoopSpec(augment=None, epochs=4, batch_size=12, learning_rate=1.0, warmup_epochs=1)
    )
    rates = []
    for step in range(loop.total_steps + 1):
        loop.step = step
        rates.append(loop.learning_rate)
    peak = int(np.argmax(rates))
    assert peak == loop.steps_per_epoch
    assert rates[peak] == pytest.approx(1.0)
    assert rates[0] == pytest.approx(1 / (loop.steps_per_epoch + 1))
    assert np.all(np.diff(rates[: peak + 1]) > 0)
    assert np.all(np.diff(rates[peak:]) < 0)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


def test_a_pretrained_backbone_learns_at_a_tenth_of_the_rate():
    def rates(**more) -> dict[str, float]:
        loop = _loop(replace(SPEC, backbone_learning_rate=more.pop("rate", None)), **more)
        next(iter(loop.run_epoch()))
        by_id = {id(p): g["lr"] for g in loop.optimizer.param_groups for p in g["params"]}
        return {
            part: by_id[id(next(getattr(loop.encoder, part).parameters()))] / loop.learning_rate
            for part in ("backbone", "head")
        }

    head = rates()["head"]  # the rate of the step before the current one, so not 1
    assert rates() == {"backbone": head, "head": head}
    assert rates(pretrained=True) == pytest.approx({"backbone": head / 10, "head": head})
    assert rates(pretrained=True, rate=5e-4) == pytest.approx({"backbone": head / 2, "head": head})


def test_the_moving_average_is_evaluated_and_the_last_weights_train_on():
    loop = _loop(replace(SPEC, ema_decay=0.5))
    start = {k: v.clone() for k, v in loop.trained_weights().items()}
    next(iter(loop.run_epoch()))
    last, name = _weights(loop).clone(), "head.0.weight"
    decay = 1 / 10  # of the first step
    mean = decay * start[name] + (1 - decay) * loop.trained_weights()[name]
    torch.testing.assert_close(loop.weights()[name], mean)
    z = loop.embed(np.arange(8))
    assert torch.equal(_weights(loop), last)
    loop.load_weights(loop.weights())
    loop.average = None
    assert np.array_equal(loop.embed(np.arange(8)), z)


def test_the_loss_knows_how_much_of_the_training_is_done():
    loop, seen = _loop(SPEC), []
    sums = loop.loss.sums

    def spy(*args):
        seen.append(loop.loss.progress)
        return sums(*args)

    loop.loss.sums = spy
    for _ in range(SPEC.epochs):
        list(loop.run_epoch())
    assert seen == [step / loop.total_steps for step in range(loop.total_steps)]


def test_mixed_precision_trains_in_float32_vectors():
    loop = _loop(LoopSpec(augment=None, epochs=1, batch_size=12, precision="bf16"))
    list(loop.run_epoch())
    assert np.isfinite(loop.epoch_loss)
    assert loop.embed(np.arange(4)).dtype == np.float32


def test_a_diverged_loss_is_an_error():
    loop = _loop(replace(SPEC, learning_rate=1e30))
    steps = loop.run_epoch()
    next(steps)
    before = _weights(loop).clone()
    with pytest.raises(
        DivergedError, match=r"step 2 of \d+ .epoch 1.: the loss is .* rate .*lower"
    ):
        next(steps)
    assert torch.equal(_weights(loop), before)  # the step was not taken
    with pytest.raises(DivergedError, match="running_mean are not finite"):  # of its forward pass
        loop.require_finite()


def test_a_state_of_another_network_is_refused():
    tensors, plain = _loop(SPEC).state()
    del tensors["encoder.head.0.weight"]
    tensors["encoder.head.9.weight"] = torch.zeros(1)
    with pytest.raises(ConfigError, match="another network"):
        _loop(SPEC).restore(tensors, plain)


def test_sharded_encoding_keeps_the_order_of_the_rows():
    inputs = np.arange(400, dtype=np.float32)[:, None]
    rows = np.array([399, 0, 7, *range(100, 350)])
    seen: list[int] = []
    out = map_sharded(
        lambda chunk: torch.from_numpy(chunk * 2),
        inputs,
        rows,
        device=torch.device("cpu"),
        on_progress=seen.append,
    )
    assert np.array_equal(out[:, 0], 2.0 * rows)
    assert seen == [128, 253]


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"learning_rate": 0.0}, {"precision": "fp8"}, {"ema_decay": 1.0}]
)
def test_wrong_settings_are_named(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        LoopSpec(**change)
