"""The documentation site: `make docs`."""

import importlib
import importlib.metadata
import inspect
import sys
from pathlib import Path
from typing import Any

import typer

from analysis.cli import COMMANDS
from analysis.cli.options import Fields
from analysis.training.recipe import Recipe, load_recipe, recipe_names

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from executing import NOTEBOOKS, executed  # noqa: E402

project = "replknet"
author = "The replknet authors"
release = importlib.metadata.version("replknet")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"replknet {release}"
html_static_path = ["static"]
html_css_files = ["pages.css"]
exclude_patterns = ["_build"]
templates_path: list[str] = []
default_role = "code"
nb_merge_streams = True
nb_execution_mode = "off"  # they are executed already: executing.py
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures have them
napoleon_google_docstring = True
napoleon_numpy_docstring = False
suppress_warnings = ["ref.python"]  # a name exported by two packages


def _parameter(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    if parameter.param_type_name == "argument":
        names = f"`{parameter.name.upper()}`"
    default = parameter.default
    shown = default is not None and default is not False and not callable(default) and str(default) not in ("", "()")
    text = (getattr(parameter, "help", None) or "").replace("|", "\\|")
    return f"| {names} | {text} | {f'`{default}`' if shown else ''} |"


def _section(command: Any, name: str, level: int) -> list[str]:
    lines = [f"{'#' * level} `{name}`", "", inspect.cleandoc(command.help or ""), ""]
    children = getattr(command, "commands", {})
    shown = [parameter for parameter in command.params if parameter.name != "help"]
    if shown and not children:
        lines += ["| | | default |", "|---|---|---|", *map(_parameter, shown), ""]
    for child, own in children.items():
        lines += _section(own, f"{name} {child}", level + 1)
    return lines


def _recipes() -> list[str]:
    """Every field that `--set` changes, and what the recipes have there."""
    fields = {field.name: field for field in Fields(Recipe).parameters()}
    lines = ["### Fields of a recipe, for `--set`", "", "Defaults hold where a recipe says nothing.", ""]
    lines += ["| | | default |", "|---|---|---|"]
    lines += [
        "| `epochs` | Passes over all images. |  |",
        "| `warmup_epochs` | The first of them, in which the learning rate rises. |  |",
    ]
    for name, field in fields.items():
        text = field.annotation.__metadata__[0].help.replace("|", "\\|")
        by_epochs = {"steps": " In place of `epochs`.", "warmup": " In place of `warmup_epochs`."}.get(name, "")
        default = "none" if field.default is None else str(field.default).replace("False", "false")
        lines.append(f"| `{name}` | {text}{by_epochs} | {f'`{default}`' if default and not by_epochs else ''} |")
    recipes = [load_recipe(name) for name in recipe_names()]
    lines += ["", "What the recipes say; a range follows the number and the size of the images.", ""]
    lines += [f"| | {' | '.join(f'`{recipe.name}`' for recipe in recipes)} |", "|---" * (len(recipes) + 1) + "|"]
    said = [
        {"epochs": recipe.epochs, "warmup_epochs": recipe.warmup_epochs, **recipe.settings}
        | {name: f"{low} to {high}" for name, (low, high) in recipe.adapt.items()}
        for recipe in recipes
    ]
    for name in ("epochs", "warmup_epochs", *fields):
        if any(name in values for values in said):
            lines.append(f"| `{name}` | {' | '.join(str(values.get(name, '')) for values in said)} |")
    return [*lines, ""]


def _write_commands() -> None:
    """One page of every command and option, from the commands themselves."""
    lines = ["# Commands", "", "Every command prints this with `--help`.", ""]
    for name, (module, _) in COMMANDS.items():
        group: Any = typer.main.get_command(importlib.import_module(f"analysis.cli.{module}").app)
        lines += _section(group.get_command(None, name), f"replknet {name}", 2)
        if name == "train":
            lines += _recipes()
    (HERE / "commands.md").write_text("\n".join(lines))


def _execute_notebooks() -> None:
    for page in (HERE / "notebooks").glob("*.ipynb"):
        if page.name not in {notebook.name for notebook in NOTEBOOKS}:
            page.unlink()
    for notebook in NOTEBOOKS:
        executed(notebook)


_write_commands()
_execute_notebooks()
