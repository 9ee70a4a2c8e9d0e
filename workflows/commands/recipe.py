"""`skysift recipe`: look at recipes."""

import click

from workflows.commands.common import Run, Verb, pass_run


@click.group()
def recipe() -> None:
    """Look at recipes: the YAML files with the settings of a run."""


@recipe.command("show", cls=Verb, example="skysift recipe show -r naip-series --set index.shards=4")
@pass_run
def show(run: Run) -> None:
    """Print the effective recipe: defaults, file, variables and overrides; secrets masked."""
    import yaml

    shown = run.settings.shown()
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    run.show(shown, text.rstrip("\n").split("\n"))


@recipe.command("list", cls=Verb, example="skysift recipe list")
@pass_run
def list_(run: Run) -> None:
    """List the recipes that come with Skysift."""
    from workflows.recipe.load import packaged_recipes

    recipes = packaged_recipes()
    run.show(recipes, recipes)
