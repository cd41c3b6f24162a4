"""What a run stands on is seen to be gone within seconds, and a disk without room is one message."""

import subprocess
import sys
import threading
import time

import pytest
from conftest import Place, ray_environment

from ee_ray.liveness import SILENT_SECONDS, Port, ask, gone, verdict, watched

LISTEN = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); time.sleep(60)"


@pytest.fixture
def listener():
    """A process that listens, and its port."""
    process = subprocess.Popen([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True)
    yield process, Port("the listener", "127.0.0.1", int(process.stdout.readline()))
    process.kill()
    process.wait()


def test_a_process_that_is_killed_is_noticed_at_once_and_interrupts_the_block(listener):
    process, port = listener
    said, main = [], threading.main_thread()
    with pytest.raises(KeyboardInterrupt), watched([port], said.append):
        time.sleep(1.2)
        assert ask(port) == "open" and gone([port]) is None and not said
        process.kill()
        process.wait()
        killed = time.monotonic()
        while time.monotonic() - killed < 60:
            time.sleep(0.01)
    assert time.monotonic() - killed < 50 and main.is_alive()
    assert said == [f"the listener (127.0.0.1:{port.number}) has ended"] == [gone([port])]


def test_after_the_block_nobody_looks(listener):
    process, port = listener
    said = []
    with watched([port], said.append):
        pass
    process.kill()
    process.wait()
    time.sleep(1.2)
    assert not said


def test_silence_is_borne_for_less_than_rays_own_minute():
    port = Port("the head", "10.0.0.1", 6379)
    assert verdict(port, "silent", SILENT_SECONDS - 1) is None
    assert verdict(port, "silent", SILENT_SECONDS) == "the head (10.0.0.1:6379) has not answered for 50 s"
    assert SILENT_SECONDS < 60


def test_a_disk_without_room_ends_a_run_with_one_message_and_the_same_command_goes_on_once_there_is_room(
    finished, tmp_path
):
    """A file system of its own on the store, in a namespace of its own; what was kept is compared after it was given room."""
    place = Place(tmp_path)
    place.write()
    ee_ray = f"{sys.executable} -m ee_ray.cli run tiny.yaml --local"
    script = f"""
    mkdir store && mount -t tmpfs -o size=1m tmpfs store || exit 77
    {ee_ray}; echo "status $?" >&2
    mount -o remount,size=64m store
    {ee_ray} && cp -a store kept
    """
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script], cwd=tmp_path, env=ray_environment(), capture_output=True, text=True, timeout=200
    )  # fmt: skip
    if done.returncode in (1, 77) and "status" not in done.stderr:
        pytest.skip("no file systems can be mounted here")
    said = " ".join(done.stderr.split())
    assert "status 3" in said and "Traceback" not in said
    assert said.count("no room is left on") == 1 and f"the disk at {tmp_path / 'store'} of" in said and "MB free)" in said  # fmt: skip
    assert done.returncode == 0, done.stderr
    (tmp_path / "store").rmdir()
    (tmp_path / "kept").rename(tmp_path / "store")
    assert place.numbers() == finished.numbers()


def test_an_address_where_nothing_answers_is_said_at_once(listener, tmp_path):
    process, port = listener
    process.kill()
    process.wait()
    place = Place(tmp_path)
    said = place.ee_ray("run", place.write(), "--address", f"127.0.0.1:{port.number}", status=2).stderr
    assert "nothing answers there" in said and "Traceback" not in said
