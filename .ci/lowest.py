"""Print the oldest version that setup.cfg admits of each dependency, as constraints for pip."""

import configparser
import re
from pathlib import Path

settings = configparser.ConfigParser()
settings.read(Path(__file__).parent.parent / "setup.cfg")
groups = [settings["options"]["install_requires"], *settings["options.extras_require"].values()]
for line in "\n".join(groups).splitlines():
    if found := re.match(r"\s*([\w-]+)(?:\[.*?\])?\s*>=\s*([\w.]+)", line):
        print(f"{found[1]}=={found[2]}")
