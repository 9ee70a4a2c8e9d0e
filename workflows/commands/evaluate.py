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
    from pipeline.analysis.evaluation import LabelEvaluation, Vectors
    from pipeline.datasets.score import Compared, DatasetScores
    from storage.archive.reader import Archive
    from storage.dataset import LabelledDataset
    from storage.parts import Parts

T = TypeVar("T")


@click.command(
    "evaluate",
    cls=Verb,
    example="""
    skysift evaluate --dataset work/aid/dataset --encoder work/aid/run/bundle
    skysift evaluate -r aid --report report.html --also work/ucm --places work/archive
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
    "--places",
    multiple=True,
    metavar="URI",
    help="Archive of several dates, whose tiles look for their own ground on the other dates, by "
    "this encoder; repeatable.",
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
    places: tuple[str, ...],
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
    its backbone before the head and with random vectors: on each dataset; for queries of scene
    classes that training never had, where the encoder's own dataset is among them; and on the
    archives of --places.
    """
    on_dataset = not (same_place or archive_labels or run.recipe.dataset.uri is None)
    if on_dataset:
        _dataset_labels(run, blends, (also, places), report, per_query)
    elif also or places or report or per_query:
        raise ConfigError(
            "evaluate: --also, --places, --report and --per-query are for a labelled dataset; give "
            "--dataset and leave out --same-place and --archive-labels"
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
    beside: tuple[Sequence[str], Sequence[str]],
    report: str | None,
    per_query: str | None,
) -> None:
    """Score the dataset, and beside it further datasets and archives by place."""
    from pipeline.analysis.evaluation import blends_to_score
    from storage.archive.reader import Archive
    from storage.dataset import LabelledDataset

    also, places = beside
    if per_query is not None:
        from storage.formats import check_rows_format

        check_rows_format(per_query)
    uris = [run.need_path("dataset.uri"), *map(run.location, also)]
    source, encoder = _encoder(run)
    ways = blends_to_score(encoder.spec.parts, blends)
    datasets = {str(uri): LabelledDataset.open(uri) for uri in uris}
    archives = [Archive.open(run.location(uri)) for uri in places]
    scores = _scored(run, encoder, ways, datasets, report is not None or per_query is not None)
    by_place = _scored_by_place(run, encoder, ways, archives)
    written = _write(run, scores, by_place, (source, encoder.fingerprint), report, per_query)
    facts = {
        "dataset": str(uris[0]),
        "encoder": source,
        "fingerprint": encoder.fingerprint,
        "split": run.recipe.evaluate.split,
    }
    data, lines = _results(scores, by_place, encoder.spec.parts)
    run.show(
        {**facts, **data, **written},
        [*lines, *([""] if written else []), *format_pairs(written)],
    )


def _scored(
    run: Run,
    encoder: "Encoder",
    ways: "Mapping[str, Vectors]",
    datasets: "Mapping[str, LabelledDataset]",
    compared: bool,
) -> "list[DatasetScores]":
    """Return the scores on each dataset, compared with other vectors where that is asked for."""
    from pipeline.datasets.score import score_dataset
    from pipeline.datasets.unseen import learned_classes

    section, learned = run.recipe.evaluate, learned_classes(encoder, datasets.values())
    with ProgressView() as progress:
        return [
            score_dataset(
                encoder,
                dataset,
                uri,
                ways,
                split=section.split,
                k=section.k,
                compared=compared,
                learned=learned,
                progress=progress,
            )
            for uri, dataset in datasets.items()
        ]


def _scored_by_place(
    run: Run, encoder: "Encoder", ways: "Mapping[str, Vectors]", archives: "Sequence[Archive]"
) -> "list[Compared]":
    """Return the scores of the same place on another date, on each archive."""
    if not archives:
        return []
    from pipeline.datasets.place_scores import PlaceQueries, score_places
    from pipeline.training.spec import TrainingSpec
    from workflows.recipe.sections import spec_from

    section, rules = run.recipe.evaluate, spec_from(TrainingSpec, run.recipe.training)
    queries = PlaceQueries(
        depths=section.same_place_k, most=section.most_queries, seed=section.seed
    )
    with ProgressView() as progress:
        return [
            score_places(encoder, archive, ways, rules, queries, progress) for archive in archives
        ]


def _results(
    scores: "Sequence[DatasetScores]", by_place: "Sequence[Compared]", parts: "Parts | None"
) -> tuple[dict[str, Any], list[str]]:
    """Return the scores as plain values, and as tables for people."""
    from workflows.report.evaluation import comparison_facts

    (data, lines), *further = [_result(one, parts) for one in scores]
    if further:
        uris = [one.uri for one in scores[1:]]
        data["also"] = dict(zip(uris, (each for each, _ in further), strict=True))
        for uri, (_, table) in zip(uris, further, strict=True):
            lines = [*lines, "", f"{uri}:", *table]
    if by_place:
        data["places"] = {found.uri: comparison_facts(found) for found in by_place}
        for found in by_place:
            lines = [*lines, "", f"{found.uri}:", *_place_table(found)]
    return data, lines


def _place_table(found: "Compared") -> list[str]:
    means = found.comparison.means
    columns = next(iter(means.values()))
    rows = [[column, *(each[column] for each in means.values())] for column in columns]
    return [
        *format_table(["metric", *means], rows),
        "",
        f"{len(found):,} queries, {found.note}",
    ]


def _result(scores: "DatasetScores", parts: "Parts | None") -> tuple[dict[str, Any], list[str]]:
    """Return the scores on a dataset as plain values, and as a table for people."""
    from workflows.report.evaluation import comparison_facts

    data, lines = _shown(parts, scores.by_blend)
    further = {"comparison": scores.compared, "classes_left_out": scores.unseen}
    facts = {name: comparison_facts(found) for name, found in further.items() if found is not None}
    return data | facts, lines


def _write(
    run: Run,
    scores: "Sequence[DatasetScores]",
    by_place: "Sequence[Compared]",
    encoder: tuple[str, str],
    report: str | None,
    per_query: str | None,
) -> dict[str, str]:
    """Write the page and the table of queries that are asked for, and return where they are.

    ``encoder`` is the encoder's name and fingerprint.
    """
    if report is None and per_query is None:
        return {}
    from storage.formats import write_rows
    from workflows.report.evaluation import evaluation_report, query_rows, sections_of
    from workflows.report.html import write_report

    sections, written = sections_of(scores, by_place, run.recipe.evaluate.split), {}
    if report is not None:
        write_report(evaluation_report(sections, *encoder), run.location(report))
        written["report"] = report
    if per_query is not None:
        write_rows(query_rows(sections), run.location(per_query))
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
