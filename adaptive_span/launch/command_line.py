"""Connect Hydra with the typed configuration: register types, read what people type, explain what is wrong with it."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    ConfigTypeError,
    InterpolationKeyError,
    OmegaConfBaseException,
    ValidationError,
)

from adaptive_span.config.checks import kind, without_value
from adaptive_span.config.identity import flatten
from adaptive_span.config.overrides import PATHS, keys
from adaptive_span.errors import UserError, did_you_mean

T = TypeVar("T")

OPEN = ("published.", "sweep.", "hardware.sbatch.")  # whose keys are no field's names


def register(
    name: str, schema: type, launcher: ModuleType, sweeper: ModuleType, other: ModuleType, searcher: ModuleType
) -> None:
    """Register the types behind `conf/<name>.yaml`, the resolver of its `hydra.mode`, and Hydra's plugins.

    Args:
        name: Of the configuration: launch or evaluate.
        schema: Its dataclass.
        launcher: The module whose launcher takes the place of Hydra's own.
        sweeper: The module whose sweeper does.
        other: The module of one more launcher.
        searcher: The module of one more sweeper.
    """
    _read_numbers_as_people_do()
    for plugin in (launcher.LocalLauncher, sweeper.Sweeper, other.JobLauncher, searcher.Searcher):
        # Hydra takes plugins from its own namespace alone. A package there would have to be installed, beside this one,
        # before a checkout could be used; so a module there stands for it.
        sys.modules[plugin.__module__] = next(
            m for m in (launcher, sweeper, other, searcher) if plugin in vars(m).values()
        )
        Plugins.instance().register(plugin)
    store = ConfigStore.instance()
    node = OmegaConf.structured(schema)
    OmegaConf.set_struct(node.hardware.sbatch, False)  # its keys are sbatch's, of which Hydra knows none
    store.store(name=f"{name}_schema", node=node)
    store.store(group="hydra/launcher", name="basic", node={"_target_": _target(launcher.LocalLauncher)})
    for sweeper_name, plugin in (("basic", sweeper.Sweeper), ("optuna", searcher.Searcher)):
        values = {"_target_": _target(plugin), "max_batch_size": None, "params": None}
        store.store(group="hydra/sweeper", name=sweeper_name, node=values)
    OmegaConf.register_new_resolver("mode", lambda sweep: RunMode.MULTIRUN if sweep else None, replace=True)


def _target(plugin: type) -> str:
    return f"{plugin.__module__}.{plugin.__name__}"


def _read_numbers_as_people_do() -> None:
    """Read 2:00:00 and 0123 in a YAML file as text.

    YAML 1.1, which PyYAML reads, takes them for 7200 (base 60) and 83 (base 8); YAML 1.2 has neither. OmegaConf's
    loader inherits what stands here, and has no setting for it.
    """
    known = yaml.resolver.Resolver.yaml_implicit_resolvers
    text = ("tag:yaml.org,2002:str", re.compile(r"[-+]?(?:0[0-9_]+|[0-9][0-9_]*(?::[0-9]+)+(?:\.[0-9_]*)?)$"))
    yaml.SafeLoader.yaml_implicit_resolvers = known | {first: [text, *known[first]] for first in "-+0123456789"}


def typed(composed: DictConfig, schema: type[T]) -> T:
    """Return a composed configuration as plain dataclasses, with every interpolation resolved.

    Raises:
        UserError: A key is unknown, or has no value.
    """
    known = keys(schema)
    for key in flatten(OmegaConf.to_container(composed)):  # type: ignore[arg-type]
        if key not in known and not key.startswith(OPEN):  # +key=value passes Hydra's own check
            raise UserError(_unknown(key, schema))
    if missing := sorted(OmegaConf.missing_keys(composed)):
        raise UserError(without_value(missing))
    for key in PATHS:
        path = OmegaConf.select(composed, key) if key in known else None
        if isinstance(path, str) and path.startswith("~"):  # which a shell leaves where it stands after a =
            OmegaConf.update(composed, key, os.path.expanduser(path))
    config = OmegaConf.to_object(composed)
    assert isinstance(config, schema)
    return config


@contextmanager
def explain_hydra_errors(schema: type) -> Iterator[None]:
    """Raise what Hydra and OmegaConf find wrong with a command as a `UserError`; leave other errors as they are."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # without it Hydra ends the process itself, with a summary of its own
    try:
        yield
    except Exception as error:
        sentence = _sentence(error, schema)
        if sentence is None:
            raise
        raise UserError(sentence) from error


