"""Two machines on one: namespaces of their own for network, processes, host name and /etc/hosts, joined by a cable."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import pytest

ADDRESSES = ("10.77.0.1", "10.77.0.2")
# Debian's and Ubuntu's installers write the second line, some containers have the third
HOSTS = "127.0.0.1 localhost\n127.0.1.1 box1\n127.0.0.1 box2\n"


class Machine:
    """A machine with an address but no default route, whose name leads to loopback. Files are shared, but for /tmp/ray.

    number: 1 or 2.
    folder: for its own files; its home.
    """

    def __init__(self, number: int, folder: Path):
        self.address = ADDRESSES[number - 1]
        self.folder = folder
        hosts = folder / "hosts"
        hosts.write_text(HOSTS)
        setup = (  # the loop reaps what processes leave
            f"hostname box{number} && mount --bind {hosts} /etc/hosts && mkdir -p /tmp/ray && "
            "mount -t tmpfs none /tmp/ray && ip link set lo up && echo up && while sleep 1; do :; done"
        )
        namespaces = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        command = ["unshare", *namespaces, "sh", "-c", setup]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if said != "up\n":
            self.off()
            raise OSError(said.strip())
        self.pid = int(Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text())

    def start(self, *command: str, cwd: Path, log: Path | None = None) -> subprocess.Popen[str]:
        """Start a command on this machine; its outputs go to a file or, without one, to a pipe."""
        enter = ["nsenter", "-t", str(self.pid), "-n", "-u", "-i", "-m", "-p", f"--wd={cwd}"]
        environment = os.environ | {"HOME": str(self.folder)}
        with log.open("w") if log else nullcontext(subprocess.PIPE) as output:
            return subprocess.Popen(
                [*enter, *command], env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
            )

    def run(self, *command: str, fails: bool = False, cwd: Path = Path("/")) -> str:
        """Both outputs of a command, which must succeed, or must fail."""
        process = self.start(*command, cwd=cwd)
        said, _ = process.communicate()
        assert (process.returncode != 0) == fails, said
        return said

    def off(self) -> None:
        """End every process, as a power cut does."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def machines(folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """Skip the test where namespaces are not allowed."""
    with ExitStack() as stack:
        pair = []
        for number in (1, 2):
            (folder / str(number)).mkdir()
            try:
                pair.append(Machine(number, folder / str(number)))
            except OSError as error:  # not root, or no `unshare` or `ip`
                pytest.skip(f"no namespaces here: {error}")
            stack.callback(pair[-1].off)
        one, two = pair
        cable = ["ip", "link", "add", "eth0", "netns", str(one.pid), "type", "veth"]
        subprocess.run([*cable, "peer", "name", "eth0", "netns", str(two.pid)], check=True)
        for machine in pair:
            machine.run("ip", "addr", "add", f"{machine.address}/24", "dev", "eth0")
            machine.run("ip", "link", "set", "eth0", "up")
        for machine in pair:  # the cable carries something a moment later
            machine.run("sh", "-c", "until ip -br link show eth0 | grep -q ' UP '; do sleep 0.1; done")
        yield one, two
