"""Training on a Ray cluster: the driver that runs `pipeline.training.worker` with Ray Train.

The driver starts the workers, forwards their progress and writes the record of the run. A dead
worker is replaced and all workers continue from the last checkpoint; a killed run continues when it
is started again; a finished run returns at once.
"""

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow.fs
import ray.train
from ray._private.runtime_env.py_modules import upload_py_modules_if_needed
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from encoders.plugins import Plugin
from encoders.spec import pretrained_folder
from pipeline.datasets.archive_tiles import blocks_kept_apart
from pipeline.runtime.cluster import ray_session
from pipeline.training.network import NodeTorchConfig
from pipeline.training.place_sources import PlaceSpec
from pipeline.training.places import write_places
from pipeline.training.record import resume_or_return, write_record
from pipeline.training.resources import ResourceRequest, SchedulingMonitor, refuse_impossible
from pipeline.training.sources import own_code
from pipeline.training.spec import TrainingJob, TrainingResult, TrainingSpec
from storage.dataset import LabelledDataset, read_info
from storage.errors import ConfigError, DivergedError, SkysiftError
from storage.location import Location
from storage.locks import exclusive_lock
from storage.progress import ProgressSink, ignore
from storage.scene import CatalogSpec

logger = logging.getLogger(__name__)

_CHECKPOINTS = "checkpoints"
_CHECKPOINTS_TO_KEEP = 2
_PRINCIPAL_ROWS = 2000
_POLL_INTERVAL_S = "0.25"  # of Ray Train's controller for reports; an epoch may take only a second


