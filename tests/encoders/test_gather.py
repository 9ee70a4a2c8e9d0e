"""PartialResult gradients against one process with the whole batch."""

from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from encoders.gather import KeyQueue, average_gradients, cached_backward, gather_keys, global_loss
from encoders.losses import LabelStatistics, build_loss, loss_names
from storage.errors import ConfigError

LOCAL, FEATURES, DIMENSION, CLASSES = 6, 5, 4, 4
CHUNKED = {
    "macl": {
        "chunk_pairs": 20,
        "kappa": 2.0,
        "alpha": 0.5,
        "exactness": 0.5,
        "prototypes": 0.5,
        "temperature_start": 0.3,
    }
}


def world(workers):
    """Features and labels of a global batch whose workers have 6, 3, 1 and some usable anchors."""
    rng = np.random.default_rng(workers)
    rows = LOCAL * workers
    x_GF = torch.tensor(rng.normal(size=(rows, FEATURES)))
    y_GC = torch.tensor((rng.random((rows, CLASSES)) < 0.4).astype(np.float64))
    y_GC[:LOCAL, 0] = 1
    y_GC[LOCAL + 3 : LOCAL + 6] = 0
    y_GC[2 * LOCAL + 1 : 3 * LOCAL] = 0
    return x_GF, y_GC


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, DIMENSION)).double()


def loss_of(name, y_GC):
    torch.manual_seed(1)
    statistics = LabelStatistics.from_labels(y_GC.numpy())
    options = CHUNKED.get(name, {}) | ({"clusters": 2} if name == "ifnd" else {})
    return build_loss(name, statistics, dimension=DIMENSION, **options).double()


def gradients(*modules):
    return [p.grad.clone() for module in modules for p in module.parameters()]


def step(name, x_GF, y_GC):
    """Loss and gradients of one process with the whole batch."""
    model, loss = encoder(), loss_of(name, y_GC)
    value = loss(normalize(model(x_GF)), y_GC)
    value.backward()
    return value.detach(), gradients(model, loss)


def gathered_step(name, workers, group, backward):
    """The same from one of the workers of a group, averaged as DDP does."""
    x_GF, y_GC = world(workers)
    rank = dist.get_rank(group)
    own = slice(rank * LOCAL, (rank + 1) * LOCAL)
    model = DistributedDataParallel(encoder(), process_group=group)
    loss = loss_of(name, y_GC)
    value = backward(model, loss, x_GF[own], y_GC[own], group)
    average_gradients(loss, group)
    dist.all_reduce(value, group=group)
    return value / workers, gradients(model.module, loss)


def plain(model, loss, x_BF, y_BC, group):
    value = global_loss(loss, normalize(model(x_BF)), y_BC, group)
    value.backward()
    return value.detach()


def cached(model, loss, x_BF, y_BC, group):
    return cached_backward(
        lambda x: normalize(model(x)), x_BF.split(4), y_BC, loss, group=group, no_sync=model.no_sync
    )


def worker(rank, store, results):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=4,
        timeout=timedelta(seconds=60),
    )
    groups = {4: dist.group.WORLD, 3: dist.new_group([0, 1, 2]), 2: dist.new_group([0, 1])}
    out = {}
    for workers, group in groups.items():
        if rank < workers:
            for name in loss_names():
                out[f"{name} {workers}"] = gathered_step(name, workers, group, plain)
            out[f"macl {workers} cached"] = gathered_step("macl", workers, group, cached)
    if rank == 0:
        torch.save(out, results)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def gathered(tmp_path_factory):
    """Loss and gradients of every loss at 2, 3 and 4 workers, from real gloo processes."""
    folder = tmp_path_factory.mktemp("gather")
    results = folder / "results.pt"
    torch.multiprocessing.spawn(worker, (folder / "store", results), nprocs=4)
    return torch.load(results, weights_only=True)


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("name", [*loss_names(), "macl cached"])
def test_gathered_gradient_is_that_of_one_process(gathered, name, workers):
    name, *cached_ = name.split()
    value, gradient = gathered[" ".join([name, str(workers), *cached_])]
    expected_value, expected = step(name, *world(workers))
    assert max(g.abs().max() for g in expected) > 1e-3
    torch.testing.assert_close(value, expected_value, rtol=0, atol=1e-9)
    for got, want in zip(gradient, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_one_process_needs_no_process_group():
    x_GF, y_GC = world(2)
    z = normalize(encoder()(x_GF))
    keys, labels, offset = gather_keys(z, y_GC)
    assert keys is z
    assert labels is y_GC
    assert offset == 0
    loss = loss_of("macl", y_GC)
    assert global_loss(loss, z, y_GC) == loss(z, y_GC)


def test_cached_gradient_replays_dropout():
    x_GF, y_GC = world(3)
    model = nn.Sequential(encoder(), nn.Dropout(0.5))
    loss = loss_of("supcon-any", y_GC)
    chunks = x_GF.split(5)

    torch.manual_seed(5)
    z = torch.cat([model(chunk) for chunk in chunks])
    loss(normalize(z), y_GC).backward()
    expected = gradients(model)
    model.zero_grad()

    torch.manual_seed(5)
    # normalize() after dropout may meet a zero row: it stays zero.
    cached_backward(lambda x: normalize(model(x)), chunks, y_GC, loss)
    for got, want in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_queue_keeps_the_newest_keys_without_gradient():
    queue = KeyQueue(5, DIMENSION, CLASSES)
    x_GF, y_GC = world(1)
    first, second = x_GF[:3, :4].float(), x_GF[3:6, :4].float()
    queue.push(first, y_GC[:3])
    queue.push(second.requires_grad_(), y_GC[3:6])
    z, y = queue.extend(torch.zeros(1, DIMENSION), torch.zeros(1, CLASSES))
    assert not z.requires_grad
    torch.testing.assert_close(z, torch.cat([torch.zeros(1, 4), second.detach(), first[:2]]))
    torch.testing.assert_close(y[1:].double(), torch.cat([y_GC[3:6], y_GC[:2]]))
    copy = KeyQueue(5, DIMENSION, CLASSES)
    copy.load_state_dict(queue.state_dict())
    torch.testing.assert_close(copy.extend(z, y), queue.extend(z, y))


def test_queued_keys_take_part_in_the_next_loss():
    x_GF, y_GC = world(2)
    z = normalize(encoder()(x_GF)).detach().float()
    y = y_GC.float()
    loss = build_loss("supcon-any", LabelStatistics.from_labels(y.numpy()))
    queue = KeyQueue(6, DIMENSION, CLASSES)
    global_loss(loss, z[:6], y[:6], queue=queue)
    value = global_loss(loss, z[6:], y[6:], queue=queue)
    expected = loss(z[6:], y[6:], keys=(torch.cat([z[6:], z[:6]]), torch.cat([y[6:], y[:6]])))
    torch.testing.assert_close(value, expected)
    assert not torch.isclose(value, loss(z[6:], y[6:]))


def test_queue_without_rows_is_refused():
    with pytest.raises(ConfigError, match="at least one row"):
        KeyQueue(0, DIMENSION, CLASSES)
