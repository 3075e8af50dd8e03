"""The command `trainer`.  Parses, asks `launch`, prints; what is refused becomes one sentence and an exit code.

Exit codes: 0 done; 1 it ran and failed; 2 wrong usage, or data or a checkpoint that cannot be used as asked.

`torch` is imported by the recipe that needs it: `--help` and `recipes` do not.
"""

from __future__ import annotations

import os
from pathlib import Path

import click
from rich.console import Console

from eventlog import EventlogError
from trainer import recipes
from trainer.config import parse_pairs
from trainer.errors import Refused


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train small policies with GRPO; everything is logged by eventlog."""


@main.command("recipes")
def list_recipes() -> None:
    """List the recipes."""
    for name, summary in recipes.SUMMARIES.items():
        click.echo(f"{name}   {summary}")


@main.command()
@click.argument("recipe")
@click.option("--quick", is_flag=True, help="The small version: a minute or two on two cores.")
@click.option("--seed", type=click.IntRange(min=0), help="The same as --set seed=N.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Change one setting; repeatable.")
@click.option("--run-name", help="The run's name. Default: $WANDB_NAME, $RUN_ID, or the recipe and the time.")
@click.option(
    "--root", type=click.Path(path_type=Path), help="Where the log goes. Default: $EVENTLOG_ROOT or ./runs."
)
@click.option("--resume", is_flag=True, help="Continue the run of this name; start it if there is none.")
@click.option(
    "--output-dir", type=click.Path(path_type=Path), help="Checkpoints. Default: ./checkpoints/<run name>."
)
@click.option("--data", type=click.Path(path_type=Path), help="A file of problems, as the recipe reads them.")
def train(
    recipe: str,
    quick: bool,
    seed: int | None,
    pairs: tuple[str, ...],
    run_name: str | None,
    root: Path | None,
    resume: bool,
    output_dir: Path | None,
    data: Path | None,
) -> None:
    """Train RECIPE: warm up, then GRPO, evaluating on held-out problems.

    \b
    trainer train calculator --quick
    trainer train calculator --quick --seed 1 --set steps=20 --run-name try1
    trainer train calculator --resume --run-name try1
    """
    # Idle threads that spin cost the other core its time; it must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    say = Console(highlight=False, soft_wrap=True, markup=False).print
    try:
        overrides = parse_pairs(pairs) | ({} if seed is None else {"seed": str(seed)})
        loaded = recipes.load(recipe)
        from trainer.launch import Request, launch  # not at the top: it imports torch

        request = Request(overrides, quick, run_name, root, output_dir, data, resume)
        outcome = launch(loaded, request, say)
    except (Refused, EventlogError) as error:
        raise click.UsageError(str(error)) from None
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name!r} is not installed, and training needs it. Install `tidelog[trainer]`."
        ) from None
    before, after = outcome.reward_before, outcome.reward_after
    say(
        f"{outcome.name}: held-out reward {before:.3f} → {after:.3f} ({after - before:+.3f}) in {outcome.duration_s:.0f} s"
    )
    say(f"log: {outcome.run_dir}   checkpoints: {outcome.checkpoints}")
