"""Objects of an S3-compatible bucket: requests that wait for a server that is away, and conditional writes.

A request that fails for want of the server is repeated, at growing intervals, for PATIENCE_SECONDS. Ages are differences of
times that the server gave: hosts' clocks are asked for nothing.
"""

import contextlib
import hashlib
import logging
import math
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import boto3
from boto3.exceptions import Boto3Error, RetriesExceededError
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    SSLError,
)

from ee_ray.disk import Entry
from ee_ray.ending import ending
from ee_ray.errors import Unreachable, UserError

PATIENCE = "EE_RAY_PATIENCE_SECONDS"  # in the environment
PATIENCE_SECONDS = 300.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between attempts
# Seconds to connect and to read; of a process that is to end, which clears up with a server that answers and no other.
TIMEOUTS, LAST_TIMEOUTS = (5, 15), (1, 3)
THREADS = 16
CHUNK = 1 << 20
DELETED_AT_ONCE = 1000
ASKED = ("endpoint_override", "scheme", "region")
SECRETS = ("key", "secret", "token", "password")
MISSING, UNMET = ("404", "NoSuchKey"), ("412", "PreconditionFailed")
BUSY = ("SlowDown", "RequestTimeout", "Throttling", "ConditionalRequestConflict", "OperationAborted")

said = logging.getLogger(__name__)


