"""The command `trainer`.  Parses, asks `launch`, prints; what is refused becomes one sentence and an exit code.

Exit codes: 0 done; 1 it ran and failed; 2 wrong usage, or data or a checkpoint that cannot be used as asked.

The flags are those of the scripts whose place it takes, in both of their spellings (`--group-size`, `--group_size`);
each is a setting, as `--set` would give it. A setting is given by, the stronger first: a flag or `--set`, an environment variable
(also from `.env`), `--quick`, the recipe.

`torch` is imported by the recipe that needs it: `--help` and `recipes` do not.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from eventlog import EventlogError
from eventlog.dotenv import load_dotenv
from trainer import recipes
from trainer.config import parse_pairs
from trainer.errors import CheckpointError, Refused

if TYPE_CHECKING:  # it imports torch
    from trainer.benchmark import Result

F = TypeVar("F", bound=Callable[..., Any])

# Flag → the setting that it gives.
SETTING_FLAGS = {
    "seed": "seed",
    "lr": "lr",
    "model_name": "model_name",
    "group_size": "group_size",
    "rollouts_per_step": "rollouts_per_step",
    "batch_size": "rollouts_per_step",
    "train_batch_size": "train_batch_size",
    "temperature": "temperature",
    "max_length": "max_length",
    "max_prompts": "max_prompts",
    "checkpoint_interval": "checkpoint_interval",
    "num_epochs": "epochs",
    "model_path": "model_path",
    "dataset_names": "dataset_names",
}
_WHAT_THEY_ARE = {
    "seed": "Of everything that is drawn.",
    "lr": "Learning rate.",
    "model_name": "A Hugging Face model, by name or directory; default: a tiny one, trained from nothing.",
    "group_size": "Trajectories of one problem.",
    "rollouts_per_step": "Problems of one rollout batch.",
    "batch_size": "The same as --rollouts-per-step.",
    "train_batch_size": "Trajectories of one optimiser step.",
    "temperature": "Of sampling.",
    "max_length": "Tokens of a trajectory.",
    "max_prompts": "Problems to train on, at most.",
    "checkpoint_interval": "Rollout batches from one checkpoint to the next.",
    "num_epochs": "Passes over the problems, in place of a number of steps.",
    "model_path": "joint_controller: a directory with its adaptive model.",
    "dataset_names": "joint_controller: its families of samples, one or more.",
}


class _ListsAfterFlags(click.Command):
    """A command whose `--dataset_names a b c` takes all that follows, as argparse's `nargs="+"` does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        joined: list[str] = []
        places = iter(range(len(args)))
        for i in places:
            joined.append(args[i])
            if args[i] in ("--dataset-names", "--dataset_names"):
                names = []
                while i + 1 < len(args) and not args[i + 1].startswith("-"):
                    i = next(places)
                    names.append(args[i])
                joined.append(",".join(names))
        return super().parse_args(ctx, joined)


def _flag(name: str, **options: Any) -> Callable[[F], F]:
    """An option in both spellings: `--wandb-project` and `--wandb_project`."""
    return click.option(*dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}")), name, **options)


