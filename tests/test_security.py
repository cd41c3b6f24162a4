"""Nothing that is read is run, nothing secret is written, and nothing named leads out of the store."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Place, ray_environment, tiny
from safetensors import SafetensorError
from transformers import LlamaConfig, LlamaForCausalLM

from ee_ray.board import Board
from ee_ray.capacity import autoscaled
from ee_ray.disk import sha256
from ee_ray.errors import UserError
from ee_ray.plan import distinct
from ee_ray.resume import FACTS, SCHEMA, TENSORS, newest_state, write_state
from ee_ray.run import _job
from ee_ray.spec.load import load_sweep
from ee_ray.stage import run_stage
from ee_ray.store import Store
from ee_ray.sweep import open_sweep
from ee_ray.world import World

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDPLANTED01",
    "AWS_SECRET_ACCESS_KEY": "planted+aws/secret",
    "HF_TOKEN": "hf_planted_token",
    "WANDB_API_KEY": "planted-wandb-key",
    "RAY_AUTH_TOKEN": "planted0ray0token0" * 4,
}


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path) -> Path:
    """Where a bomb leaves its trace; the bomb itself is seen to work."""
    seen = tmp_path / "seen"
    pickle.loads(pickle.dumps(Bomb(seen)))
    assert seen.exists()
    seen.unlink()
    return seen


def checkpoint(folder: Path) -> Path:
    model = LlamaForCausalLM(LlamaConfig(vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2))  # fmt: skip
    model.save_pretrained(folder)
    return folder


def test_a_pickle_beside_a_checkpoint_is_not_read_and_alone_it_is_refused(tmp_path, mark):
    place, folder = Place(tmp_path), checkpoint(tmp_path / "mine")
    torch.save(Bomb(mark), folder / "pytorch_model.bin")
    spec = place.write(model={"checkpoint": "mine"}, search__max_trials=6)
    place.ee_ray("run", spec, "--local")
    assert not mark.exists() and not list(place.store.root.rglob("pytorch*"))

    (folder / "model.safetensors").unlink()
    assert "pickled weights are not loaded" in place.ee_ray("run", spec, "--local", status=2).stderr
    shutil.copy(folder / "pytorch_model.bin", folder / "model.safetensors")
    place.ee_ray("run", spec, "--local", status=3)
    assert not mark.exists()


def test_code_that_a_checkpoint_brings_is_refused(tmp_path, mark):
    place, folder = Place(tmp_path), checkpoint(tmp_path / "mine")
    (folder / "modeling_mine.py").write_text(f"open({str(mark)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modeling_mine.Config", "AutoModelForCausalLM": "modeling_mine.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    done = place.ee_ray("run", place.write(model={"checkpoint": "mine"}), "--local", status=2)
    assert "brings code of its own" in done.stderr and not mark.exists()


def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path):
    place, folder = Place(tmp_path), checkpoint(tmp_path / "mine")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../other.safetensors"}}')
    done = place.ee_ray("plan", place.write(model={"checkpoint": "mine"}), status=2)
    assert "names ../other.safetensors, which is not a file of weights beside it" in done.stderr


def test_a_pickle_in_the_place_of_a_published_stage_is_refused_even_with_its_hash_in_the_record(copy, mark):
    finetune = next(key for key in copy.store.published() if copy.store.record(key)["kind"] == "finetune")
    parent = copy.store.record(finetune)["parent"]
    shutil.rmtree(copy.store.stage(finetune))
    weights, path = copy.store.weights(parent), copy.store.stage(parent) / "record.json"
    torch.save(Bomb(mark), weights)
    assert "does not match its hash" in copy.ee_ray("run", "tiny.yaml", "--local", status=3).stderr
    record = json.loads(path.read_text())
    record["sha256"]["weights.safetensors"] = sha256(weights)
    path.write_text(json.dumps(record))
    assert "SafetensorError" in copy.ee_ray("run", "tiny.yaml", "--local", status=3).stderr
    assert not mark.exists()


def test_a_pickle_in_the_place_of_a_state_half_way_is_refused(copy, mark):
    sweep = open_sweep(copy.folder / "tiny.yaml", copy.store.root)
    job = _job(sweep)
    stage = next(iter(distinct([job.trial({"level": 2, "seed": 0})]).values()))
    shutil.rmtree(copy.store.stage(stage.key))
    state = copy.store.work(stage.key) / "00000003"
    write_state(copy.store.work(stage.key), 3, {"x": torch.zeros(1)}, {})
    torch.save(Bomb(mark), state / TENSORS)
    assert newest_state(copy.store.work(stage.key)) == 0, "what does not match its hash is not a state"
    (state / FACTS).write_text(json.dumps({"schema": SCHEMA, "step": 3, "sha256": sha256(state / TENSORS)}))
    board = Board()
    board.submit(job.orders(job.trial({"level": 2, "seed": 0})), [])
    with pytest.raises(SafetensorError):
        run_stage(copy.store, board.take("here"), World(torch.device("cpu")), lambda tokens: None)
    assert not mark.exists()


def test_yaml_that_asks_for_python_is_not_a_spec(tmp_path, mark):
    text = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{mark}]]"
    (tmp_path / "s.yaml").write_text(f"schema: 1\nname: {text}\n")
    with pytest.raises(UserError, match="is not YAML"):
        load_sweep(tmp_path / "s.yaml")
    with pytest.raises(UserError, match="EE_RAY_NODE_TYPES"):
        autoscaled({"EE_RAY_NODE_TYPES": text}, None)
    assert not mark.exists()


def test_credentials_in_a_spec_or_a_storage_are_refused_and_not_repeated(tmp_path):
    place = Place(tmp_path)
    spec = place.write(data__post={"source": "file:s3://AKIAPLANTED:planted-secret@bucket/x.jsonl"})
    said = place.ee_ray("plan", spec, status=2).stderr
    assert "data.post.source: holds a name or a password" in said and "planted" not in said.lower()
    said = place.ee_ray("plan", place.write(), "--storage", "s3://me:planted-secret@bucket/store", status=2).stderr
    assert "must hold no credentials" in said and "planted" not in said


@pytest.mark.parametrize("how", [["--local"], pytest.param([], marks=[pytest.mark.ray])], ids=["local", "ray"])
def test_secrets_of_the_environment_are_in_nothing_that_a_sweep_leaves_or_says(tmp_path, how):
    """A stage that fails is in it: its evidence must not hold them either."""
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(tiny(search__max_trials=6, model__rms_norm_eps=-1.0)))
    command = [sys.executable, "-m", "ee_ray.cli", "run", "s.yaml", *how]
    environment = {**ray_environment(), **SECRETS, "RAY_AUTH_MODE": "token"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=280)
    assert done.returncode == 3, done.stderr.decode()
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(left) > 20
    for name, secret in SECRETS.items():
        assert secret.encode() not in done.stdout + done.stderr, name
        assert [path for path, content in left.items() if secret.encode() in content] == [], name


@pytest.mark.parametrize("name", ["../outside", "..", "", ".", "/etc", "a/b"])
@pytest.mark.parametrize("kind", ["stage", "weights", "work", "data", "model", "tokenizer", "sweep", "failure"])
def test_no_name_leads_out_of_the_store(tmp_path, kind, name):
    if kind == "failure" and name in ("..", "", "."):
        pytest.skip("with .json behind it, a plain name")
    with pytest.raises(UserError, match="out of the store"):
        getattr(Store(tmp_path / "store"), kind)(name)


def test_no_link_leads_out_of_the_store(tmp_path):
    store = Store(tmp_path / "store")
    (store.root / "stages").mkdir(parents=True)
    (store.root / "stages" / ("0" * 16)).symlink_to("/etc")
    with pytest.raises(UserError, match="out of the store"):
        store.record("0" * 16)


def test_a_record_that_names_files_elsewhere_is_told_by_verify(copy):
    key = copy.store.published()[0]
    path = copy.store.stage(key) / "record.json"
    record = json.loads(path.read_text())
    outside = copy.folder / "outside"
    outside.write_text("x")
    record["sha256"] |= {"../../../outside": sha256(outside), str(outside): sha256(outside)}
    path.write_text(json.dumps(record))
    found = json.loads(copy.ee_ray("verify", "tiny.yaml", "--json", status=1).stdout)["problems"]
    assert len(found) == 2 and all("leads out of the store" in problem for problem in found)
    os.rename(copy.store.weights(key), outside)
    copy.store.weights(key).symlink_to(outside)
    assert f"stage {key}: weights.safetensors leads out of the store" in copy.store.damage(key)


@pytest.mark.parametrize("name", ["../x", "/x", "..", "a/b", "x\n"])
def test_a_sweep_cannot_be_named_after_another_place(write, name):
    with pytest.raises(UserError, match="name: "):
        load_sweep(write(name=name))


TOKEN = (
    "import os; from ee_ray.environment import prepare_ray; prepare_ray(None); print(os.environ.get('RAY_AUTH_TOKEN'))"
)


def test_a_cluster_of_one_run_takes_the_users_token_or_one_of_its_own(tmp_path):
    def token(**given: str) -> str:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **given}
        return subprocess.run([sys.executable, "-c", TOKEN], env=environment, capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip

    one, another = token(), token()
    assert len(one) == 64 and one != another
    assert token(RAY_AUTH_TOKEN="mine") == "mine"
    assert token(RAY_AUTH_TOKEN_PATH=str(tmp_path / "elsewhere")) == "None"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("mine")
    assert token() == "None", "Ray reads the user's file itself"
