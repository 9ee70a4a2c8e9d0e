"""A recipe in Python: its settings, and its stages as methods."""

from collections.abc import Mapping
from typing import Any

from storage.dataset import LabelledDataset
from storage.display import Described
from workflows.notebook.index import Index
from workflows.recipe.load import LoadedRecipe, Override, load_recipe
from workflows.stages import Stages


class Recipe(Described, Stages):
    """A recipe whose stages are carried out by methods, as by the commands of the same names.

    Long stages show their progress: as bars in a notebook and on a terminal, as lines elsewhere.

    Examples
    --------
    >>> recipe = Recipe.load("prairie.yaml", {"ingest.batch_tiles": 64})          # doctest: +SKIP
    >>> recipe.make_encoder(), recipe.ingest(), recipe.build_index()              # doctest: +SKIP
    >>> recipe.open_index().like(lonlat=(-99.15, 47.02)).top(20)                  # doctest: +SKIP
    """

    def __init__(self, settings: LoadedRecipe) -> None:
        self._settings = settings

    @property
    def settings(self) -> LoadedRecipe:
        """The recipe with the places where its values were written."""
        return self._settings

    @classmethod
    def load(cls, name: str | None = None, changes: Mapping[str, Any] | None = None) -> "Recipe":
        """Read and check a recipe.

        Parameters
        ----------
        name
            A YAML file or the name of a recipe that comes with Skysift; None for the defaults.
        changes
            Values in place of those of the recipe, by dotted key such as ``archive.uri``.

        Raises
        ------
        ConfigError
            The recipe cannot be read, or a key, type or value is wrong.
        """
        overrides = [
            Override(path=tuple(key.split(".")), value=value, origin=key)
            for key, value in (changes or {}).items()
        ]
        return cls(load_recipe(name, overrides))

    def facts(self) -> dict[str, Any]:
        """Return the places that the recipe names."""
        recipe = self.recipe
        places = {
            "scenes": recipe.catalog.source,
            "dataset": recipe.dataset.uri,
            "encoder": recipe.encoder.bundle,
            "archive": recipe.archive.uri,
            "index": recipe.index.uri,
        }
        return {
            "name": recipe.name,
            "description": recipe.description,
            **{name: None if place is None else str(place) for name, place in places.items()},
        }

    def way_to_give(self, key: str) -> str:
        """Return how a value that is missing can be given, for messages."""
        return f"name it in the recipe, or by Recipe.load(..., {{{key!r}: ...}})"

    def open_index(self) -> Index:
        """Open the index for questions.

        Raises
        ------
        ConfigError, NotFoundError
            The recipe names no index, or there is none.
        """
        return Index.open(
            self.need_path("index.uri"),
            encoder=self.recipe.encoder.bundle,
            scenes=self.pictured_catalog,
        )

    def open_dataset(self) -> LabelledDataset:
        """Open the labelled dataset.

        Raises
        ------
        ConfigError, NotFoundError
            The recipe names no dataset, or there is none.
        """
        return LabelledDataset.open(self.need_path("dataset.uri"))
