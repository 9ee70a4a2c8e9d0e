"""`skysift evaluate`: retrieval scores of a dataset or an archive."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from storage.errors import ConfigError
from storage.location import Location
from workflows.commands.common import Run, Verb, pass_run, recipe_option
from workflows.console import ProgressView, format_table

if TYPE_CHECKING:
    from encoders.bundle import Encoder


@click.command(
    "evaluate",
    cls=Verb,
    example="""
    skysift evaluate --dataset work/aid/dataset --encoder work/aid/run/bundle
    skysift evaluate --dataset work/aid/dataset --backbone dinov2 --pretrained facebook/dinov2-small
    skysift evaluate -r naip-series --same-place
    skysift evaluate --archive work/archive""",
)
@recipe_option("--dataset", "dataset.uri")
@recipe_option("--encoder", "encoder.bundle")
@recipe_option("--backbone", "encoder.backbone")
@recipe_option("--pretrained", "encoder.pretrained")
@recipe_option("--archive", "archive.uri")
@recipe_option("-k --k", "evaluate.k")
@click.option("--same-place", is_flag=True, help="Score an archive by place, without labels.")
@click.option("--archive-labels", is_flag=True, help="Score an archive by the labels it holds.")
@pass_run
def evaluate(run: Run, same_place: bool, archive_labels: bool) -> None:
    """Score retrieval, beside a random ranking.

    On a dataset: its test split searches its train and val splits by labels (val searches
    train), with the encoder of a bundle, or with --pretrained the one that `skysift encoder make`
    would write. On an archive with labels: every tile searches all others. With --same-place: a
    tile of one scene should find the same ground in the other scenes.
    """
    if same_place:
        _by_place(run)
    elif archive_labels or run.recipe.dataset.uri is None:
        _archive_labels(run)
    else:
        _dataset_labels(run)


def _by_place(run: Run) -> None:
    from pipeline.analysis.evaluation import same_place_recall

    archive = run.open_archive()
    columns = archive.read_all(["embedding", "tile_key", "scene"])
    depths = run.recipe.evaluate.same_place_k
    found = same_place_recall(
        columns["embedding"],
        columns["tile_key"],
        columns["scene"],
        depths,
        most_queries=run.recipe.evaluate.most_queries,
        seed=run.recipe.evaluate.seed,
    )
    rows = [
        [f"same place recall@{k}", found[f"recall@{k}"], found[f"random recall@{k}"]]
        for k in depths
    ]
    note = f"{found['queries']:,.0f} queries, {found['scenes']:.0f} scenes, archive {archive.uri}"
    run.show(
        {"archive": archive.uri, **found},
        [*format_table(["metric", "found", "random"], rows), "", note],
    )


def _archive_labels(run: Run) -> None:
    import numpy as np

    from pipeline.analysis.evaluation import evaluate_labels

    archive = run.open_archive()
    if not archive.spec.classes:
        raise ConfigError(
            f"archive {archive.uri} holds no labels; use --same-place, or --dataset with labels"
        )
    columns = archive.read_all(["embedding", "labels"])
    vectors, labels = columns["embedding"].astype(np.float32), columns["labels"]
    rng = np.random.default_rng(run.recipe.evaluate.seed)
    count = min(run.recipe.evaluate.most_queries, len(vectors))
    queries = np.sort(rng.choice(len(vectors), count, replace=False))
    found = evaluate_labels(
        vectors[queries],
        labels[queries],
        vectors,
        labels,
        archive.spec.classes,
        k=run.recipe.evaluate.k,
        exclude_self=queries,
    )
    _show(run, {"archive": archive.uri, **asdict(found)})


def _dataset_labels(run: Run) -> None:
    import numpy as np

    from pipeline.analysis.evaluation import evaluate_labels
    from pipeline.datasets.embed import embed_images
    from storage.dataset import LabelledDataset, searched_splits

    uri = run.need_path("dataset.uri")
    source, encoder = _encoder(run)
    dataset = LabelledDataset.open(uri)
    split = run.recipe.evaluate.split
    queries, database = dataset.labelled(split), dataset.labelled(*searched_splits(split))
    with ProgressView() as progress:
        rows = np.concatenate([queries, database])
        vectors = embed_images(encoder, dataset, rows, progress=progress)
    found = evaluate_labels(
        vectors[: len(queries)],
        dataset.labels[queries],
        vectors[len(queries) :],
        dataset.labels[database],
        dataset.classes,
        k=run.recipe.evaluate.k,
        exclude_self=np.arange(len(queries)) if split == "train" else None,
        rare_counts=dataset.labels[dataset.labelled("train")].sum(axis=0),
    )
    facts = {"dataset": uri, "encoder": source, "fingerprint": encoder.fingerprint}
    _show(run, {**facts, **asdict(found)})


def _encoder(run: Run) -> tuple[str, "Encoder"]:
    """Return the encoder to score and where it comes from."""
    from encoders.bundle import load_encoder

    section = run.recipe.encoder
    if run.is_given("encoder.pretrained") or run.is_given("encoder.backbone"):
        weights = section.pretrained or "random weights"
        return f"{section.backbone}, {weights}", run.untrained_encoder()[0]
    bundle = _bundle(run)
    return str(bundle), load_encoder(bundle)


def _bundle(run: Run) -> Location:
    """Return the encoder to score: the one that is named, or that of the recipe's training.

    Raises
    ------
    ConfigError
        Neither is there.
    """
    output = run.recipe.training.output
    if run.recipe.encoder.bundle is None and output is not None:
        trained = Location.of(output) / "bundle"
        if not trained.is_local or trained.path.exists():
            return trained
        raise ConfigError(
            f"there is no encoder at {trained}: `skysift train` with the same recipe makes it; or "
            "give one with --encoder"
        )
    return run.need_path("encoder.bundle")


def _show(run: Run, found: Mapping[str, Any]) -> None:
    random = found["random"]
    rows = [[name, value, random.get(name)] for name, value in found["metrics"].items()]
    note = f"{found['queries']:,} queries over {found['items']:,} items"
    run.show(found, [*format_table(["metric", "found", "random"], rows), "", note])
