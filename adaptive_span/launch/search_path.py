"""Tell Hydra where to look for files of a group: the user's own `./conf` first, then the project's."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from adaptive_span.config.places import CONF, SWEEPS


def folders() -> list[Path]:
    """Return the folders that hold groups, the one that counts first at the front."""
    user_conf = Path("conf").absolute()
    return [user_conf, CONF] if user_conf.is_dir() and not user_conf.samefile(CONF) else [CONF]


class OwnConf(SearchPathPlugin):
    """Put `./conf` in front of the project's files."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Prepend the user's folder."""
        for folder in folders()[:-1]:
            search_path.prepend(provider="own", path=f"file://{folder}")


def register() -> None:
    """Let Hydra find `./conf`, and the files of `sweeps/` as the group `sweep`, wherever they lie."""
    Plugins.instance().register(OwnConf)
    for file in SWEEPS.glob("*.yaml"):
        ConfigStore.instance().store(group="sweep", name=file.stem, node=OmegaConf.load(file))
