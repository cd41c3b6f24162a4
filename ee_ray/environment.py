"""What Ray reads from the environment when it is imported, so it must be set before. Imports no Ray."""

import os
import secrets
from pathlib import Path


def prepare_ray(address: str | None) -> None:
    """Settings for Ray in this process. A user's own values stand; a cluster that is joined brings its own security.

    A local cluster gets the user's token, or one of this run alone: Ray would write one into the user's home, and a
    token there changes how the next `ray start` on this machine behaves.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # the default of 2 s is spent at each slot's end
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a failed trial must not end the sweep
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is the command line's to handle
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own table: ours has its place
    # How long a slot waits where another took its room: less than a sweep waits for its slots to end (runner.py).
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    if address is not None:
        return
    os.environ["EE_RAY_NODE_TYPES"] = "[]"  # nothing is ever added to a cluster of this run (cluster.py)
    # A machine of one's own is not preempted; each slot's watcher would cost 3 CPU-seconds to start.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Ray warns when more than four times this many processes run (default: CPUs): a slot alone has six.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token" and not _has_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _has_token() -> bool:
    """Whether the user has given Ray a token in one of the ways that Ray looks for: `ray get-auth-token` knows that one."""
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    return given or (Path.home() / ".ray" / "auth_token").is_file()
