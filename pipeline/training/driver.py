"""Training on a Ray cluster: one driver that hands `pipeline.training.worker` to Ray Train.

The driver starts the workers, forwards their progress, and keeps the run's record. A worker that
dies is replaced and all go on from the last checkpoint; a run killed whole goes on when it is
started again; a run that is done returns at once.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow.fs
import ray.train
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.runtime.cluster import ray_session
from pipeline.training.network import ReachableTorchConfig
from pipeline.training.record import resume_or_return, write_record
from pipeline.training.resources import ResourceRequest, SchedulingMonitor, refuse_impossible
from pipeline.training.spec import TrainingJob, TrainingResult, TrainingSpec
from storage.dataset import read_info
from storage.errors import ConfigError, SkysiftError
from storage.location import StorageOptions, absolute_uri, filesystem, is_local
from storage.locks import exclusive_lock
from storage.progress import Progress, ProgressSink, quiet

_CHECKPOINTS = "checkpoints"
_KEPT = 2
_PRINCIPAL_ROWS = 2000
_POLL_S = "0.25"  # how often Ray Train's controller looks for reports; an epoch may take a second


def train(
    dataset_uri: str,
    spec: TrainingSpec,
    output_uri: str,
    *,
    options: StorageOptions | None = None,
    resume: bool = False,
    progress: ProgressSink = quiet,
) -> TrainingResult:
    """Train an encoder.

    ``output_uri`` holds ``bundle/`` (the best epoch), ``history.csv``, ``tensorboard/``,
    ``checkpoints/`` and ``run.json``. The same call again continues an unfinished run and returns
    a finished one. Only one process at a time may work on a folder.

    Parameters
    ----------
    dataset_uri
        A `storage.dataset` dataset; every worker caches a remote one on its machine.
    spec
        Settings.
    output_uri
        Folder of the run; on a cluster of several machines one that all of them reach.
    options
        Object store.
    resume
        Go on with a run that was started with other settings, where that makes sense.
    progress
        Told about steps and epochs.

    Raises
    ------
    ConfigError
        A setting is wrong, or the folder holds another run (the differing settings are named).
    NotFoundError
        The dataset is not there.
    SkysiftError
        Training failed more often than ``max_failures`` allows, or another process (it is named)
        works on the folder.
    """
    dataset_uri, output_uri = absolute_uri(dataset_uri), absolute_uri(output_uri)
    spec = _with_absolute_paths(spec)
    digest = read_info(dataset_uri, options).digest
    job = TrainingJob(
        dataset_uri=dataset_uri,
        dataset_digest=digest,
        spec=spec,
        output_uri=output_uri,
        options=options,
    )
    if (done := resume_or_return(job, resume)) is not None:
        return done
    with exclusive_lock(output_uri, "training", options) as check_claim:
        if (done := resume_or_return(job, resume)) is not None:
            return done  # the process that was at work here a moment ago has finished it
        write_record(job, None)
        with ray_session():
            demand = ResourceRequest.of(spec)
            refuse_impossible(demand)
            outcome = _run_on_ray(job, demand, progress, check_claim)
        result = TrainingResult(bundle_uri=job.bundle_uri, history_csv=job.history_uri, **outcome)
        write_record(job, result)
        return result


def baseline_bundle(
    dataset_uri: str,
    spec: TrainingSpec,
    bundle_uri: str,
    kind: Literal["untrained", "features", "principal"] = "features",
    *,
    options: StorageOptions | None = None,
) -> str:
    """Write the encoder that a run starts from, to compare a trained one with.

    Parameters
    ----------
    dataset_uri, spec
        As for `train`.
    bundle_uri
        Folder of the bundle.
    kind
        ``untrained``: as training finds it, the head random. ``features``: the backbone's features
        as they are. ``principal``: those features on ``spec.dimension`` principal directions of
        the training rows.

    Returns
    -------
    str
        The fingerprint.
    """
    from encoders.bundle import Encoder, save_bundle
    from encoders.projection import principal_head
    from pipeline.training.worker import evenly, initial_encoder
    from storage.dataset import LabelledDataset

    dataset = LabelledDataset.open(dataset_uri, options)
    encoder = initial_encoder(dataset, spec)
    backbone, described = encoder.backbone, encoder.spec
    if kind == "features":
        described = replace(described, head={"kind": "identity"}, dimension=backbone.dimension)
        encoder = Encoder(described, backbone)
    elif kind == "principal":
        rows = evenly(dataset.indices("train"), _PRINCIPAL_ROWS)
        head = principal_head(encoder.features(dataset.images[rows]), spec.dimension)
        encoder = Encoder(replace(described, head={"kind": "linear"}), backbone, head)
    elif kind != "untrained":
        raise ConfigError(f"baseline {kind!r} is not untrained, features or principal")
    return save_bundle(encoder, bundle_uri, options)


def _with_absolute_paths(spec: TrainingSpec) -> TrainingSpec:
    """Make local folders mean the same in a worker, whose working directory is another."""
    pretrained, features = spec.pretrained, spec.features_uri
    if pretrained is not None and Path(pretrained).expanduser().is_dir():
        pretrained = str(Path(pretrained).expanduser().absolute())
    features = None if features is None else absolute_uri(features)
    return replace(spec, pretrained=pretrained, features_uri=features)


def _run_on_ray(
    job: TrainingJob,
    demand: ResourceRequest,
    progress: ProgressSink,
    check_claim: Callable[[], None],
) -> dict[str, Any]:
    """Run the workers to the end and return what rank 0 came to."""
    spec = job.spec
    fs, path = filesystem(job.output_uri, job.options)
    remote = (
        None if is_local(job.output_uri) else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    )
    # On this node, since the driver ends with it anyway; another one may be lost and replaced.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    trainer = TorchTrainer(
        _train_on_worker,
        train_loop_config={"job": job, "reports": reports},
        torch_config=ReachableTorchConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=spec.workers,
            use_gpu=demand.uses_gpu,
            resources_per_worker=dict(demand.per_worker),
        ),
        run_config=ray.train.RunConfig(
            name=_CHECKPOINTS,
            storage_path=path,
            storage_filesystem=remote,
            failure_config=ray.train.FailureConfig(max_failures=spec.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=_KEPT),
        ),
    )
    with _environment("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_S):
        fit, told = _Fit(trainer), SchedulingMonitor(demand, progress)
        try:
            while fit.is_alive():
                check_claim()
                _forward(reports, told)
        finally:
            reports.shutdown()
    if fit.error is not None:
        raise _named(fit.error, job) from fit.error
    if isinstance(fit.outcome, SkysiftError):
        raise fit.outcome
    outcome: dict[str, Any] = fit.outcome
    return outcome


class _Fit(threading.Thread):
    """Ray's blocking ``fit`` beside the driver, which stays free for progress and Ctrl-C."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(daemon=True, name="ray-train-fit")
        self._trainer = trainer
        self.outcome: Any = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Wait for the workers."""
        try:
            result: Any = self._trainer.fit()
            self.outcome = result.return_value
        except Exception as error:
            self.error = error


def _forward(reports: Queue, told: SchedulingMonitor) -> None:
    """Hand on what the workers said, for up to half a second."""
    try:
        told.on_report(reports.get(timeout=0.5))
        for report in reports.get_nowait_batch(reports.qsize()):
            told.on_report(report)
    except Empty:
        told.on_idle()


def _train_on_worker(config: dict[str, Any]) -> Any:
    """Run in every Ray Train worker: the plain worker, connected to Ray's checkpoints."""
    import torch
    from ray.train.torch import get_device

    from pipeline.training.worker import TrainingWorker

    job, reports = config["job"], config["reports"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(job.spec.cpus_per_worker)

    def tell(report: Progress) -> None:
        reports.put_nowait(report)

    def report(metrics: dict[str, float], save: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="skysift-checkpoint-") as folder:
            if rank == 0:
                save(Path(folder))
            checkpoint = ray.train.Checkpoint.from_directory(folder) if rank == 0 else None
            ray.train.report(metrics, checkpoint=checkpoint)

    try:
        worker = TrainingWorker(
            job,
            rank=rank,
            world_size=context.get_world_size(),
            device=get_device(),
            progress=tell,
        )
    except SkysiftError as error:
        return error  # wrong settings: every worker finds the same, and a restart would not help
    found = ray.train.get_checkpoint()
    if found is None:
        return worker.run(None, report)
    with found.as_directory() as folder:
        return worker.run(Path(folder), report)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable for the block unless the user has set it."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def _named(error: Exception, job: TrainingJob) -> SkysiftError:
    """Turn Ray Train's failure into one of ours: a worker's own, or one that names the run."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    for failure in failures.values():
        if isinstance(failure, SkysiftError):
            return failure
    last = next(iter(failures.values()), error)
    line = (str(last).strip().splitlines() or [type(last).__name__])[-1]
    return SkysiftError(
        f"training {job.output_uri} failed ({line}); its checkpoints are kept: start the same "
        "command again to go on"
    )
