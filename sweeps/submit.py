"""What `ray submit` copies to the head and runs there: a sweep, its store and its reports on the shared disk, or with
`--storage s3://BUCKET/PREFIX` its store in a bucket and its reports in the head's home folder.

    ray submit cluster.yaml sweeps/submit.py -- sweeps/quickstart.yaml

`ray submit` takes a script and no command, and starts it in the home folder; hence this file, and no more than this.
Further arguments are those of `ee-ray run`. In a job (`ray job submit`) the same line does the same.
"""

import os
import sys
from pathlib import Path

PROJECT = Path.home() / "ee_ray"  # where `ray up` puts the project
SHARED = Path(os.environ.get("EE_RAY_SHARED", "/mnt/ee_ray"))

if __name__ == "__main__":
    in_bucket = any("s3://" in argument for argument in sys.argv[2:])
    if len(sys.argv) < 2 or not (SHARED.is_dir() or in_bucket):
        sys.exit(
            f"usage: submit.py SPEC [OPTIONS of ee-ray run]; {SHARED} must be a disk that every node sees "
            "(EE_RAY_SHARED names another), or the store in a bucket: --storage s3://BUCKET/PREFIX"
        )
    spec = Path(sys.argv[1]) if Path(sys.argv[1]).exists() else PROJECT / sys.argv[1]
    command = ["ee-ray", "run", str(spec.resolve()), "--address", "auto", "--storage", "store", *sys.argv[2:]]
    os.chdir(Path.home() if in_bucket else SHARED)
    print(f"store: {'as asked' if in_bucket else SHARED / 'store'}, reports: {Path.cwd() / 'reports'}", flush=True)
    os.execvp(command[0], command)
