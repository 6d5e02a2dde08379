"""A private SLURM cluster of two nodes on this machine, with accounting, in one fresh directory.

    with cluster(Path(tempfile.mkdtemp())) as (environment, away):
        subprocess.run(["sinfo"], env=environment)
        with away():
            …  # without the controller

Real daemons: munged, mariadbd, slurmdbd, slurmctld and a slurmd for each node. Whatever it has started, it stops.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

PROGRAMS = "sbatch srun sinfo squeue sacct scancel scontrol slurmctld slurmd slurmdbd sacctmgr munged mariadbd".split()
PACKAGES = "slurm-wlm munge slurmdbd mariadb-server"
GPUS = {"n1": "a100", "n2": "v100"}
NODES = tuple(GPUS)
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"


def missing() -> str | None:
    """Why a private cluster can't be started here, with what to do about it."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"no {', '.join(absent)} here: apt-get install {PACKAGES}"
    if os.getuid() != 0:
        return "a private SLURM needs root"
    return None


@contextmanager
def cluster(root: Path) -> Iterator[tuple[dict[str, str], Callable[[], AbstractContextManager[None]]]]:
    """The environment variables with which SLURM's commands, and all that calls them, reach the cluster; and a context
    in which its controller is away."""
    environment = os.environ | {"SLURM_CONF": str(root / "slurm.conf"), "PATH": PATH}
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*words: str | Path) -> None:
        output = open(root / "log" / f"{Path(words[0]).name}-{len(daemons)}", "wb")  # noqa: SIM115 (the daemon's)
        tied = ["setpriv", "--pdeathsig", "TERM", *map(str, words)]  # should this process be killed, it ends too
        daemons.append(subprocess.Popen(tied, env=environment, stdout=output, stderr=output, start_new_session=True))
        output.close()

    @contextmanager
    def away() -> Iterator[None]:
        """Stop the controller, and start it again as it was."""
        [controller] = [daemon for daemon in daemons if "slurmctld" in list(daemon.args)]  # type: ignore[arg-type]
        daemons.remove(controller)
        controller.terminate()
        controller.wait(30)
        try:
            yield
        finally:
            start("slurmctld", "-D")

    def ready(what: str, *words: str, holds: Callable[[str], bool] = lambda out: True) -> None:
        """Wait until a command succeeds, and its output says what it should."""
        until = time.monotonic() + 30
        while True:
            result = subprocess.run(words, env=environment, capture_output=True, text=True)
            if result.returncode == 0 and holds(result.stdout):
                return
            died = [daemon.args for daemon in daemons if daemon.poll() is not None]
            if died or time.monotonic() > until:
                logs = "".join(f"\n== {path}\n{path.read_text()[-3000:]}" for path in (root / "log").iterdir())
                raise RuntimeError(f"{what} is not ready ({result.stderr}), died: {died}{logs}")
            time.sleep(0.1)

    _write_files(root)
    try:
        start(
            "munged", "--foreground", "--force", f"--key-file={root}/munge.key", f"--socket={root}/munge.socket",
            f"--pid-file={root}/munged.pid", f"--log-file={root}/log/munged", f"--seed-file={root}/munge.seed",
        )  # fmt: skip
        start("mariadbd", f"--defaults-file={root}/mariadb.cnf")
        ready("munged", "munge", "-n", f"--socket={root}/munge.socket")
        ready("mariadbd", "mariadb", f"--socket={root}/mariadb.socket", "-uroot", "-e", "CREATE DATABASE slurm")
        start("slurmdbd", "-D")
        ready("slurmdbd", "sacctmgr", "-i", "add", "cluster", "private")
        start("slurmctld", "-D", "-i")
        for node in NODES:
            start("slurmd", "-D", "-N", node)
        ready(
            "slurmctld", "sinfo", "-h", "-o", "%T", holds=lambda out: out.split() == ["idle"] * len(out.split()) != []
        )
        yield environment, away
    finally:
        _stop(environment, daemons)


def _stop(environment: dict[str, str], daemons: list[subprocess.Popen[bytes]]) -> None:
    """Jobs first: a process that watches one would outlive its daemon."""
    words = ["squeue", "-h", "-o", "%i"]
    until = time.monotonic() + 30
    while time.monotonic() < until:
        jobs = subprocess.run(words, env=environment, capture_output=True, text=True)
        if jobs.returncode or not jobs.stdout.split():
            break
        subprocess.run(["scancel", *jobs.stdout.split()], env=environment, capture_output=True)
        time.sleep(0.5)
    for daemon in reversed(daemons):
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _make_database(root: Path, port: int) -> None:
    (root / "mariadb.cnf").write_text(
        f"[mariadbd]\nuser=root\ndatadir={root}/mariadb\nsocket={root}/mariadb.socket\npid-file={root}/mariadb.pid\n"
        f"bind-address=127.0.0.1\nport={port}\nskip-grant-tables\ninnodb_flush_log_at_trx_commit=0\n"
    )
    words = ["mariadb-install-db", f"--defaults-file={root}/mariadb.cnf", "--skip-test-db"]
    result = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PATH": PATH})
    assert result.returncode == 0, result.stdout + result.stderr


def _write_files(root: Path) -> None:
    """Every daemon's configuration. What is unusual is said."""
    root.chmod(0o755)
    for name in ("log", "state", "gres", *(f"spool/{node}" for node in NODES)):
        (root / name).mkdir(parents=True)
    (root / "munge.key").write_bytes(os.urandom(1024))
    (root / "munge.key").chmod(0o600)
    for number in range(2):
        (root / "gres" / f"gpu{number}").symlink_to("/dev/null")
    host = socket.gethostname().split(".")[0]
    controller, accounts, database, *nodes = _free_ports(3 + len(NODES))
    _make_database(root, database)
    common = f"AuthType=auth/munge\nAuthInfo=socket={root}/munge.socket,cred_expire=5\n"  # a requeue waits so long
    (root / "slurmdbd.conf").write_text(
        f"{common}DbdHost=localhost\nDbdPort={accounts}\nSlurmUser=root\nPidFile={root}/slurmdbd.pid\n"
        f"StorageType=accounting_storage/mysql\nStorageLoc=slurm\nStorageUser=root\nStorageHost=127.0.0.1\n"
        f"StoragePort={database}\n"
    )
    (root / "slurmdbd.conf").chmod(0o600)
    (root / "gres.conf").write_text(
        "".join(
            f"NodeName={node} Name=gpu Type={GPUS[node]} File={root}/gres/gpu[0-1]\n" for node in NODES
        )  # a device file, or invalid
    )
    (root / "slurm.conf").write_text(
        f"""{common}ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={accounts}
AccountingStoragePass={root}/munge.socket
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=10
JobRequeue=1
MpiDefault=none
GresTypes=gpu
"""  # nodes claim more cores than the machine has: config_overrides
        + "".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=32 RealMemory=64000 "
            f"Gres=gpu:{GPUS[node]}:2\n"
            for node, port in zip(NODES, nodes, strict=True)
        )
        + "".join(
            f"PartitionName={name} Nodes={','.join(NODES)} {settings}\n"
            for name, settings in (
                ("main", "Default=YES MaxTime=2-00:00:00 PriorityTier=1 PreemptMode=OFF"),
                ("spare", "PriorityTier=1"),
                ("urgent", "PriorityTier=2"),  # takes the place of jobs in spare
            )
        )
    )
