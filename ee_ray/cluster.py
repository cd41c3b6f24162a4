"""Join a Ray cluster, or start one on this machine for the length of a run."""

from collections.abc import Iterator
from contextlib import contextmanager

import ray

from ee_ray.errors import UserError

NAMESPACE = "ee_ray"


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to the cluster at `address`, or to one that lives as long as the block.

    Raises:
        UserError: no cluster answers at `address`.
    """
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "namespace": NAMESPACE}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"--address {address}: no cluster could be joined: {error}") from None
    else:
        # Nothing large goes through the object store (weights and data go through files): the least that Ray accepts.
        ray.init(address="local", include_dashboard=True, object_store_memory=100 * 2**20, **quiet)
    try:
        yield
    finally:
        ray.shutdown()
