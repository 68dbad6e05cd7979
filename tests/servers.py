"""Real servers on the loopback interface, started and stopped by a test: sshd, S3, nginx, Dask.

Each is a program of its own package, run by whoever runs the tests, with keys, ports and folders of
the test. None is touched that the machine runs itself.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from getpass import getuser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

# Where Debian puts servers: not on everybody's PATH.
PLACES = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])

HOST = "127.0.0.1"
BUCKET = "store"


def missing(*programs: str, package: str | None = None) -> str | None:
    """Why a server cannot run here, with what installs it; None where it can."""
    mends = {
        "sshd": "apt-get install openssh-server",
        "nginx": "apt-get install nginx-light",
        "slurmctld": "apt-get install slurm-wlm munge",
        "weed": "make test-servers",
    }
    for program in programs:
        if which(program) is None:
            return f"{program} is not installed ({mends.get(program, f'install {program}')})"
    if package is not None and find_spec(package) is None:
        return f"{package} is not installed (make test-servers)"
    return None


def no_small_disk(*, as_root: bool = False) -> str | None:
    """Why a small disk cannot be had here; None where it can."""
    if as_root and os.geteuid() != 0:
        return "a server with a small disk is started by root alone"
    asks = [*small_disk(Path("/mnt"), kilobytes=64, as_root=as_root), "true"]
    if (
        which("unshare") is None
        or subprocess.run(asks, capture_output=True, check=False).returncode
    ):
        return "this system lets nobody mount a small disk (unshare --user --mount)"
    return None


def small_disk(place: Path, *, kilobytes: int, as_root: bool = False) -> list[str]:
    """What a command begins with so that a folder is a small disk to it, and to nobody else.

    Nobody has to be root for it; a server that gives its rights away must be (`as_root`).
    """
    begin = ["unshare"] if as_root else ["unshare", "--user", "--map-root-user"]
    mount = f"mount -t tmpfs -o size={kilobytes}k small {shlex.quote(str(place))}"
    return [*begin, "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]


def which(program: str) -> str | None:
    """A server's program."""
    return shutil.which(program, path=PLACES)


def free_ports(n: int) -> list[int]:
    """Ports that nobody has just now, all different."""
    open_ones = [socket.socket() for _ in range(n)]
    try:
        for one in open_ones:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in open_ones]
    finally:
        for one in open_ones:
            one.close()


@contextmanager
def running(command: list[str], log: Path, *, ports: list[int]) -> Iterator[None]:
    """A server inside the block, which begins when it takes connections at all its ports."""
    with log.open("w") as told:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=told, stderr=subprocess.STDOUT, cwd=log.parent
        )
    try:
        for port in ports:
            _wait(server, port, log)
        yield
    finally:
        server.terminate()
        try:
            server.wait(3)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60

    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        with socket.socket() as trying:
            trying.settimeout(1)
            if trying.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nothing answers at {port}: {log.read_text()[-3000:]}")


@contextmanager
def dask(
    folder: Path, environment: dict[str, str]
) -> Iterator[tuple[Path, list[subprocess.Popen[bytes]]]]:
    """A scheduler's file, and two workers of it, each a process that nobody starts again."""
    file = folder / "scheduler.json"
    with ExitStack() as stack:
        begun = ["dask_scheduler", "--scheduler-file", str(file), "--host", HOST]
        stack.enter_context(_of_dask(environment, *begun, "--port", "0", "--no-dashboard"))
        deadline = time.monotonic() + 120
        while not file.is_file():
            assert time.monotonic() < deadline, "the scheduler has written no file"
            time.sleep(0.05)

        asked = ["dask_worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-nanny"]
        asked += ["--no-dashboard", "--local-directory", str(folder)]
        yield file, [stack.enter_context(_of_dask(environment, *asked)) for _ in range(2)]


@contextmanager
def _of_dask(
    environment: dict[str, str], program: str, *arguments: str
) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", f"distributed.cli.{program}", *arguments]
    quiet = environment | {"DASK_LOGGING__DISTRIBUTED": "critical"}
    server = subprocess.Popen(command, env=quiet)
    try:
        yield server
    finally:
        server.kill()
        server.wait()


