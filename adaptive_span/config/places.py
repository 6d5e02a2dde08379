"""Find the configuration: beside the package in a checkout, inside it where a wheel was installed."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "conf" / "launch.yaml").is_file() else None
CONF = (CHECKOUT or PACKAGE) / "conf"
SWEEPS = CHECKOUT / "sweeps" if CHECKOUT else CONF / "sweep"
