"""`skysift evaluate`: retrieval scores of a dataset or an archive."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from storage.errors import ConfigError
from workflows.commands.common import Run, Verb, pass_run, recipe_option
from workflows.console import ProgressView, format_table

if TYPE_CHECKING:
    from encoders.bundle import Encoder
    from encoders.ranking import Floats
    from pipeline.analysis.evaluation import LabelEvaluation
    from storage.parts import Parts

T = TypeVar("T")


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
@click.option(
    "--blend",
    "blends",
    type=click.FLOAT,
    multiple=True,
    metavar="W",
    help="Weights of appearance to score, 0 to 1, for vectors of two parts; repeatable. Both ends, "
    "the encoder's own and 0.5 without.",
)
@pass_run
def evaluate(run: Run, same_place: bool, archive_labels: bool, blends: tuple[float, ...]) -> None:
    """Score retrieval, beside a random ranking.

    On a dataset: its test split searches its train and val splits by labels (val searches
    train), with the encoder of a bundle, or with --pretrained the one that `skysift encoder make`
    would write. On an archive with labels: every tile searches all others. With --same-place: a
    tile of one scene should find the same ground in the other scenes. Vectors of two parts are
    scored at several blends.
    """
    if same_place:
        _by_place(run, blends)
    elif archive_labels or run.recipe.dataset.uri is None:
        _archive_labels(run, blends)
    else:
        _dataset_labels(run, blends)


def _by_place(run: Run, blends: Sequence[float]) -> None:
    from pipeline.analysis.evaluation import blends_to_score, same_place_recall

    archive = run.open_archive()
    ways = blends_to_score(archive.spec.parts, blends)
    columns = archive.read_all(["embedding", "tile_key", "scene"])
    depths = run.recipe.evaluate.same_place_k
    each = {
        blend: same_place_recall(
            weigh(columns["embedding"]),
            columns["tile_key"],
            columns["scene"],
            depths,
            most_queries=run.recipe.evaluate.most_queries,
            seed=run.recipe.evaluate.seed,
        )
        for blend, weigh in ways.items()
    }
    own, found = _own(archive.spec.parts, each)
    rows = [
        [
            f"same place recall@{k}",
            *(of[f"recall@{k}"] for of in each.values()),
            found[f"random recall@{k}"],
        ]
        for k in depths
    ]
    note = f"{found['queries']:,.0f} queries, {found['scenes']:.0f} scenes, archive {archive.uri}"
    run.show(
        {"archive": archive.uri, **found, **own},
        [*format_table(_head(each), rows), "", note],
    )


def _archive_labels(run: Run, blends: Sequence[float]) -> None:
    import numpy as np

    from pipeline.analysis.evaluation import blends_to_score, evaluate_labels

    archive = run.open_archive()
    if not archive.spec.classes:
        raise ConfigError(
            f"archive {archive.uri} holds no labels; use --same-place, or --dataset with labels"
        )
    ways = blends_to_score(archive.spec.parts, blends)
    columns = archive.read_all(["embedding", "labels"])
    vectors, labels = columns["embedding"].astype(np.float32), columns["labels"]
    rng = np.random.default_rng(run.recipe.evaluate.seed)
    count = min(run.recipe.evaluate.most_queries, len(vectors))
    queries = np.sort(rng.choice(len(vectors), count, replace=False))

    def scored(weighted: "Floats") -> "LabelEvaluation":
        return evaluate_labels(
            weighted[queries],
            labels[queries],
            weighted,
            labels,
            archive.spec.classes,
            k=run.recipe.evaluate.k,
            exclude_self=queries,
        )

    each = {blend: scored(weigh(vectors)) for blend, weigh in ways.items()}
    _show(run, {"archive": archive.uri}, archive.spec.parts, each)


def _dataset_labels(run: Run, blends: Sequence[float]) -> None:
    import numpy as np

    from pipeline.analysis.evaluation import blends_to_score, evaluate_labels
    from pipeline.datasets.embed import embed_images
    from storage.dataset import LabelledDataset, searched_splits

    uri = run.need_path("dataset.uri")
    source, encoder = _encoder(run)
    ways = blends_to_score(encoder.spec.parts, blends)
    dataset = LabelledDataset.open(uri)
    split = run.recipe.evaluate.split
    queries, database = dataset.labelled(split), dataset.labelled(*searched_splits(split))
    with ProgressView() as progress:
        rows = np.concatenate([queries, database])
        vectors = embed_images(encoder, dataset, rows, progress=progress)

    def scored(weighted: "Floats") -> "LabelEvaluation":
        return evaluate_labels(
            weighted[: len(queries)],
            dataset.labels[queries],
            weighted[len(queries) :],
            dataset.labels[database],
            dataset.classes,
            k=run.recipe.evaluate.k,
            exclude_self=np.arange(len(queries)) if split == "train" else None,
            rare_counts=dataset.labels[dataset.labelled("train")].sum(axis=0),
        )

    each = {blend: scored(weigh(vectors)) for blend, weigh in ways.items()}
    facts = {"dataset": uri, "encoder": source, "fingerprint": encoder.fingerprint, "split": split}
    _show(run, facts, encoder.spec.parts, each)


def _encoder(run: Run) -> tuple[str, "Encoder"]:
    """Return the encoder to score and where it comes from."""
    from encoders.bundle import load_encoder

    section = run.recipe.encoder
    if run.is_given("encoder.pretrained") or run.is_given("encoder.backbone"):
        weights = section.pretrained or "random weights"
        return f"{section.backbone}, {weights}", run.untrained_encoder()[0]
    bundle = run.finished_encoder()
    return str(bundle), load_encoder(bundle)


def _own(parts: "Parts | None", each: Mapping[str, T]) -> tuple[dict[str, Any], T]:
    """Return the scores that lead the result, and the facts of several blends beside them.

    The blend of a search that names none leads, or the first that was asked for.
    """
    if parts is None:
        return {}, each[""]
    own = f"{parts.blend:g}"
    blend = own if own in each else next(iter(each))
    return {"blend": float(blend), "by_blend": each}, each[blend]


def _head(each: Mapping[str, object]) -> list[str]:
    return ["metric", *(f"blend {blend}" if blend else "found" for blend in each), "random"]


def _show(
    run: Run,
    facts: Mapping[str, Any],
    parts: "Parts | None",
    each: "Mapping[str, LabelEvaluation]",
) -> None:
    own, found = _own(parts, each)
    rows = [
        [name, *(of.metrics[name] for of in each.values()), found.random.get(name)]
        for name in found.metrics
    ]
    note = f"{found.queries:,} queries over {found.items:,} items"
    table = format_table(_head(each), rows)
    run.show({**facts, **asdict(found), **own}, [*table, "", note])
