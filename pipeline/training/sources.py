"""The user's own code of a training run: found by the driver, checked by the workers.

:mod:`encoders.plugins` finds code by its name; :mod:`pipeline.training.driver` brings it to the
workers.
"""

from encoders.backbones.build import BACKBONES
from encoders.losses import loss_names
from encoders.plugins import Plugin, find_plugin, require_source
from pipeline.training.spec import TrainingJob, TrainingSpec


def own_code(spec: TrainingSpec) -> dict[str, Plugin]:
    """Return the user's own code that a run uses, by the setting that names it.

    Raises
    ------
    ConfigError, NotFoundError
        As :func:`encoders.plugins.find_plugin`.
    """
    found = {
        "loss": None if spec.loss in loss_names() else find_plugin("losses", spec.loss),
        "backbone": None if spec.backbone in BACKBONES else find_plugin("backbones", spec.backbone),
    }
    # An unknown name is refused by the workers.
    return {setting: plugin for setting, plugin in found.items() if plugin}


def require_sources(job: TrainingJob) -> None:
    """Refuse to run code of the user's own that differs from the code of the driver.

    Raises
    ------
    ConfigError
        The source is another one here.
    NotFoundError
        The module does not exist here.
    """
    for setting, plugin in own_code(job.spec).items():
        require_source(plugin, job.sources[setting])


def source_of(job: TrainingJob, setting: str) -> dict[str, str]:
    """Return the digest of one's own code for the description of an encoder; {} without any."""
    return {"source_sha256": job.sources[setting]} if setting in job.sources else {}