def _setting_flags(command: F) -> F:
    for name, text in reversed(_WHAT_THEY_ARE.items()):
        command = _flag(name, metavar="VALUE", help=text)(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def main() -> None:
    """Train small policies with GRPO; everything is logged by eventlog."""
    # Before the commands' own options are looked at: some of them may be given there.
    for name, value in load_dotenv().items():
        os.environ.setdefault(name, value)


@main.command("recipes")
def list_recipes() -> None:
    """List the recipes."""
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    for name, summary in recipes.SUMMARIES.items():
        table.add_row(name, summary)
    Console().print(table)


@main.command(cls=_ListsAfterFlags)
@click.argument("recipe")
@click.option("--quick", is_flag=True, help="The small version: a minute or two on two cores.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Change one setting; repeatable.")
@click.option(
    *("--run-name", "--run_name", "--wandb-name", "--wandb_name"),
    "run_name",
    help="The run's name. Default: $WANDB_NAME, $RUN_ID, or the recipe and the time.",
)
@click.option(
    "--root", type=click.Path(path_type=Path), help="Where the log goes. Default: $EVENTLOG_ROOT or ./runs."
)
@click.option("--resume", is_flag=True, help="Continue the run of this name; start it if there is none.")
@_flag("output_dir", type=click.Path(path_type=Path), help="Checkpoints. Default: ./checkpoints/<run name>.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="A file or directory of problems, as the recipe reads them; `generated`: made up, whatever there is.",
)
@_setting_flags
@click.option(
    *("--wandb/--no-wandb", "--use-wandb/--no_wandb", "--use_wandb"),
    "wandb",
    default=None,
    envvar="USE_WANDB",
    show_envvar=True,
    help="Whether syncd uploads the run by itself. Without: only `syncd sync` does. [default: wandb; joint_controller: no-wandb]",
)
@_flag("wandb_project", help="Default: $WANDB_PROJECT, else the recipe's.")
@_flag("wandb_entity", help="Default: $WANDB_ENTITY.")
@_flag(
    "log_dir",
    type=click.Path(path_type=Path),
    help="Write the metrics for TensorBoard too, into this directory.",
)
@_flag("results_dir", type=click.Path(path_type=Path), help="The same as --log-dir.")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    envvar="VERBOSE",
    show_envvar=True,
    help="Print an episode of each batch.",
)
def train(
    recipe: str,
    quick: bool,
    pairs: tuple[str, ...],
    run_name: str | None,
    root: Path | None,
    resume: bool,
    output_dir: Path | None,
    data: Path | None,
    wandb: bool | None,
    wandb_project: str | None,
    wandb_entity: str | None,
    log_dir: Path | None,
    results_dir: Path | None,
    verbose: bool,
    **flags: str | None,
) -> None:
    """Train RECIPE: warm up, then GRPO, evaluating on held-out problems.

    \b
    trainer train calculator --quick
    trainer train calculator --quick --seed 1 --set steps=20 --run-name try1
    trainer train calculator --resume --run-name try1
    """
    with _refusals():
        loaded = recipes.load(recipe)
        from trainer.launch import Request, launch  # not at the top: it imports torch

        given = {SETTING_FLAGS[flag]: value for flag, value in flags.items() if value is not None}
        # Without W&B the curves are looked at in TensorBoard, as these scripts have it.
        uploads = loaded.uploads if wandb is None else wandb
        request = Request(
            overrides={**parse_pairs(pairs), **given},
            quick=quick,
            name=run_name,
            root=root,
            output_dir=output_dir,
            data=data,
            resume=resume,
            project=wandb_project,
            entity=wandb_entity,
            tensorboard=log_dir or results_dir or (loaded.tensorboard or wandb is False),
            uploads=uploads,
            shows_episodes=verbose,
        )
        launch(loaded, request, Console(highlight=False))


def _where(command: F) -> F:
    for option in (
        click.option("--data", type=click.Path(path_type=Path), help="The problems, as at the training."),
        click.option(
            "--checkpoint", "which", type=click.Choice(["best", "newest"]), default="best", show_default=True
        ),
        _flag("output_dir", type=click.Path(path_type=Path), help="Where the checkpoints are."),
        click.option("--run-name", help="Of the training; its checkpoints are in ./checkpoints/<run name>."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    ):
        command = option(command)
    return command


@main.command("eval")
@click.argument("recipe")
@_where
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=0,
    help="Problems, at most. Default: all that are held out.",
)
def evaluate(recipe: str, as_json: bool, **asked: Any) -> None:
    """Play the held-out problems with a policy that RECIPE trained.

    \b
    trainer eval calculator --run-name try1
    """
    result = _benchmark(recipe, is_quiet=as_json, **asked)
    if as_json:
        click.echo(json.dumps({"run": result.name, "step": result.step, **result.metrics}))
        return
    Console(highlight=False).print(_table_of(result.metrics))