def _sentence(error: Exception, schema: type) -> str | None:
    """Return what somebody has typed wrong, as a sentence, or None where nobody has."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain(error, schema)
    if isinstance(error, yaml.YAMLError):  # in a file of conf/
        return " ".join(str(error).split())
    if "integer string conversion" in str(error):  # Python's own limit
        return "a number of thousands of digits is more than any key takes; write a smaller one"
    if isinstance(error, TypeError | ValueError) and _is_of_group(error):
        return "null, numbers and lists of them name no file of a group; write group=name, or leave that setting out"
    if re.match("Only one of --|The --resolve flag", str(error)):  # ValueErrors of Hydra's
        return str(error)
    return None


def _is_of_group(error: Exception) -> bool:
    """Return whether Hydra has failed where it reads the values of groups, which it takes for text."""
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename).name in ("defaults_list.py", "default_element.py")


def _explain(error: Exception, schema: type) -> str:
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read '{error.override}': settings are written key=value, lists key=[a,b], and words of a list "
            f"with signs or accents in quotes of their own: \"key=['a=b, ç']\""
        )
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        return f"{group}={name} must be one of {', '.join(error.options)}{did_you_mean(name, list(error.options))}"
    if several := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'", str(error)):
        return f"{several[1]} gives several values; begin with -m for a run with each, or write a list: key=[a,b]"
    if "Error resolving interpolation '${data}_${model}'" in str(error):
        return "data and model take one name each, like data=enwik8 model=base"
    if file := re.match(r"In '(.*?)': \w+ raised while composing config:\n(.*)", str(error)):
        wrong = re.search(r"full_key: (\S+)", str(error))
        return f"conf/{file[1]}.yaml: {_unknown(wrong[1], schema) if wrong and 'not in' in file[2] else file[2]}"
    # Under a debugger the errors of omegaconf have a cause, too, which says less.
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error
    override = re.search(r"(?:override|append to your config use) '?\+?~?([\w./@]+)(?:=(.*))?", str(error))
    key = override[1] if override else getattr(cause, "full_key", None)
    value = (override[2] or "").rstrip("'.") if override else ""
    if isinstance(cause, InterpolationKeyError):
        if cause.full_key is None:  # --cfg hydra shows its keys without those that they refer to
            return f"{str(cause).splitlines()[0]}; take --cfg all"
        return f"{cause.full_key} refers to a key that does not exist: {str(cause).splitlines()[0]}"
    if isinstance(cause, ValidationError) and key:
        known = keys(schema)
        if key not in known:
            return f"{key}={value} is not a value: it is a group that holds {_inside(key, schema)}"
        return f"{key}={value} must be {kind(known[key])}"
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and key:
        return _unknown(key, schema)
    if isinstance(cause, ConfigTypeError) and key:
        return f"{key} cannot be taken away; give it a value: {key}=…"
    return str(error).splitlines()[0]


def _unknown(key: str, schema: type) -> str:
    known = keys(schema)
    groups = sorted({name.split(".")[0] for name in known})
    parent, _, _ = key.rpartition(".")
    inside = _inside(parent, schema)
    alike = did_you_mean(key, list(known) if inside else [*known, *groups])
    holds = f"{parent} holds {inside}" if inside else f"here are {', '.join(groups)}"
    return f"there is no key '{key}'{alike} ({holds})"


def _inside(group: str, schema: type) -> str:
    """Return the keys of a group, for people."""
    return ", ".join(key.removeprefix(f"{group}.") for key in keys(schema) if key.startswith(f"{group}."))
