"""Times, memory and GPUs as SLURM writes them, on the command line and in a file of `conf/`."""

import shutil

import pytest
from hydra import compose, initialize_config_dir

from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.config.quantities import Gpus
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError
from adaptive_span.launch import command_line, local, sweep_jobs
from adaptive_span.launch.search import sweeper as search_sweeper
from adaptive_span.launch.slurm import launcher as slurm_launcher
from adaptive_span.launch.slurm.options import TAKEN, checked
from adaptive_span.storage.stored import from_dict
from tests.conftest import ROOT
from tests.unit.config.test_config import composed

READ = {
    "time": {
        "90": 90, "30:00": 30, "2:00:00": 120, "1-12": 2160, "1-12:30": 2190, "1-12:00:00": 2160, "0:30": 1, "5:01": 6,
    },
    "memory": {"16": 16384, "16G": 16384, "16GB": 16384, "16gib": 16384, "16000M": 16000, "1.5T": 1572864, "1K": 1},
    "gpus": {"2": Gpus(2), "a100:2": Gpus(2, "a100"), "gpu:a100:2": Gpus(2, "a100"), "gpu:2": Gpus(2), "0": Gpus(0)},
}  # fmt: skip
NUMBERS = {"time": "minutes", "memory": "megabytes", "gpus": "wanted_gpus"}


@pytest.mark.parametrize("key", READ)
def test_a_quantity_is_read_as_slurm_reads_it(key):
    for text, value in READ[key].items():
        assert getattr(composed(f"hardware.{key}={text}").hardware, NUMBERS[key]) == value


@pytest.mark.parametrize(
    ("key", "text"),
    [("time", text) for text in ("0", "0:00", "soon", "1:30.5", "-5", "1:2:3:4", "1-", "٣", "90.0")]
    + [("memory", text) for text in ("0", "16X", "-1", "G", "16 G", "1e3")]
    + [("gpus", text) for text in ("a100", "a100:", "-1", "2:a100", "a100:2,v100:1")],
)
def test_what_is_no_quantity_is_one_sentence(key, text):
    with pytest.raises(UserError, match=rf"^hardware\.{key}={text} must be [^;]*, like "):
        HardwareConfig(**{key: text}).validate()


def test_a_file_may_hold_a_time_without_quotes(tmp_path):
    """PyYAML alone would read 2:00:00 as 7200, which are five days, 1:30.5 as 90.5 and 0123 as 83."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf", ignore=shutil.ignore_patterns("local"))
    (tmp_path / "conf" / "local").mkdir()
    text = "hardware: {time: 2:00:00, account: 0123, memory: 16, sbatch: {begin: 1:30.5}}\ntrain: {steps: 0020}\n"
    (tmp_path / "conf" / "local" / "default.yaml").write_text(text)
    command_line.register("launch", Config, local, sweep_jobs, slurm_launcher, search_sweeper)
    with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        config = command_line.typed(compose("launch"), Config)
    hardware = config.hardware
    assert (hardware.time, hardware.minutes, hardware.account, hardware.megabytes) == ("2:00:00", 120, "0123", 16384)
    assert hardware.sbatch == {"begin": "1:30.5"}
    assert config.train.steps == 20


def test_the_hardware_of_an_older_checkpoint_is_read():
    hardware = from_dict({"device": "cpu", "gpus": None, "memory": 16, "time": 1440}, HardwareConfig, "itself")
    assert (hardware.minutes, hardware.megabytes) == (1440, 16384)


def test_options_of_sbatch():
    given = composed("hardware.sbatch={exclude: [n1,n2], mail-user: me@example.org, hold: true, nice: null}").hardware
    assert checked(given.sbatch) == {"exclude": "n1,n2", "mail-user": "me@example.org", "hold": True}
    assert composed("hardware.sbatch.hold=true", "hardware.sbatch.nice=3").hardware.sbatch == {"hold": True, "nice": 3}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [(name, 1, f"the job has already: {instead} sets it") for name, instead in TAKEN.items()]
    + [("part", "main", "hardware.partition sets it"), ("ntasks", 2, "hardware.processes sets it")]
    + [(name, 1, "like mail-user") for name in ("mail_user", "w", "--exclude", "a b", "Exclude", "")]
    + [("comment", value, "one line of text") for value in ("a\nb", {"a": 1}, ["a\nb"])],
)
def test_options_of_sbatch_that_are_refused(name, value, told):
    with pytest.raises(UserError, match=told):
        checked({name: value})