def tasks(project: Path, *, of: int | None = None) -> list[psutil.Process]:
    """Processes of tasks of a project's commands, on this machine; or of one worker's alone."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "ppid"]):
        told = process.info
        is_task = "interp_core.training.cluster" in (told["cmdline"] or [])
        if not is_task or told["cwd"] != str(project) or of not in (None, told["ppid"]):
            continue
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@dataclass(frozen=True)
class Ssh:
    """An sshd that lets one key in."""

    port: int
    key: Path
    stranger: Path  # a key that it does not know

    def address(self, folder: Path) -> str:
        """A folder of this machine, as DVC names it behind this server."""
        return f"ssh://{getuser()}@{HOST}:{self.port}{folder}"


@contextmanager
def sshd(folder: Path, *, disk: Sequence[str] = ()) -> Iterator[Ssh]:
    """An sshd with keys of its own, for the user who runs the tests, on a `small_disk` or not."""
    folder.mkdir(parents=True)
    folder.chmod(0o700)
    keys = {name: folder / name for name in ("host", "known", "stranger")}
    for key in keys.values():
        subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", str(key)], check=True)

    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # root's sshd parts with its rights there

    (port,) = free_ports(1)
    sftp = "internal-sftp"
    (folder / "config").write_text(
        f"Port {port}\nListenAddress {HOST}\nHostKey {keys['host']}\nPidFile none\n"
        f"AuthorizedKeysFile {keys['known']}.pub\nStrictModes no\nUsePAM no\n"
        f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        f"Subsystem sftp {sftp}\n"
    )
    program = which("sshd")
    assert program is not None
    command = [*disk, program, "-D", "-e", "-f", str(folder / "config")]

    with running(command, folder / "log", ports=[port]):
        yield Ssh(port, keys["known"], keys["stranger"])


@dataclass(frozen=True)
class S3:
    """A server of Amazon's S3 protocol, with one user and one bucket."""

    port: int
    key: str = "tester"
    secret: str = "a-secret-of-the-tests"

    @property
    def endpoint(self) -> str:
        """What DVC calls endpointurl."""
        return f"http://{HOST}:{self.port}"

    def client(self) -> Any:
        """Amazon's own client, to look behind DVC."""
        import botocore.session  # pyright: ignore[reportMissingImports]

        return botocore.session.get_session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
        )


