"""`prepare --address` packs on a cluster, and gives the bytes that one process gives. A cluster takes half a minute."""

import contextlib
import json
import subprocess
import sys

import pytest
from conftest import Place, ray_environment
from test_prepare import contents, digests

from ee_ray.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 150 * 2**20})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@contextlib.contextmanager
def cluster(**environment: str):
    """The address of a cluster that another process has started."""
    process = subprocess.Popen([sys.executable, "-c", CLUSTER], env=ray_environment() | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    try:
        assert process.stdout
        yield next(line.strip() for line in process.stdout if line[0].isdigit())
    finally:
        process.communicate(timeout=60)


def test_a_cluster_packs_the_bytes_that_one_process_packs_into_a_directory_and_into_a_bucket(in_bucket, tmp_path):
    """Hosts of the cluster share a bucket's mirror with nobody; the tokenizer is trained where the command is given."""
    place = Place(tmp_path)
    large = {
        "data__post": {"source": "file:post.txt"},
        "data__ft": {"source": "builtin:chemistry", "size": 20_000},
        "tokenizer": {"train": {"vocab_size": 300, "on": "pre"}},
    }
    (tmp_path / "post.txt").write_text("".join(f"line {i} is like the others\n" for i in range(1_300_000)))
    spec = place.write(**large)
    place.ee_ray("prepare", spec, "--storage", "here")
    command = [sys.executable, "-m", "ee_ray.cli", "prepare", spec]
    with cluster(EE_RAY_CACHE=str(tmp_path / "of-the-cluster")) as address:
        for storage in ("there", in_bucket):
            where = ["--storage", storage, "--address", address]
            done = subprocess.run([*command, *where], cwd=tmp_path, env=ray_environment(), capture_output=True, text=True)  # fmt: skip
            assert done.returncode == 0, done.stderr
    store = Store(in_bucket)
    folders = sorted((tmp_path / "here/data").iterdir())
    assert [folder.name for folder in folders] == sorted(path.name for path in (tmp_path / "there/data").iterdir())
    assert max(len(list(folder.glob("train-*"))) for folder in folders) == 3
    for folder in folders:
        assert contents(folder) == contents(tmp_path / "there/data" / folder.name)
        hashes = digests(json.loads((folder / "manifest.json").read_text()))
        assert hashes and store.data_damage(folder.name, hashes) == []
    assert len(list((tmp_path / "of-the-cluster").glob("*/tokenizers/*/tokenizer.json"))) == 1
