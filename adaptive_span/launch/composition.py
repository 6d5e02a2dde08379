"""Compose a configuration from `conf/` and the arguments of a command, or of a notebook."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from adaptive_span.checkpoint.paths import CHECKPOINTS
from adaptive_span.config import overrides
from adaptive_span.config.data_sets import completed
from adaptive_span.config.identity import changes, flatten
from adaptive_span.config.places import CONF
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError, did_you_mean, shown
from adaptive_span.launch import command_line, help, local, search_path, sweep_jobs
from adaptive_span.launch.search import sweeper as search_sweeper
from adaptive_span.launch.slurm import launcher as slurm_launcher

GROUPS = ("optimizer", "model", "data", "hardware", "tracking", "sweep", "search")
NOT_TAKEN = {
    "config_name": "there is one configuration; python launch.py --config RUN/config.yaml repeats a run from its own",
    "config_path": "settings of your own go into conf/local/default.yaml, files of a group into a --config-dir",
    "experimental_rerun": "python launch.py --config RUN/config.yaml repeats a run from its own file",
}


def run(arguments: Sequence[str], task: Callable[[DictConfig], None], name: str, schema: type) -> None:
    """Have Hydra call a function with a composed configuration, once per run.

    Args:
        arguments: Of the command; flags may stand anywhere.
        task: The function.
        name: Of the configuration: launch or evaluate.
        schema: Its dataclass.

    Raises:
        UserError: The arguments are wrong.
    """
    with command_line.explain_hydra_errors(schema):
        parser = get_args_parser()
        if schema is Config:
            parser.add_argument("--config", metavar="FILE", help="Repeat a run from its own config.yaml")
        parsed = parser.parse_intermixed_args(arguments)
        _refuse(parsed)
        _register(name, schema)
        sweeping = parsed.multirun or overrides.is_sweep(parsed.overrides)
        settings = overrides.complete(parsed.overrides, schema, sweeping)
        if (file := getattr(parsed, "config", None)) is not None:
            settings = _again(Path(file).expanduser(), settings, parsed.multirun)
        parsed.overrides = settings
        _run_hydra(parsed, parser, task, config_path=str(CONF), config_name=name)


def compose(arguments: Sequence[str] = ()) -> Config:
    """Return the configuration, checked, that `python launch.py ARGUMENTS` trains with.

    Args:
        arguments: Like ["model=small", "train.steps=100"].

    Raises:
        UserError: An argument is wrong, or asks for several runs.
    """
    with command_line.explain_hydra_errors(Config):
        config = _composed(overrides.complete(arguments, Config, sweeping=False))
        config.validate()
    if config.sweep or config.search.name:
        raise UserError("sweep=NAME is for launch.py, as is search=NAME; compose a configuration for each of the runs")
    return config


def _composed(arguments: Sequence[str]) -> Config:
    _register("launch", Config)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return command_line.typed(hydra.compose("launch", overrides=list(arguments)), Config)


def _register(name: str, schema: type) -> None:
    hydra.version.setbase("1.3")
    command_line.register(name, schema, local, sweep_jobs, slurm_launcher, search_sweeper)
    search_path.register()
    help.register(schema)


def _refuse(parsed: Namespace) -> None:
    """Raise `UserError` for a flag of Hydra's that means nothing here."""
    for flag, instead in NOT_TAKEN.items():
        if getattr(parsed, flag) is not None:
            raise UserError(f"--{flag.replace('_', '-')} {getattr(parsed, flag)} is not taken: {instead}")


def _again(file: Path, given: list[str], sweeping: bool) -> list[str]:
    """Return arguments that put the values of a run's own file in place of the groups that are not given.

    Where they describe that very run, it resumes in the directory that holds the file.
    """
    values = _read(file)
    chosen = {argument.partition("=")[0] for argument in given}
    if (modules := values.pop("plugins", None)) and "plugins" not in chosen:
        raise UserError(
            f"--config {file} has plugins={shown(modules)}, whose code would run; give plugins=[…] too if you trust it"
        )
    if chosen & {"data", "model"}:
        values.pop("published", None)  # what was published of another pair
    ConfigStore.instance().store(group="again", name="file", node=values, package="_global_")
    has_local = any((folder / "local").is_dir() for folder in search_path.folders())
    left_out = ["recipe=none", *(["local@_global_=none"] if has_local else [])]
    arguments = ["again=file", *left_out, *(f"~{group}" for group in GROUPS if group not in chosen), *given]
    is_run = (file.parent / CHECKPOINTS).is_dir() and "run.dir" not in chosen and not sweeping
    if is_run and not changes(values, _composed(arguments)):
        arguments.append(overrides.setting("run.dir", str(file.parent)))
    return arguments


def _read(file: Path) -> dict[str, Any]:
    """Return what a run has written to its config.yaml, without what belongs to its directory and its sweep."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--config {file} cannot be read ({' '.join(str(error).split())})") from None
    known = overrides.keys(Config)
    if not isinstance(values, dict) or not flatten(values).keys() & known.keys():
        raise UserError(f"--config {file} is not the config.yaml of a run: it holds none of its keys")
    for key in ("sweep", "search", "run"):
        values.pop(key, None)
    for key in flatten(values):
        if key not in known and not key.startswith(command_line.OPEN):
            raise UserError(f"--config {file}: there is no key '{key}'{did_you_mean(key, list(known))}")
    return {key: _as_text(value) for key, value in completed(values).items()}


def _as_text(value: Any) -> Any:
    """Return values in which nothing is an interpolation: a file holds data."""
    if isinstance(value, dict):
        return {key: _as_text(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_text(each) for each in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
