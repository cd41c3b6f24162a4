"""Where a sweep that `faults.py` hurts keeps its store, and what can befall that place: a folder, a disk of its own (root, loop
devices), a bucket of an S3 server's process (moto's, tests/s3.py)."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from conftest import Place  # noqa: E402
from s3 import Server, serving  # noqa: E402

DISK_MEGABYTES = 48
FREEZE_SECONDS = 45.0  # longer than a claim lives without a sign of life
LATE_SECONDS = 0.3  # of each answer of a slow server


@contextmanager
def in_folder(folder: Path) -> Iterator[Place]:
    yield Place(folder)


@contextmanager
def on_disk(folder: Path) -> Iterator[Place]:
    """The store has a file system for itself."""
    store, image = folder / "store", folder / "store.img"
    store.mkdir()
    image.write_bytes(b"")
    os.truncate(image, DISK_MEGABYTES << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, store], check=True)
    try:
        yield Place(folder)
    finally:
        subprocess.run(["umount", "--lazy", store], check=True)


class BucketPlace(Place):
    def __init__(self, folder: Path, storage: str, server: Server):
        super().__init__(folder, storage)
        self.server = server


@contextmanager
def in_bucket(folder: Path) -> Iterator[Place]:
    """The store is in a bucket; environment and mirror are those of processes that are started meanwhile, too."""
    before = dict(os.environ)
    with serving(folder) as server:
        server.client().create_bucket(Bucket="stores")
        os.environ |= {**server.environment, "EE_RAY_CACHE": str(folder / "cache")}
        try:
            yield BucketPlace(folder, "s3://stores/store", server)
        finally:
            os.environ.clear()
            os.environ |= before


def fill(place: Place) -> None:
    """Take all of the disk, for as long as the run lasts."""
    with (place.store.root / "ballast").open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        except OSError:
            return


def clear(place: Place) -> None:
    """Give a full disk room again."""
    (place.store.root / "ballast").unlink(missing_ok=True)


def freeze(place: Place) -> None:
    subprocess.run(["fsfreeze", "-f", place.store.root], check=True)
    time.sleep(FREEZE_SECONDS)
    subprocess.run(["fsfreeze", "-u", place.store.root], check=True)


def refuse(place: BucketPlace, seconds: float) -> None:
    with place.server.away(seconds):
        pass


def hang(place: BucketPlace, seconds: float) -> None:
    with place.server.away(seconds, "hangs"):
        pass


def slow(place: BucketPlace) -> None:
    """Until the sweep has ended."""
    place.server.relay.late = LATE_SECONDS