@contextmanager
def seaweed(folder: Path, *, kilobytes: int | None = None) -> Iterator[S3]:
    """SeaweedFS, whole: master, volumes, filer and the S3 gateway in one process; all it keeps on
    a `small_disk` of so many kilobytes, or not.
    """
    import json

    (folder / "data").mkdir(parents=True)
    disk = [] if kilobytes is None else small_disk(folder / "data", kilobytes=kilobytes)
    names = ("master", "volume", "filer", "s3")
    ports = free_ports(2 * len(names))
    served = S3(ports[-1])

    identity = {
        "name": served.key,
        "credentials": [{"accessKey": served.key, "secretKey": served.secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "users.json").write_text(json.dumps({"identities": [identity]}))

    places = [f"-{name}.port={ports[2 * i + 1]}" for i, name in enumerate(names)]
    places += [f"-{name}.port.grpc={ports[2 * i]}" for i, name in enumerate(names)]
    program = which("weed")
    assert program is not None
    command = [*disk, program, "server", "-s3", f"-dir={folder / 'data'}", f"-ip={HOST}"]
    command += [*places, f"-s3.config={folder / 'users.json'}", "-volume.max=20"]
    command += ["-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.port.lance=0"]

    with running(command, folder / "log", ports=[ports[1], ports[3], ports[5], ports[7]]):
        _make_bucket(served, folder / "log")
        yield served


def _make_bucket(served: S3, log: Path) -> None:
    """The gateway answers before the filer behind it does."""
    from botocore.exceptions import BotoCoreError, ClientError  # pyright: ignore[reportMissingImports]

    client = served.client()
    deadline = time.monotonic() + 60

    while time.monotonic() < deadline:
        try:
            client.create_bucket(Bucket=BUCKET)
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


@contextmanager
def nginx(folder: Path, served: Path) -> Iterator[str]:
    """The address under which a folder can be read, and not written."""
    folder.mkdir(parents=True)
    (port,) = free_ports(1)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder / kind};\n" for kind in kinds)
    # Root's nginx reads as another user, who may not look into a test's folder.
    user = f"user {getuser()};\n" if os.geteuid() == 0 else ""
    (folder / "config").write_text(
        f"{user}daemon off;\nworker_processes 1;\npid {folder / 'pid'};\n"
        f"error_log stderr;\nevents {{}}\n"
        f"http {{\n{temporary}access_log off;\n"
        f"server {{ listen {HOST}:{port}; root {served}; }}\n}}\n"
    )
    program = which("nginx")
    assert program is not None
    with running(
        [program, "-c", str(folder / "config"), "-p", str(folder), "-e", "stderr"],
        folder / "log",
        ports=[port],
    ):
        yield f"http://{HOST}:{port}"


@dataclass(frozen=True)
class Slurm:
    """A Slurm of one node, this machine."""

    config: Path

    @property
    def environment(self) -> dict[str, str]:
        """What its commands need."""
        return {"SLURM_CONF": str(self.config)}

    def call(self, *command: str, cwd: Path | None = None) -> str:
        """What one of its commands prints."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED ... of a job."""
        said = self.call("scontrol", "show", "job", job)
        return said.partition("JobState=")[2].split()[0]


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Slurm, whole: munge for its keys, the controller, and one node with two processors."""
    for name in ("", "state", "spool", "munge"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    munge = folder / "munge"
    munge.chmod(0o700)
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o400)

    host = socket.gethostname().partition(".")[0]
    controller, node = free_ports(2)
    megabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 9 // 10
    config = folder / "slurm.conf"
    config.write_text(
        f"ClusterName=tests\nSlurmctldHost={host}({HOST})\nSlurmUser={getuser()}\n"
        f"AuthType=auth/munge\nAuthInfo=socket={munge / 'socket'}\n"
        f"SlurmctldPort={controller}\nSlurmdPort={node}\n"
        f"StateSaveLocation={folder / 'state'}\nSlurmdSpoolDir={folder / 'spool'}\n"
        f"SlurmctldPidFile={folder / 'ctld.pid'}\nSlurmdPidFile={folder / 'd.pid'}\n"
        # Nothing of the machine is changed: no cgroup, no MPI, no accounting.
        "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMpiDefault=none\n"
        "SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nReturnToService=2\n"
        "KillWait=5\nSchedulerParameters=sched_interval=1\n"
        f"NodeName={host} NodeAddr={HOST} CPUs=2 RealMemory={megabytes}\n"
        f"PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE OverSubscribe=FORCE:4\n"
    )
    programs = {name: which(name) or name for name in ("munged", "slurmctld", "slurmd")}
    keys = [f"--key-file={munge / 'key'}", f"--socket={munge / 'socket'}"]
    keys += [f"--{name}-file={munge / name}" for name in ("pid", "log", "seed")]

    with (
        running([programs["munged"], "--force", "--foreground", *keys], folder / "m", ports=[]),
        running([programs["slurmctld"], "-D", "-f", str(config)], folder / "c", ports=[controller]),
        running([programs["slurmd"], "-D", "-f", str(config)], folder / "d", ports=[node]),
    ):
        served = Slurm(config)
        deadline = time.monotonic() + 60
        while served.call("sinfo", "--noheader", "--format", "%t") != "idle":
            assert time.monotonic() < deadline, (folder / "d").read_text()[-3000:]
            time.sleep(0.2)
        try:
            yield served
        finally:
            served.call("scancel", "--user", getuser())
