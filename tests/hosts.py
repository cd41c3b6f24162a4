"""Hosts on one machine: each with its own network, processes, home, /tmp and sshd; the disk at /mnt/ee_ray is shared.

A host is one `unshare` of this process; everything of it, network included, ends when that process is killed, and it is
killed when this one dies. Links go from the hosts to a bridge in the first of them, which stands for the machine of the
person: nothing is changed in the network of the real machine, and no packet leaves.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "mount", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd")
NETWORK = "10.77.0"
SHARED = Path("/mnt/ee_ray")
NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")

SSHD = """
ListenAddress {address}
HostKey {folder}/hostkey
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
UseDNS no
PrintMotd no
PrintLastLog no
MaxSessions 64
MaxStartups 64
"""

# What hides under /tmp and is still needed is moved aside while /tmp is replaced.
INIT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/keep {shared}
mount --bind {rack}/shared {shared}
n=0; for path in {keep}; do n=$((n+1)); mkdir /mnt/keep/$n; mount --bind $path /mnt/keep/$n; done
mount --bind {folder}/tmp /tmp
n=0; for path in {keep}; do n=$((n+1)); mkdir -p $path; mount --bind /mnt/keep/$n $path; done
mount --bind {folder}/run /run
mkdir -p /run/sshd
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount --bind {folder}/passwd /etc/passwd
mount --bind {rack}/hosts /etc/hosts
: > /run/resolv.conf
mount --bind /run/resolv.conf /etc/resolv.conf
hostname {name}
exec env -i HOME={folder}/home PATH={path} /usr/sbin/sshd -D -e -f {folder}/sshd_config
"""


def why_not() -> str | None:
    """What this machine lacks to make hosts; None if nothing."""
    if os.geteuid():
        return "network namespaces need root"
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        return f"missing programs: {', '.join(missing)} (packages iproute2, util-linux, openssh-server, rsync)"
    probe = "ip link add probe type veth peer name probe1 && ip link add bridge type bridge && mount --make-rprivate /"
    done = subprocess.run(["unshare", *NAMESPACES, "--fork", "bash", "-c", probe], capture_output=True, text=True)
    return f"not allowed to make namespaces: {done.stderr.strip()}" if done.returncode else None


class Host:
    """One host of a rack: a folder, an address, and the process that holds its namespaces."""

    def __init__(self, rack: "Rack", name: str, number: int):
        self.name, self.address, self.folder = name, f"{NETWORK}.{number}", rack.folder / name
        self.home = self.folder / "home"
        for part in ("home", "tmp", "run"):
            (self.folder / part).mkdir(parents=True)
        (self.folder / "tmp").chmod(0o1777)
        self._write(rack)
        init = ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, "--fork", "--mount-proc", "--kill-child=KILL"]
        with (self.folder / "sshd.log").open("w") as log:
            self._holder = subprocess.Popen([*init, "bash", self.folder / "init"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # fmt: skip

    def _write(self, rack: "Rack") -> None:
        passwd = Path("/etc/passwd").read_text().splitlines()
        root = f"root:x:0:0:root:{self.home}:/bin/bash"
        (self.folder / "passwd").write_text("\n".join([root, *(line for line in passwd if line[:5] != "root:")]) + "\n")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "hostkey"], check=True)
        shutil.copy(f"{rack.key}.pub", self.folder / "authorized_keys")
        (self.folder / "sshd_config").write_text(SSHD.format(address=self.address, folder=self.folder))
        kept = " ".join(shlex.quote(str(path)) for path in rack.keep)
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        init = INIT.format(shared=SHARED, rack=rack.folder, folder=self.folder, keep=kept, name=self.name, path=path)
        (self.folder / "init").write_text(init)
        (self.home / ".bash_profile").write_text(". ~/.bashrc\n")

    @property
    def pid(self) -> int:
        """The first process inside the host, as this machine numbers it."""
        pid = self._holder.pid
        end = time.monotonic() + 10
        while not (children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            assert time.monotonic() < end, (self.folder / "sshd.log").read_text()
            time.sleep(0.01)
        return int(children[0])

    def inside(self, *command: object) -> list[str]:
        """The command line that runs `command` in this host."""
        enter = ["nsenter", "--target", str(self.pid), *NAMESPACES]
        return [*enter, "env", "-i", f"HOME={self.home}", "TERM=dumb", "bash", "-lc", shlex.join(map(str, command))]

    def run(self, *command: object, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.inside(*command), capture_output=True, text=True, timeout=seconds)

    def processes(self, name: str) -> int:
        """How many processes of the host have `name` in their command lines."""
        return int(self.run("pgrep", "-fc", f"[{name[0]}]{name[1:]}").stdout)  # a pattern that does not match itself

    def down(self) -> None:
        self._holder.kill()
        self._holder.wait(10)


class Rack:
    """A person's machine and some hosts that it reaches by ssh, until `down`."""

    def __init__(self, folder: Path, hosts: Sequence[str], keep: Sequence[Path]):
        self.folder, self.key = folder, folder / "id"
        (folder / "shared").mkdir(parents=True)
        seen = [*keep, Path(sys.prefix), Path(sys.base_prefix), folder]
        self.keep = sorted({path.resolve() for path in seen if path.resolve().is_relative_to("/tmp")})
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        names = ["laptop", *hosts]
        lines = [f"{NETWORK}.{number} {name}" for number, name in enumerate(names, 1)]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
        self.all: list[Host] = []
        try:
            for number, name in enumerate(names, 1):
                self.all.append(Host(self, name, number))
            self.laptop, self.hosts = self.all[0], self.all[1:]
            self._cable()
            self._wait_for_sshd()
        except BaseException:
            self.down()
            raise

    def _cable(self) -> None:
        laptop = self.laptop
        _ip(laptop, "link add bridge type bridge", f"addr add {laptop.address}/24 dev bridge", "link set bridge up", "link set lo up")  # fmt: skip
        for host in self.hosts:
            _ip(laptop, f"link add to-{host.name} type veth peer name eth0 netns {host.pid}", f"link set to-{host.name} master bridge up")  # fmt: skip
            _ip(host, f"addr add {host.address}/24 dev eth0", "link set lo up", "link set eth0 up", f"route add default via {laptop.address}")  # fmt: skip

    def _wait_for_sshd(self) -> None:
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-o", "ConnectTimeout=2"]  # fmt: skip
        for host in self.hosts:
            end = time.monotonic() + 20
            while (seen := self.laptop.run("ssh", *options, "-i", self.key, f"root@{host.address}", "true")).returncode:
                assert time.monotonic() < end, seen.stderr + (host.folder / "sshd.log").read_text()
                time.sleep(0.2)

    def down(self) -> None:
        for host in self.all:
            host.down()


def _ip(host: Host, *commands: str) -> None:
    """Run commands of `ip` in the network of a host, with this machine's own numbering of processes."""
    for command in commands:
        subprocess.run(["nsenter", "--target", str(host.pid), "--net", "ip", *command.split()], check=True)