def train(
    dataset_uri: str | Location,
    spec: TrainingSpec,
    output_uri: str | Location,
    *,
    place_source: PlaceSpec | None = None,
    resume: bool = False,
    progress: ProgressSink = ignore,
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
    place_source
        What ``spec.place_pairs`` is and how its scenes are read; None for an archive or catalog at
        that address, without options.
    resume
        Continue a run that was started with other settings, where a checkpoint permits the change.
    progress
        Receives steps and epochs.

    Raises
    ------
    ConfigError
        A setting is wrong, or the folder holds another run (the message names the settings that
        differ).
    NotFoundError
        The dataset does not exist, or there is no module of a loss of one's own.
    DivergedError
        The loss, the gradient or a weight became infinite or not a number; it is not tried again.
    SkysiftError
        Training failed more often than ``max_failures`` allows, or another process (named in the
        message) works on the folder.
    """
    if spec.queue_rows and spec.loss == "macl":
        logger.warning(
            "training: queue_rows %d with macl: keys of earlier batches lower its scores (1,024 "
            "keys cost 13 points of nDCG@50, docs/results.md); without a queue, a larger "
            "batch_size fits into memory by chunk_rows",
            spec.queue_rows,
        )
    dataset = Location.of(dataset_uri).absolute
    plugins = own_code(spec)
    sources = {setting: plugin.digest for setting, plugin in plugins.items()}
    if place_source is None and spec.place_pairs is not None:
        place_source = PlaceSpec(catalog=CatalogSpec.of(spec.place_pairs))
    if place_source is not None and (digest := place_source.digest):
        sources["place_pairs"] = digest
    job = TrainingJob(
        dataset=dataset,
        dataset_digest=read_info(dataset).digest,
        spec=_with_absolute_paths(spec),
        output=Location.of(output_uri).absolute,
        sources=sources,
    )
    if (done := resume_or_return(job, resume)) is not None:
        return done
    with exclusive_lock(job.output, "training") as check_lock:
        if (done := resume_or_return(job, resume)) is not None:
            return done  # another process held the lock and has finished the run
        if place_source is not None:
            labelled = LabelledDataset.open(dataset)
            is_apart = blocks_kept_apart(labelled)
            write_places(place_source, spec, labelled.info, job.output, is_apart, progress)
        write_record(job, None)
        with ray_session():
            request = ResourceRequest.of(spec)
            refuse_impossible(request)
            outcome = _run_on_ray(job, request, plugins.values(), progress, check_lock)
        result = TrainingResult(bundle_uri=str(job.bundle), history_csv=str(job.history), **outcome)
        write_record(job, result)
        return result


def baseline_bundle(
    dataset_uri: str | Location,
    spec: TrainingSpec,
    bundle_uri: str | Location,
    kind: Literal["untrained", "features", "principal"] = "features",
) -> str:
    """Write the untrained encoder of a run, to compare the trained encoder with.

    Parameters
    ----------
    dataset_uri, spec
        As for `train`.
    bundle_uri
        Folder of the bundle.
    kind
        ``untrained``: the initial encoder, with a random head. ``features``: the features of the
        backbone. ``principal``: the features projected on ``spec.dimension`` principal directions
        of the training rows.

    Returns
    -------
    str
        The fingerprint.
    """
    from encoders.bundle import Encoder, save_bundle
    from encoders.projection import principal_head
    from pipeline.datasets.embed import sampled_features
    from pipeline.training.worker import initial_encoder

    dataset = LabelledDataset.open(dataset_uri)
    encoder = initial_encoder(dataset, spec)
    backbone, encoder_spec = encoder.backbone, encoder.spec
    if kind == "features":
        encoder_spec = replace(
            encoder_spec, head={"kind": "identity"}, dimension=backbone.dimension
        )
        encoder = Encoder(encoder_spec, backbone)
    elif kind == "principal":
        features = sampled_features(encoder, dataset, _PRINCIPAL_ROWS)
        head = principal_head(features, spec.dimension)
        encoder = Encoder(replace(encoder_spec, head={"kind": "linear"}), backbone, head)
    elif kind != "untrained":
        raise ConfigError(f"baseline {kind!r} is not untrained, features or principal")
    return save_bundle(encoder, bundle_uri)


def _with_absolute_paths(spec: TrainingSpec) -> TrainingSpec:
    """Make local folders absolute: a worker has another working directory."""
    pretrained, features, pairs = spec.pretrained, spec.features_uri, spec.place_pairs
    if pretrained is not None and (folder := pretrained_folder(pretrained)) is not None:
        pretrained = str(folder.absolute())
    features = None if features is None else str(Location(features).absolute)
    pairs = None if pairs is None else str(Location(pairs).absolute)
    return replace(spec, pretrained=pretrained, features_uri=features, place_pairs=pairs)


def _shipping(plugins: Collection[Plugin]) -> dict[str, Any]:
    """Return the runtime environment that brings the user's modules to the workers.

    Installed packages stay where they are: they may be large, and need others. A worker that lacks
    one, or has another version, says so.
    """
    roots = sorted({str(plugin.root) for plugin in plugins if not plugin.is_installed})
    if not roots:
        return {}
    # Ray uploads local folders for a whole job only, when it connects; here it is connected.
    # Files that git ignores travel too: a generated module is part of the source's digest.
    with tempfile.TemporaryDirectory(prefix="skysift-") as scratch:
        shipped = upload_py_modules_if_needed(
            {"py_modules": roots}, include_gitignore=False, scratch_dir=scratch, logger=logger
        )
    return {"py_modules": shipped["py_modules"]}


def _run_on_ray(
    job: TrainingJob,
    request: ResourceRequest,
    plugins: Collection[Plugin],
    progress: ProgressSink,
    check_lock: Callable[[], None],
) -> dict[str, Any]:
    """Run the workers to the end and return the outcome of rank 0."""
    spec = job.spec
    fs, path = job.output.filesystem()
    remote = None if job.output.is_local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    # The queue runs on the driver's node: another node may be lost and replaced during the run.
    own_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": own_node})
    trainer = TorchTrainer(
        _train_on_worker,
        train_loop_config={"job": job, "reports": reports},
        torch_config=NodeTorchConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=spec.workers,
            use_gpu=request.uses_gpu,
            resources_per_worker=dict(request.per_worker),
        ),
        run_config=ray.train.RunConfig(
            name=_CHECKPOINTS,
            storage_path=path,
            storage_filesystem=remote,
            failure_config=ray.train.FailureConfig(max_failures=spec.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=_CHECKPOINTS_TO_KEEP),
            worker_runtime_env=_shipping(plugins),  # type: ignore[call-arg]
        ),
    )
    with _environment("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_INTERVAL_S):
        fit, monitor = _Fit(trainer), SchedulingMonitor(request, progress)
        try:
            while fit.is_alive():
                check_lock()
                _forward(reports, monitor)
        finally:
            reports.shutdown()
    if fit.error is not None:
        raise _named(fit.error, job) from fit.error
    if isinstance(fit.outcome, SkysiftError):
        raise fit.outcome
    outcome: dict[str, Any] = fit.outcome
    return outcome


class _Fit(threading.Thread):
    """Runs Ray's blocking ``fit`` in a thread; the driver handles progress and Ctrl-C."""

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


def _forward(reports: Queue, monitor: SchedulingMonitor) -> None:
    """Forward reports of the workers for up to half a second."""
    try:
        monitor.on_report(reports.get(timeout=0.5))
        for report in reports.get_nowait_batch(reports.qsize()):
            monitor.on_report(report)
    except Empty:
        monitor.on_idle()


def _train_on_worker(config: dict[str, Any]) -> Any:
    """Run the plain worker inside a Ray Train worker, with Ray's checkpoints."""
    import torch
    from ray.train.torch import get_device

    from pipeline.training.worker import TrainingWorker

    job, reports = config["job"], config["reports"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(job.spec.cpus_per_worker)

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
            progress=reports.put_nowait,
        )
    except SkysiftError as error:
        return error  # wrong settings: all workers fail alike, and a restart would not help
    latest = ray.train.get_checkpoint()
    try:
        if latest is None:
            return worker.run(None, report)
        with latest.as_directory() as folder:
            return worker.run(Path(folder), report)
    except DivergedError as error:
        return error  # on every worker; a restart would repeat it


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
    """Return the SkysiftError of a worker, or one that names the run and Ray Train's reason."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    for failure in failures.values():
        if isinstance(failure, SkysiftError):
            return failure
    last = next(iter(failures.values()), error)
    line = (str(last).strip().splitlines() or [type(last).__name__])[-1]
    return SkysiftError(
        f"training {job.output} failed ({line}); its checkpoints are kept: start the same "
        f"command again to go on; where that fails alike, delete the folder `{_CHECKPOINTS}` first"
    )
