"""Clusters: the files that describe them, what they can hold, and who may talk to them."""

import copy
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import botocore.session
import jsonschema
import pytest
import requests
import yaml
from botocore.validate import ParamValidator
from conftest import ROOT, Place, ray_environment
from ray._private.accelerators import get_all_accelerator_managers
from ray.autoscaler._private.util import prepare_config, validate_config

from ee_ray.capacity import (
    NODE_TYPES,
    SLOT_BYTES,
    TRIAL_BYTES,
    NodeType,
    autoscaled,
    bounded,
    declared,
    node_types,
    slot_counts,
    slots_that_fit,
)
from ee_ray.cluster import connected
from ee_ray.errors import UserError
from ee_ray.spec.execution import Execution

AWS, LOCAL = ROOT / "cluster.yaml", ROOT / "docs/cluster-local.yaml"
FILES = pytest.mark.parametrize("file", [AWS, LOCAL], ids=lambda path: path.name)


def prepared(file: Path) -> dict:
    return prepare_config(yaml.safe_load(file.read_text()))


def ec2_problems(config: dict) -> list[str]:
    """What EC2 would refuse in the node types: names and types of fields, by botocore's own model of its API."""
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    problems = []
    for name, kind in config["available_node_types"].items():
        found = ParamValidator().validate({**kind["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        problems += [f"{name}: {found.generate_report()}"] if found.has_errors() else []
    return problems


@FILES
def test_ray_accepts_the_cluster_files_with_its_own_defaults_filled_in(file):
    validate_config(prepared(file))


@FILES
def test_each_has_three_fields_to_fill_in(file):
    assert re.findall(r"FILL IN (\d)", file.read_text()) == ["1", "2", "3"]


def test_ray_refuses_a_misspelt_field_of_the_cluster_file():
    config = prepared(AWS)
    config["idle_timeout_minute"] = 5
    with pytest.raises(jsonschema.ValidationError):
        validate_config(config)


def test_ec2_accepts_the_nodes_of_the_cluster_file_and_would_refuse_a_misspelt_one():
    config = prepared(AWS)
    assert ec2_problems(config) == []
    spoiled = copy.deepcopy(config)
    spoiled["available_node_types"]["gpu_spot"]["node_config"]["InstanceMarketOption"] = {"MarketType": "spot"}
    spoiled["available_node_types"]["head"]["node_config"]["BlockDeviceMappings"][0]["Ebs"]["VolumSize"] = 1
    found = "\n".join(ec2_problems(spoiled))
    assert '"InstanceMarketOption"' in found and found.count('"VolumSize"') == 3, "three types share the disk"


def test_gpu_nodes_are_spot_and_on_demand_none_is_kept_and_idle_ones_go():
    config = prepared(AWS)
    workers = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    markets = {name: kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType") for name, kind in workers.items()}  # fmt: skip
    assert markets == {"gpu_spot": "spot", "gpu_on_demand": None}
    assert all(kind["min_workers"] == 0 and kind["resources"]["GPU"] for kind in workers.values())
    assert 0 < config["idle_timeout_minutes"] <= 15


@FILES
def test_the_head_has_nothing_that_a_training_worker_could_take(file):
    start = prepared(file)["head_start_ray_commands"][-1]
    assert "--num-cpus=0" in start and "--num-gpus=0" in start


@FILES
def test_the_token_is_sent_hidden_and_asked_for_and_the_dashboard_is_closed(file):
    config = prepared(file)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in command for command in starts)
    assert [re.findall(r"--dashboard-host=(\S+)", command) for command in starts] == [["127.0.0.1"], []]
    assert any("export RAY_AUTH_MODE=token" in command and ".bashrc" in command for command in config["setup_commands"])


@FILES
def test_what_is_installed_is_pinned_and_what_is_sent_is_there(file):
    config = prepared(file)
    commands = [*config["setup_commands"], *config["head_setup_commands"], *config["worker_setup_commands"]]
    installs = [command for command in commands if "pip install" in command]
    assert installs and all("-c ~/ee_ray/constraints.txt" in command for command in installs)
    assert not [command for command in commands if "nightly" in command or "latest" in command]
    sent = {remote: local for remote, local in config["file_mounts"].items() if not local.startswith("~")}
    assert sent == {f"~/ee_ray/{local}": local for local in sent.values()}
    assert all((ROOT / local).exists() for local in sent.values())


def test_the_kubernetes_manifest_says_what_its_groups_say():
    job = yaml.safe_load((ROOT / "docs/cluster-kuberay.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    assert (job["kind"], cluster["authOptions"]) == ("RayJob", {"mode": "token"})
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    [kind] = autoscaled({each["name"]: each["value"] for each in head["env"]}, None)
    [group] = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert kind == NodeType({"CPU": int(limits["cpu"]), "GPU": int(limits["nvidia.com/gpu"])}, 0, group["maxReplicas"])


def test_the_slurm_script_is_a_script_and_uses_options_that_ray_has():
    text = (ROOT / "docs/cluster-slurm.sh").read_text()
    subprocess.run(["bash", "-n", ROOT / "docs/cluster-slurm.sh"], check=True)
    usage = subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "symmetric-run", "--help"], capture_output=True, text=True).stdout  # fmt: skip
    call = text[text.index("symmetric-run") :].split(" -- ")[0]
    own = set(re.findall(r"--[a-z-]+", call)) - {"--num-cpus", "--num-gpus"}
    assert own == {"--address", "--min-nodes"} and all(option in usage for option in own)


def test_the_page_on_clusters_links_to_what_is_there_and_names_the_marked_files():
    page = (ROOT / "docs/cluster.md").read_text()
    links = re.findall(r"\]\(([^)#]+)\)", page)
    assert all((ROOT / "docs" / link).exists() for link in links)
    assert {Path(link).name for link in links} >= {"cluster.yaml", "cluster-local.yaml", "cluster-kuberay.yaml", "cluster-slurm.sh", "submit.py"}  # fmt: skip
    assert all(f"ray {verb} cluster.yaml" in page.replace("-y ", "") for verb in ("up", "submit", "down", "rsync-up"))


# What a cluster can hold.

HEAD = {"node:__internal_head__": 1.0}
CPUS = Execution(workers=2, cpus_per_worker=2)
GPUS = Execution(workers=2, cpus_per_worker=2, gpus_per_worker=1)


def test_slots_are_counted_worker_by_worker_and_node_by_node():
    assert slots_that_fit(CPUS, [HEAD, {"CPU": 5}, {"CPU": 4}]) == 2
    assert slots_that_fit(CPUS, [{"CPU": 3}, {"CPU": 3}]) == 1
    assert slots_that_fit(GPUS, [{"CPU": 64}, {"CPU": 8, "GPU": 3}]) == 1
    some = Execution(workers=[2, 4])
    assert [slots_that_fit(some, [{"CPU": cpus}]) for cpus in (2, 3, 4, 9)] == [1, 1, 1, 2]
    with pytest.raises(UserError, match="a stage needs 2 CPUs"):
        slots_that_fit(some, [{"CPU": 1}])
    assert slots_that_fit(Execution(gpus_per_worker=0.1), [{"CPU": 64, "GPU": 1}]) == 10


def test_a_part_of_a_gpu_is_a_part_of_one_gpu():
    """Two fifths of a GPU fit twice on each: on two GPUs four times, and not five, as on paper."""
    assert slots_that_fit(Execution(gpus_per_worker=0.4), [{"CPU": 64, "GPU": 2}]) == 4


MIXED = Execution.model_validate(
    {"workers": 2, "cpus_per_worker": 2, "gpus_per_worker": 1.0, "finetune": {"workers": 1, "gpus_per_worker": 0.25}}
)
UPSTREAM = ("pretrain", "posttrain")


def test_each_shape_is_counted_as_if_it_had_the_cluster_for_itself():
    assert slot_counts(MIXED, [{"CPU": 16, "GPU": 4}]) == {UPSTREAM: 2, ("finetune",): 8}
    assert slot_counts(Execution(), [{"CPU": 4}]) == {("pretrain", "posttrain", "finetune"): 4}


def test_every_shape_that_nothing_can_hold_is_named_with_its_field():
    with pytest.raises(UserError) as raised:
        slot_counts(MIXED, [{"CPU": 1, "GPU": 1}])
    first, second = raised.value.problems
    assert first.startswith("execution: a stage needs 4 CPUs and 2 GPUs (execution.workers: 2")
    assert second.startswith("execution.finetune: a stage needs 2 CPUs and 0.25 GPUs") and "lower execution.finetune.workers" in second  # fmt: skip


def test_a_head_bears_as_many_slots_as_its_memory_holds_and_at_least_one_of_each_shape():
    counts = {UPSTREAM: 4, ("finetune",): 40}
    each = SLOT_BYTES + TRIAL_BYTES
    assert bounded(counts, 100 * each) == counts
    assert bounded(counts, 20 * each + TRIAL_BYTES) == {UPSTREAM: 4, ("finetune",): 16}
    assert bounded(counts, 6 * each + TRIAL_BYTES) == {UPSTREAM: 3, ("finetune",): 3}
    assert bounded(counts, 0) == {UPSTREAM: 1, ("finetune",): 1}


def test_what_no_node_of_this_heads_cluster_can_hold_is_refused_by_plan(tmp_path, monkeypatch):
    place = Place(tmp_path)
    wide = place.write("wide.yaml", execution={"workers": 2, "gpus_per_worker": 1.0, "finetune": {"workers": 1, "gpus_per_worker": 2.0}})  # fmt: skip
    assert place.ee_ray("plan", wide), "elsewhere nothing is known of any cluster"
    monkeypatch.setenv(NODE_TYPES, '[{"resources": {"CPU": 4, "GPU": 1}, "max_workers": 8}]')
    said = place.ee_ray("plan", wide, status=2).stderr
    assert "wide.yaml: execution.finetune: a stage needs 1 CPUs and 2 GPUs" in " ".join(said.split())
    place.ee_ray("plan", place.write(execution={"workers": 2, "gpus_per_worker": 1.0}))


def test_the_head_of_a_cluster_knows_what_it_may_become_and_not_what_hosts_of_ones_own_have(tmp_path):
    bootstrap = tmp_path / "ray_bootstrap_config.yaml"
    bootstrap.write_text(yaml.safe_dump(prepared(AWS)))
    heads, types = declared({}, bootstrap)
    assert len(heads) == 1 and sum(kind.at_most for kind in types) == 8
    bootstrap.write_text(yaml.safe_dump(prepared(LOCAL)))
    assert declared({}, bootstrap) == declared({}, tmp_path / "none") == ([], [])


def test_four_nodes_of_one_cpu_hold_no_worker_of_two():
    with pytest.raises(
        UserError, match="largest nodes of the cluster have 1 CPUs and 0 GPUs, and no autoscaler is known"
    ):
        slots_that_fit(CPUS, [{"CPU": 1}] * 4)


def test_what_an_autoscaler_may_add_counts_though_nothing_is_there_yet():
    types = node_types(prepared(AWS))
    assert types == [NodeType({"CPU": 4, "GPU": 1}, 0, 8)], "max_workers bounds both types together"
    assert slots_that_fit(GPUS, [HEAD], types) == 4
    with pytest.raises(UserError, match="a stage needs 16 CPUs") as raised:
        slots_that_fit(Execution(workers=2, cpus_per_worker=8), [HEAD], types)
    assert "no autoscaler" not in str(raised.value)


def test_hosts_of_ones_own_are_known_to_come_and_not_what_they_have(tmp_path):
    bootstrap = tmp_path / "ray_bootstrap_config.yaml"
    bootstrap.write_text(yaml.safe_dump(prepared(LOCAL)))
    assert autoscaled({}, bootstrap) == [NodeType({}, 2, 2)]
    assert autoscaled({NODE_TYPES: "[]"}, bootstrap) == [], "what the environment says goes first"
    assert autoscaled({}, None) == autoscaled({}, tmp_path / "none") == []


@pytest.mark.parametrize("said", ["GPU", "[1]", "[{", '[{"resources": {}}]'])
def test_node_types_that_cannot_be_read_are_the_users_to_mend(said):
    with pytest.raises(UserError, match=NODE_TYPES):
        autoscaled({NODE_TYPES: said}, None)


def test_a_run_is_refused_while_slots_of_an_earlier_one_wait_and_may_begin_when_they_have_ended(monkeypatch):
    over = threading.Event()
    left = threading.Thread(target=over.wait)
    monkeypatch.setattr("ee_ray.cluster.stuck", stuck := [left])
    left.start()
    with pytest.raises(UserError, match="has not ended yet"), connected("127.0.0.1:1"):
        pass
    over.set()
    left.join()
    with pytest.raises(UserError, match="nothing answers there"), connected("127.0.0.1:1"):
        pass
    assert stuck == []


AS_RAY = "import atexit, os; atexit.register(os._exit, 1)"  # shut down over a thread that still calls it


@pytest.mark.parametrize(
    ("arguments", "status", "said"), [(["status", "no.yaml"], 2, "error: "), (["completion", "bash"], 0, "_ee_ray")]
)
def test_the_exit_status_is_ones_own_though_slots_are_stuck(tmp_path, arguments, status, said):
    code = f"{AS_RAY}; import threading; from ee_ray import cli; cli.stuck.append(threading.current_thread()); cli.main({arguments})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == status and said in done.stdout + done.stderr


@pytest.mark.ray
def test_a_gpu_that_no_node_has_is_said_at_once(tmp_path):
    place = Place(tmp_path)
    command = [sys.executable, "-m", "ee_ray.cli", "run", place.write(execution__gpus_per_worker=1)]
    if any(manager.get_current_node_num_accelerators() for manager in get_all_accelerator_managers()):
        pytest.skip("this machine has a GPU")
    done = subprocess.run(command, cwd=tmp_path, env=ray_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "a stage needs 1 CPUs and 1 GPUs" in done.stderr and "Traceback" not in done.stderr


GROWING = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.add_node(num_cpus=1)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_sweep_waits_for_nodes_that_may_come_and_ends_though_one_never_did(tmp_path, finished):
    """A stand-in for an autoscaler: it may add two nodes, and adds one, late."""
    place = Place(tmp_path)
    may_come = {NODE_TYPES: '[{"resources": {"CPU": 1}, "max_workers": 2}]'}
    cluster = subprocess.Popen(
        [sys.executable, "-c", GROWING], env=ray_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        address = cluster.stdout.readline().strip()
        command = [sys.executable, "-m", "ee_ray.cli", "run", place.write(search__max_trials=6), "--address", address]
        log = (tmp_path / "log").open("w")
        run = subprocess.Popen(command, cwd=tmp_path, env=ray_environment() | may_come, stdout=log, stderr=log)
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(45)  # more than Train would wait for room of its own accord
        while "0 stages done" not in (tmp_path / "log").read_text():
            assert run.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.5)
        cluster.stdin.write("now\n")
        cluster.stdin.flush()
        assert run.wait(200) == 0, (tmp_path / "log").read_text()
    finally:
        cluster.communicate(timeout=60)
    assert place.numbers().items() <= finished.numbers().items() and len(place.numbers()) == 22


# Who may talk to it.

SERVER = """
import ray, sys
with_dashboard = ray.init(address="local", num_cpus=1, include_dashboard=True, object_store_memory=100 * 2**20, logging_level="ERROR")
print(with_dashboard.address_info["gcs_address"], with_dashboard.address_info["webui_url"], flush=True)
sys.stdin.read()
"""
JOIN = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); print('joined', len(ray.nodes()))"
JOBS = """
import sys
from ray.job_submission import JobSubmissionClient
print("jobs", len(JobSubmissionClient(sys.argv[1]).list_jobs()))
"""
TOKEN, OTHER = "a" * 64, "b" * 64
CALLERS = {
    "nobody": {"RAY_AUTH_MODE": "disabled"},
    "another": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": OTHER},
    "owner": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN},
}


@pytest.fixture(scope="module")
def guarded():
    """A cluster with a token: its address, and that of its dashboard."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], env={**ray_environment(), **CALLERS["owner"]}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        yield process.stdout.readline().split()
    finally:
        process.stdin.close()
        process.wait(60)


def ask(code: str, address: str, caller: str) -> subprocess.CompletedProcess:
    environment = {**ray_environment(), **CALLERS[caller]}
    return subprocess.run([sys.executable, "-c", code, address], env=environment, capture_output=True, text=True, timeout=120)  # fmt: skip


@pytest.mark.ray
def test_the_dashboard_is_for_this_machine_unless_asked_otherwise(guarded):
    assert guarded[1].startswith("127.0.0.1:")


@pytest.mark.ray
@pytest.mark.parametrize(("caller", "status"), [("nobody", 401), ("another", 403), ("owner", 200)])
def test_the_job_api_knows_the_right_token_from_a_wrong_one_and_from_none(guarded, caller, status):
    headers = {"Authorization": f"Bearer {CALLERS[caller]['RAY_AUTH_TOKEN']}"} if caller != "nobody" else {}
    assert requests.get(f"http://{guarded[1]}/api/jobs/", headers=headers, timeout=30).status_code == status
    asked = ask(JOBS, f"http://{guarded[1]}", caller)
    assert (asked.returncode == 0) == (status == 200), asked.stderr
    assert status == 200 or "token" in asked.stderr.lower()


@pytest.mark.ray
def test_a_driver_with_the_token_joins(guarded):
    assert "joined 1" in ask(JOIN, guarded[0], "owner").stdout


@pytest.mark.ray
@pytest.mark.parametrize("caller", ["nobody", "another"])
def test_a_sweep_without_the_right_token_is_refused_in_one_message(guarded, caller, tmp_path):
    command = [sys.executable, "-m", "ee_ray.cli", "run", Place(tmp_path).write(), "--address", guarded[0]]
    environment = {**ray_environment(), **CALLERS[caller]}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    assert "no cluster could be joined" in done.stderr and "RAY_AUTH_MODE=token" in done.stderr
    assert "Traceback" not in done.stderr