class Objects:
    """What lies at s3://BUCKET/PREFIX. Names of objects start after the prefix.

    The URI may have `endpoint_override`, `scheme` and `region`, as Arrow's may; otherwise these and the credentials are what
    AWS's own tools take from the environment and ~/.aws.

    Raises:
        UserError: a URI that cannot be used, and from every method: the server refuses for good, or has been away too long.
    """

    def __init__(self, uri: str):
        parts = urlsplit(uri)
        asked = dict(parse_qsl(parts.query))
        if parts.username or parts.password or any(word in name for name in asked for word in SECRETS):
            raise UserError("storage: a URI is written into logs, so it must hold no credentials: give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role")  # fmt: skip
        if unknown := sorted(asked.keys() - set(ASKED)):
            raise UserError(f"storage s3://{parts.netloc}{parts.path}: {unknown[0]} is not known here: there are {', '.join(ASKED)}")  # fmt: skip
        if not parts.netloc:
            raise UserError(f"storage {uri}: names no bucket: s3://BUCKET/PREFIX")
        self.uri, self.bucket = uri, parts.netloc
        self.prefix = f"{parts.path.strip('/')}/".lstrip("/")
        endpoint = asked.get("endpoint_override")
        if endpoint and "://" not in endpoint:
            endpoint = f"{asked.get('scheme', 'https')}://{endpoint}"
        try:
            self._patient, self._hasty = (
                _client(endpoint, asked.get("region"), *each) for each in (TIMEOUTS, LAST_TIMEOUTS)
            )
        except (BotoCoreError, ValueError) as error:
            raise UserError(f"storage {uri}: {error}") from None
        # A download keeps the client with which it began, and asks for each part up to five times.
        self._patient.meta.events.register("before-call.s3.GetObject", _refuse_if_ending)
        self.identity = f"{self._s3.meta.endpoint_url} {self.bucket}/{self.prefix}"
        self._created: dict[str, tuple[bytes, str]] = {}
        self._is_away = self._has_failed = False
        self._answers_since = -math.inf

    @property
    def _s3(self) -> Any:
        return self._hasty if ending.is_set() else self._patient

    def steady(self) -> float:
        """For how long, in seconds, the server has not failed to answer: what it did not hear meanwhile was not unsaid."""
        return time.monotonic() - self._answers_since

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return self._asked(call)
        except KeyboardInterrupt:
            self._is_away = (
                self._has_failed
            )  # whoever does not want to wait shall not wait for what is cleared up either
            raise

    def _asked(self, call: Callable[[], Any]) -> Any:
        """What `call` gives, called again for as long as the server is away or busy, but once it has been away too long or
        this process is to end.

        Raises:
            Unreachable: it was away too long.
            FileNotFoundError: there is no such object.
            FileExistsError: the condition of a write is not met.
        """
        started, pause = time.monotonic(), FIRST_PAUSE
        patience = 0.0 if self._is_away else float(os.environ.get(PATIENCE) or PATIENCE_SECONDS)
        while True:
            try:
                answer = call()
            except (BotoCoreError, ClientError, Boto3Error) as error:
                cause = _cause(error)
                if not _will_pass(cause):
                    self._is_away = False
                    raise self._refusal(cause) from None
                self._has_failed = True
                waited = time.monotonic() - started
                if waited + pause > patience or ending.is_set():
                    self._is_away = True
                    raise Unreachable(f"storage {self.uri}: no answer for {waited:.0f} s: {cause}; what is published is kept, and the same command goes on") from None  # fmt: skip
                if pause == FIRST_PAUSE:
                    said.warning(f"storage {self.uri}: no answer, asking again for {patience:.0f} s: {cause}")
                ending.wait(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                if self._has_failed:
                    self._answers_since = time.monotonic()
                self._is_away = self._has_failed = False
                return answer

    def _refusal(self, error: BaseException) -> Exception:
        code = error.response["Error"]["Code"] if isinstance(error, ClientError) else ""
        if code in MISSING:
            return FileNotFoundError(str(error))
        if code in UNMET:
            return FileExistsError(str(error))
        return UserError(f"storage {self.uri}: {error}")  # no credentials, no such bucket, no permission

    def _request(self, verb: str, **named: Any) -> Any:
        return self._ask(lambda: getattr(self._s3, verb)(Bucket=self.bucket, **named))

    def _key(self, name: str) -> str:
        return self.prefix + name

    def where(self, name: str) -> str:
        return f"s3://{self.bucket}/{self._key(name)}"

    def read(self, name: str) -> bytes | None:
        def get() -> Any:
            return self._s3.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()

        try:
            content: bytes = self._ask(get)
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        self._request("put_object", Key=self._key(name), Body=content)

    def obeys_conditions(self, name: str, content: bytes) -> bool:
        """Whether the server refuses to write what is there; afterwards it is there."""
        for _ in range(2):
            try:
                self._request("put_object", Key=self._key(name), Body=content, IfNoneMatch="*")
            except FileExistsError:
                return True
            except UserError as error:
                if "NotImplemented" in str(error):
                    return False
                raise
        return False

    def create(self, name: str, content: bytes) -> bool:
        """Write what is not there yet; False if it is: of many at once one gets True."""
        try:
            tag = self._request("put_object", Key=self._key(name), Body=content, IfNoneMatch="*")["ETag"]
        except FileExistsError:
            if self.read(name) != content:
                return False
            tag = self._request("head_object", Key=self._key(name))["ETag"]  # our own: the answer to it was lost
        self._created[name] = content, tag
        return True

    def renew(self, name: str) -> None:
        """Set the time of change of what this process has created to now.

        Raises:
            FileNotFoundError, FileExistsError: it is no longer what was created.
        """
        content, tag = self._created[name]
        try:
            tag = self._request("put_object", Key=self._key(name), Body=content, IfMatch=tag)["ETag"]
        except FileExistsError:
            if self.read(name) != content:
                raise
            tag = self._request("head_object", Key=self._key(name))["ETag"]  # our own: the answer to it was lost
        self._created[name] = content, tag

    def delete(self, names: Iterable[str]) -> None:
        keys = [{"Key": self._key(name)} for name in names]
        for start in range(0, len(keys), DELETED_AT_ONCE):
            self._request("delete_objects", Delete={"Objects": keys[start : start + DELETED_AT_ONCE], "Quiet": True})

    def append(self, name: str, line: str) -> None:
        """Add a line to what several may write at once: an object of its own, whose name has the time."""
        self.write(f"{name}/{time.time_ns()}-{uuid.uuid4().hex[:8]}", line.encode())

    def lines(self, name: str) -> list[str]:
        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(self.read, [f"{name}/{entry.name}" for entry in self.listed(f"{name}/")])
            return [line.decode() for line in found if line is not None]

    def now(self) -> float:
        return _date(self._request("list_objects_v2", Prefix=self.prefix, MaxKeys=1))

    def listed(self, start: str) -> list[Entry]:
        """Every object whose name starts so, called by the rest of its name, in the order of names."""
        found: list[Entry] = []
        more: dict[str, str] = {}
        while True:
            page = self._request("list_objects_v2", Prefix=self._key(start), **more)
            now = _date(page)
            for item in page.get("Contents", []):
                changed = item["LastModified"].timestamp()
                found.append(Entry(item["Key"][len(self._key(start)) :], changed, now - changed, item["Size"]))
            if not page.get("IsTruncated"):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def upload(self, path: Path, name: str) -> None:
        """A file, in parts where it is large."""
        self._ask(lambda: self._s3.upload_file(str(path), self.bucket, self._key(name)))

    def download(self, name: str, path: Path) -> None:
        """Into a file that is whole or not there.

        Raises:
            FileNotFoundError: there is no such object.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            self._ask(lambda: self._s3.download_file(self.bucket, self._key(name), str(draft)))
            os.replace(draft, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                draft.unlink()

    def sha256(self, name: str) -> str | None:
        """The hash of an object's content, or None if there is none."""

        def read() -> str:
            digest = hashlib.sha256()
            for chunk in self._s3.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].iter_chunks(CHUNK):
                digest.update(chunk)
            return digest.hexdigest()

        try:
            found: str = self._ask(read)
        except FileNotFoundError:
            return None
        return found


def _client(endpoint: str | None, region: str | None, connect: int, read: int) -> Any:
    """One attempt a request: `Objects` repeats them itself."""
    config = Config(connect_timeout=connect, read_timeout=read, max_pool_connections=2 * THREADS, retries={"total_max_attempts": 1})  # fmt: skip
    return boto3.client("s3", endpoint_url=endpoint, region_name=region, config=config)


def _refuse_if_ending(**_: Any) -> None:
    if ending.is_set():
        raise HTTPClientError(error="this process is to end")


def _date(answer: dict[str, Any]) -> float:
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()


def _cause(error: BaseException) -> BaseException:
    """What is behind the error of a transfer."""
    behind = (
        error.__context__ if isinstance(error, Boto3Error) and not isinstance(error, RetriesExceededError) else None
    )
    return behind or error


def _will_pass(error: BaseException) -> bool:
    """The server is away, busy, or went away in the middle: it may answer later."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = error.response["Error"]["Code"]
        return code in BUSY or status == 429 or (status >= 500 and code != "NotImplemented")
    lost = (ConnectionError, HTTPClientError, IncompleteReadError, RetriesExceededError)
    return isinstance(error, lost) and not isinstance(error, SSLError)
