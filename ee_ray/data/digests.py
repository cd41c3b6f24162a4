"""The sha256 of files, remembered by path, size and time of change, so that large corpora are hashed once.

A hash is only remembered of a file that had rested when it was hashed: two changes within one tick of the file system's
clock look like one. Losing the memory, or an entry to another process that writes at the same time, costs time and
nothing else.
"""

import hashlib
import json
import time
from pathlib import Path

from ee_ray.data.files import File
from ee_ray.disk import write_whole

REST_NS = 2 * 10**9  # the coarsest clock of a file system in use (FAT) ticks every two seconds
SMALL = 1 << 20  # bytes; smaller files are hashed as quickly as they are looked up
CHUNK = 1 << 20


def sha256(file: File) -> str:
    """The hash of a file's bytes as they are stored, compressed or not, here or in a bucket."""
    digest = hashlib.sha256()
    with file.system.open_input_stream(file.path, compression=None) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class Digests:
    """Hashes of files, kept in the JSON file `memory`: {"schema": 1, "sha256": {"name size mtime_ns": hash}}."""

    def __init__(self, memory: Path):
        self.memory = memory
        self.known = self._read()
        self.found: dict[str, str] = {}

    def _read(self) -> dict[str, str]:
        try:
            content = json.loads(self.memory.read_text())
            return dict(content["sha256"]) if content["schema"] == 1 else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def sha256(self, file: File) -> str:
        """The file's hash: remembered, or computed now."""
        entry = f"{file.name} {file.size} {file.mtime_ns}"
        if entry in self.known:
            return self.known[entry]
        rested = time.time_ns() - file.mtime_ns > REST_NS
        digest = sha256(file)
        if rested and file.size >= SMALL:
            self.found[entry] = digest
        return digest

    def save(self) -> None:
        """Add what was computed to the memory.

        Raises:
            OSError: the folder of the memory is not there or cannot be written.
        """
        content = {"schema": 1, "sha256": {**self._read(), **self.found}}
        write_whole(self.memory, json.dumps(content, indent=1).encode())
        self.known, self.found = self._read(), {}
