"""`skysift evaluate`: retrieval scores of a dataset or an archive."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from storage.errors import ConfigError
from workflows.commands.common import Run, Verb, pass_run, recipe_option
from workflows.console import ProgressView, format_pairs, format_table

if TYPE_CHECKING:
    from encoders.bundle import Encoder
    from encoders.ranking import Floats
    from pipeline.analysis.evaluation import LabelEvaluation
    from pipeline.datasets.score import DatasetScores
    from storage.parts import Parts

T = TypeVar("T")


@click.command(
    "evaluate",
    cls=Verb,
    example="""
    skysift evaluate --dataset work/aid/dataset --encoder work/aid/run/bundle
    skysift evaluate -r aid --report report.html --per-query queries.csv --also work/ucm
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
@click.option(
    "--also",
    multiple=True,
    metavar="URI",
    help="Further dataset, whose own queries search its own images: how the encoder does off its "
    "domain; repeatable.",
)
@click.option(
    "--report",
    metavar="URI",
    help="Write a page: the encoder beside its backbone's features and random vectors, with "
    "intervals of the differences.",
)
@click.option(
    "--per-query",
    metavar="URI",
    help="Write the scores of each query to a .csv or .parquet file.",
)
@pass_run
def evaluate(
    run: Run,
    same_place: bool,
    archive_labels: bool,
    blends: tuple[float, ...],
    also: tuple[str, ...],
    report: str | None,
    per_query: str | None,
) -> None:
    """Score retrieval, beside a random ranking.

    On a dataset: its test split searches its train and val splits by labels (val searches
    train), with the encoder of a bundle, or with --pretrained the one that `skysift encoder make`
    would write. On an archive with labels: every tile searches all others. With --same-place: a
    tile of one scene should find the same ground in the other scenes. Vectors of two parts are
    scored at several blends.

    With --report or --per-query the encoder is also compared, query by query, with the features of
    its backbone before the head and with random vectors.
    """
    on_dataset = not (same_place or archive_labels or run.recipe.dataset.uri is None)
    if on_dataset:
        _dataset_labels(run, blends, also, report, per_query)
    elif also or report or per_query:
        raise ConfigError(
            "evaluate: --also, --report and --per-query are for a labelled dataset; give --dataset "
            "and leave out --same-place and --archive-labels"
        )
    elif same_place:
        _by_place(run, blends)
    else:
        _archive_labels(run, blends)


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
    data, lines = _shown(archive.spec.parts, each)
    run.show({"archive": archive.uri, **data}, lines)


def _dataset_labels(
    run: Run,
    blends: Sequence[float],
    also: Sequence[str],
    report: str | None,
    per_query: str | None,
) -> None:
    from pipeline.analysis.evaluation import blends_to_score
    from pipeline.datasets.score import score_dataset

    uris = [run.need_path("dataset.uri"), *map(run.location, also)]
    if per_query is not None:
        from storage.formats import check_rows_format

        check_rows_format(per_query)
    source, encoder = _encoder(run)
    ways = blends_to_score(encoder.spec.parts, blends)
    section = run.recipe.evaluate
    with ProgressView() as progress:
        scores = [
            score_dataset(
                encoder,
                uri,
                ways,
                split=section.split,
                k=section.k,
                compared=report is not None or per_query is not None,
                progress=progress,
            )
            for uri in uris
        ]
    written = _write(run, scores, source, encoder.fingerprint, report, per_query)
    facts = {
        "dataset": str(uris[0]),
        "encoder": source,
        "fingerprint": encoder.fingerprint,
        "split": section.split,
    }
    found = [_result(one, encoder.spec.parts) for one in scores]
    data, lines = found[0]
    for (_, table), one in zip(found[1:], scores[1:], strict=True):
        lines = [*lines, "", f"{one.uri}:", *table]
    more = {"also": {one.uri: data for one, (data, _) in zip(scores[1:], found[1:], strict=True)}}
    run.show(
        {**facts, **data, **(more if also else {}), **written},
        [*lines, *([""] if written else []), *format_pairs(written)],
    )


def _result(scores: "DatasetScores", parts: "Parts | None") -> tuple[dict[str, Any], list[str]]:
    """Return the scores on a dataset as plain values, and as a table for people."""
    from workflows.report.evaluation import comparison_facts

    data, lines = _shown(parts, scores.by_blend)
    return data | ({"comparison": comparison_facts(scores)} if scores.comparison else {}), lines


def _write(
    run: Run,
    scores: "Sequence[DatasetScores]",
    encoder: str,
    fingerprint: str,
    report: str | None,
    per_query: str | None,
) -> dict[str, str]:
    """Write the page and the table of queries that are asked for, and return where they are."""
    from storage.formats import write_rows
    from workflows.report.evaluation import evaluation_report, query_rows
    from workflows.report.html import write_report

    written = {}
    if report is not None:
        page = evaluation_report(scores, encoder, fingerprint, run.recipe.evaluate.split)
        write_report(page, run.location(report))
        written["report"] = report
    if per_query is not None:
        write_rows(query_rows(scores), run.location(per_query))
        written["queries"] = per_query
    return written


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


def _shown(
    parts: "Parts | None", each: "Mapping[str, LabelEvaluation]"
) -> tuple[dict[str, Any], list[str]]:
    """Return scores by labels as plain values, and as a table for people."""
    own, found = _own(parts, each)
    rows = [
        [name, *(of.metrics[name] for of in each.values()), found.random.get(name)]
        for name in found.metrics
    ]
    note = f"{found.queries:,} queries over {found.items:,} items"
    return {**asdict(found), **own}, [*format_table(_head(each), rows), "", note]
