"""Settings of a training run: one declaration of each, stable on disk."""

from dataclasses import fields, replace

import pytest

from encoders.spec import LoopSpec
from pipeline.training.spec import ADDED, TrainingJob, TrainingSpec, plain
from storage.errors import ConfigError
from storage.location import Location, StorageOptions


def test_the_settings_of_the_loop_are_inherited():
    inherited = {part.name for part in fields(LoopSpec)}
    assert not inherited & set(TrainingSpec.__annotations__)


def test_a_run_of_before_is_the_same_run():
    job = TrainingJob(
        dataset=Location("a"), dataset_digest="b", spec=TrainingSpec(), output=Location("c")
    )
    assert job.digest == "9f0674689f048f5163e3c7f3b2f9ec21aef0906805b1217cad51e6d0b436680e"
    before = {k: v for k, v in plain(job.spec).items() if k not in ADDED}
    assert job.spec.differences(before) == []
    assert replace(job, spec=TrainingSpec(ema_decay=0.9)).digest != job.digest


def test_wrong_settings_of_the_loop_are_refused_before_a_worker_starts():
    for change in ({"learning_rate": 0.0}, {"gradient_clip": -1.0}, {"precision": "fp8"}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            TrainingSpec(**change)


def test_a_job_carries_the_options_of_its_places_and_shows_no_secret():
    options = StorageOptions(access_key_id="key", secret_access_key="secret")
    output = Location("s3://bucket/run", options)
    job = TrainingJob(dataset=Location("a"), dataset_digest="b", spec=TrainingSpec(), output=output)
    assert job.bundle == Location("s3://bucket/run/bundle", options)
    assert "secret" not in repr(job)
