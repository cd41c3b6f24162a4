"""docs/errors.md: every message that it explains is one that the real code makes."""

import contextlib
import json
import re

import pytest
from conftest import ROOT, Place

from ee_ray.capacity import slots_that_fit
from ee_ray.errors import UserError
from ee_ray.objects import Objects
from ee_ray.spec.execution import Execution

PAGE = (ROOT / "docs" / "errors.md").read_text()
MESSAGES = re.findall(r"^### `(.+?)`", PAGE, re.MULTILINE)


def spec(*command, status=2, **changes):
    """What a command says to the tiny sweep with changes; it follows `--` in no case."""

    def say(place: Place) -> str:
        place.write(**changes)
        name, *options = command or ("plan",)
        return place.ee_ray(name, "tiny.yaml", *options, status=status).stderr

    return say


def broken(place: Place) -> str:
    (place.folder / "tiny.yaml").write_text("data: {pre: [\n")
    return place.ee_ray("plan", "tiny.yaml", status=2).stderr


def other_column(place: Place) -> str:
    (place.folder / "post.jsonl").write_text(json.dumps({"body": "some text"}) + "\n")
    return spec("prepare", data__post={"source": "file:post.jsonl"})(place)


def no_tokenizer(place: Place) -> str:
    (place.folder / "empty").mkdir()
    return spec(tokenizer={"folder": "empty"})(place)


def too_large(place: Place) -> str:
    with pytest.raises(UserError) as caught:
        slots_that_fit(Execution(workers=4, cpus_per_worker=2), [{"CPU": 1.0}])
    return str(caught.value)


def other_store(place: Place) -> str:
    (place.folder / "store").mkdir()
    (place.folder / "store" / "store.json").write_text('{"schema": 99}')
    return spec()(place)


def changed_text(place: Place) -> str:
    """As after a run: registered, and then the text is other."""
    from ee_ray.registered import register
    from ee_ray.sweep import open_sweep

    (place.folder / "x.txt").write_text("one\n")
    spec = place.write(data__post={"source": "file:x.txt"})
    place.store.create()
    register(open_sweep(place.folder / spec, place.store.root))
    (place.folder / "x.txt").write_text("two\n")
    return place.ee_ray("status", spec).stderr.replace("\n  ", " ")


def full_folder(place: Place) -> str:
    (place.folder / "out").mkdir()
    (place.folder / "out" / "mine.txt").touch()
    from ee_ray.export.folder import check_folder

    with pytest.raises(UserError) as caught:
        check_folder(place.folder / "out", overwrite=False)
    return str(caught.value)


def other_data(place: Place) -> str:
    from ee_ray.report.compared import unlike
    from ee_ray.sweep import open_sweep

    with contextlib.chdir(place.folder):
        sweeps = [open_sweep(place.write(f"{n}.yaml", name=f"s{n}", data__post={"source": "builtin:music", "size": 20_000 + n}), "store") for n in (0, 1)]  # fmt: skip
        return "\n".join(unlike(*sweeps))


def other_question(place: Place) -> str:
    files = [place.write(), place.write("other.yaml", stages__posttrain__learning_rate=1e-3)]
    return place.ee_ray("transfer", *files, "--tokens", 8192, status=2).stderr.replace("\n  ", " ")


def gone_bucket(place: Place) -> str:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in {
            "ACCESS_KEY_ID": "a",
            "SECRET_ACCESS_KEY": "b",
            "ENDPOINT_URL": "http://127.0.0.1:9",
        }.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("EE_RAY_PATIENCE_SECONDS", "0.1")
        return spec("plan", "--storage", "s3://bucket/store")(place)


def deaf_bucket(place: Place) -> str:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Objects, "read", lambda self, name: None)
        monkeypatch.setattr(Objects, "_request", lambda self, verb, **named: {})
        return spec("run", "--local", "--storage", "s3://bucket/store")(place)


CASES = {
    "...: is not a field here": spec(sequnce_length=32),
    "input should be a valid integer, got '...'": spec(sequence_length="32"),
    "is not YAML": broken,
    "is not divided by a ladder of ... steps of whole windows": spec(stages__posttrain__tokens=2080),
    "anchors must hold 0 and 1": spec(search__anchors=[0, 0.25, 0.5]),
    "is less than anchors x anchor_seeds": spec(search__max_trials=5),
    "objective.finetune_lr ... is not one of stages.finetune.learning_rates": spec(objective__finetune_lr=0.5),
    "revision is missing: pin an hf: source to the commit hash of its repository": spec(data__pre={"source": "hf:a/b"}),
    "model: transformers' ... config has no ...": spec("run", "--local", model={"model_type": "llama", "hiden": 3}),
    "it would make losses depend on micro-batches and workers: set it to 0.0": spec(
        "run", "--local", model={"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2}
    ),
    "no such file (a relative path starts from the sweep file's folder)": spec(data__post={"source": "file:x.jsonl"}),
    "has other content than when this sweep last ran": changed_text,
    "no text field '...'; the record has: ...": other_column,
    "the held-out split has ... windows, data.heldout_windows asks for ...": spec(data__heldout_windows=9999),
    "the budget of ... windows is beyond the pool of ...": spec("plan", status=0, stages__finetune__tokens=65536),
    "holds no tokenizer.json": no_tokenizer,
    "execution.workers is ...: --local has one process": spec("run", "--local", execution={"workers": 2}),
    "a stage needs ... CPUs and ... GPUs": too_large,
    "storage ...: has schema ..., this version reads ...": other_store,
    "no answer for ... s": gone_bucket,
    "its server ignores conditional writes": deaf_bucket,
    "a store is a directory or in a bucket, s3://BUCKET/PREFIX": spec("plan", "--storage", "ftp://host/store"),
    "transfer takes sweeps that differ in the size of D_post alone": other_question,
    "has no lambda* yet, which needs three levels": spec("export", "out"),
    "is not empty: name another folder, or --overwrite what an export wrote there": full_folder,
    "published stages of ... have a key that starts so": spec("export", "out", "--key", "zz"),
    "losses on different held-out data are not compared": other_data,
}
SAID_ELSEWHERE = {
    "... stages failed",  # the report's words, of tests/test_run.py
    "lost: ... has ended; everything published is kept, the same command goes on",  # tests/test_ray.py kills a cluster
    "no room is left on ...: everything published is kept",  # tests/test_liveness.py fills one
}


def test_every_message_of_the_page_has_its_case():
    assert set(MESSAGES) - SAID_ELSEWHERE == set(CASES)


@pytest.mark.parametrize("message", CASES)
def test_the_message_is_made_by_the_code(message, tmp_path):
    said = CASES[message](Place(tmp_path))
    pattern = ".+".join(map(re.escape, message.split("...")))
    assert re.search(pattern, said), said