@main.command("bench")
@click.argument("recipe")
@_where
@click.option(
    "--test-set-size", "limit", type=click.IntRange(min=0), default=0, envvar="TEST_SET_SIZE", show_envvar=True,
    help="Problems, at most. Default: all that are held out.",
)  # fmt: skip
@click.option(
    "--sequential/--concurrent",
    envvar="BENCH_SEQUENTIAL",
    show_envvar=True,
    help="One episode after the other, or all at once.",
)
@click.option(
    "--concurrency", type=click.IntRange(min=0), default=0, envvar="ROLLOUT_CONCURRENCY", show_envvar=True,
    help="Episodes that are answered and graded at once. Default: as the task likes.",
)  # fmt: skip
@click.option(
    "--show-trajectories/--no-show-trajectories",
    envvar="SHOW_TRAJECTORY_DETAILS",
    show_envvar=True,
    help="Print each episode.",
)
def bench(recipe: str, as_json: bool, show_trajectories: bool, **asked: Any) -> None:
    """Time a policy that RECIPE trained on the held-out problems, and say how good it is.

    \b
    trainer bench email_agent --run-name try1 --sequential
    """
    result = _benchmark(recipe, is_quiet=as_json, **asked)
    seconds = result.episode_s
    timings = {
        "episodes": result.episodes,
        "sequential": asked["sequential"],
        "seconds": result.duration_s,
        "seconds_per_episode_p50": seconds[len(seconds) // 2] if seconds else None,
        "seconds_per_episode_max": seconds[-1] if seconds else None,
        "tokens_per_second": result.tokens / max(result.duration_s, 1e-9),
    }
    if as_json:
        click.echo(json.dumps({"run": result.name, "step": result.step, **timings, **result.metrics}))
        return
    from trainer.progress import in_words

    console = Console(highlight=False)
    if show_trajectories:
        for trajectory in result.trajectories:
            console.print(in_words(trajectory), markup=False)
    console.print("Benchmark Results")
    console.print(_table_of(result.metrics | timings))


def _benchmark(
    recipe: str,
    *,
    run_name: str | None,
    output_dir: Path | None,
    which: str,
    data: Path | None,
    is_quiet: bool,
    limit: int,
    sequential: bool = False,
    concurrency: int = 0,
) -> Result:
    """Play held-out problems with a policy that was trained; the arguments are the commands' options."""
    with _refusals():
        loaded = recipes.load(recipe)
        from trainer.benchmark import benchmark, load_trained
        from trainer.checkpoint import home_of as checkpoint_home
        from trainer.progress import Progress

        name = run_name or os.environ.get("RUN_ID")
        if output_dir is None and name is None:
            raise CheckpointError("which training? Give --run-name or --output-dir.")
        trained = load_trained(loaded, output_dir or checkpoint_home(str(name)), which, data)
        if not trained.is_same_data:
            click.echo(
                f"{trained.name} was trained with other problems than {trained.source}; it may have seen some of these.",
                err=True,
            )
        progress = Progress(trained.name, None if is_quiet else Console(highlight=False))
        return benchmark(
            loaded,
            trained,
            limit=limit,
            sequential=sequential,
            concurrency=concurrency,
            progress=progress,
        )


def _table_of(values: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0))
    for key, value in values.items():
        if isinstance(value, (int, float, str, type(None))):
            table.add_row(key, f"{value:.4f}" if isinstance(value, float) else str(value))
    return table


@main.group()
def data() -> None:
    """Make data sets."""


@data.command("emails")
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("enron_emails.db"), show_default=True
)
def data_emails(source: Path, output: Path) -> None:
    """Make a database that can be searched, of a maildir tree, an mbox or a JSONL file.

    \b
    trainer data emails maildir/ -o enron_emails.db
    trainer train email_agent --data enron_emails.db --model-name Qwen/Qwen2.5-3B-Instruct
    """
    from trainer.data import emails

    with _refusals(), Console(highlight=False).status("reading mails …") as status:
        try:
            made = emails.create(
                emails.read(source), output, lambda so_far: status.update(f"read {so_far.n_read:,} mails …")
            )
        except (OSError, sqlite3.Error) as error:
            raise click.ClickException(
                f"the mails of {str(source)!r} did not get into {str(output)!r}: {error}. "
                "Nothing was changed; -o names another place."
            ) from None
    click.echo(f"{output}: {made.in_words()}")


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what is refused into a sentence and exit code 2."""
    # Idle threads that spin cost the other core its time; it must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        yield
    except (Refused, EventlogError) as error:
        raise click.UsageError(str(error)) from None
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name!r} is not installed, and training needs it. Install `tidelog[trainer]`."
        ) from None
