"""Storage by URL: the guarantees of the journal on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib.util import find_spec
from pathlib import Path

import optuna
import pytest
from faults import kill_sweeps
from helpers import postgres as helpers_postgres
from helpers.command import invoke
from helpers.paths import ROOT, TESTS
from rich.console import Console

from sweep import open_study
from sweep.open_study import RunOptions
from sweep.spec.dimension import Choices
from sweep.spec.spec import SamplerSpec, SweepSpec
from sweep.storage.open import open_storage, rename_study, study_names
from sweep.storage.url import VARIABLE, connect, masked, resumed_url, with_absolute_path
from sweep.study import archive
from sweep.study.decider import OptunaDecider
from sweep.study.verify import verify
from trial.config.errors import ConfigError
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Evaluation, Result, StudyRecord

STRIDE = "61"
"""One of so many operations is a place to die at; `make test-faults` takes every seventh."""
SECRETS = (helpers_postgres.PASSWORD, helpers_postgres.ENCODED, "sesame")


@pytest.fixture(scope="module")
def postgres():
    if reason := helpers_postgres.why_not():
        pytest.skip(reason)
    with helpers_postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    return request.getfixturevalue("postgres")


@pytest.fixture
def study(tmp_path) -> StudyFolder:
    # A server is shared by tests, and so are the names in it.
    return StudyFolder(tmp_path / f"study-{tmp_path.parent.name}-{tmp_path.name}")


def ranks(*choices: int) -> SweepSpec:
    return SweepSpec(
        name="study",
        space={"lora.r": (Choices(choices=choices),)},
        sampler=SamplerSpec(name="grid"),
    )


def begin(study: StudyFolder, url: str | None, spec: SweepSpec) -> OptunaDecider:
    kept = {"storage": masked(url) if url else None}
    record = StudyRecord(name=study.name, spec=spec.content(), provenance=kept)
    study.write_record(record)
    return OptunaDecider(spec, study.name, open_storage(study, url))


def test_a_trial_in_flight_comes_back_under_its_number_with_its_values(url, study):
    spec = ranks(2, 4, 8)
    before = begin(study, url, spec)
    for number in range(2):
        proposal = before.ask()
        folder = TrialFolder.create(study.trial(number).path, proposal.config)
        evaluation = Evaluation(step=5, eval_loss=3.0 + number)
        folder.append(evaluation)
        before.report(number, evaluation)
    study.trial(0).write_result(Result(state="complete", eval_loss=3.0, steps=5))
    before.tell(0, study.trial(0).read_result())
    after = OptunaDecider(spec, study.name, open_storage(study, url))
    (back,) = after.pending()
    assert (back.number, back.config.lora.r) == (1, 4)
    assert after.finished() == [0]
    after.report(1, Evaluation(step=5, eval_loss=99.0))
    assert after.study.trials[1].intermediate_values == {5: 4.0}
    assert after.ask().config.lora.r == 8
    found = [str(finding) for finding in verify(study, open_storage(study, url))]
    assert found == [
        "trial 1: is in flight: the next run takes it up",
        "trial 2: was numbered and has no folder yet",
    ]


def test_values_are_kept_to_the_bit(url, study):
    decider = begin(study, url, ranks(2))
    value = 2.0 + 2**-51
    proposal = decider.ask()
    folder = TrialFolder.create(study.trial(0).path, proposal.config)
    folder.append(Evaluation(step=5, eval_loss=value / 3))
    decider.report(0, folder.read_evaluations()[0])
    folder.write_result(Result(state="complete", eval_loss=value, steps=5))
    decider.tell(0, folder.read_result())
    assert open_storage(study, url).get_all_trials(decider.study._study_id)[0].values == [value]
    assert verify(study, open_storage(study, url)) == []


def test_a_kill_between_any_two_writes_loses_nothing(url, tmp_path):
    place = "sqlite:///{path}.db" if url.startswith("sqlite") else url
    done = subprocess.run(
        [
            sys.executable,
            TESTS / "faults" / "kill_writes.py",
            "random",
            "--stride",
            STRIDE,
            "--courses",
            "1",
        ],
        env={
            **os.environ,
            "FAULTS_STORAGE": place,
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT), *sys.path]),
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["operations"] > 80


@pytest.mark.faults
def test_the_command_on_postgresql_killed_and_resumed(postgres):
    """A real sweep whose driver is killed; and the password is nowhere in what it leaves."""
    root = Path(tempfile.mkdtemp(prefix="gf"))
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    faults = kill_sweeps.Faults(seed, root, rates=(1e-2,))
    sweep = faults.sweep("pg", storage=postgres)
    faults.run(sweep, iter(["driver"]), reference=False)
    assert faults.counts.total() >= 1
    texts = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert len(texts) > 20
    for path, content in texts.items():
        assert not any(secret.encode() in content for secret in SECRETS), path
    kept = sweep.study.read_record().provenance["storage"]
    assert kept.startswith("postgresql+psycopg2://sweeper:***@127.0.0.1:")
    shutil.rmtree(root)


def test_the_password_is_not_kept(postgres, study, tmp_path):
    """What is written before the first trial; the whole command is run by `make test-faults`."""
    source = tmp_path / "x.yaml"
    source.write_text("space: {lora.r: [2, 4]}\nsampler: grid\n")
    words = ["run", "x", f"--storage={postgres}", "--storage", postgres]
    options = RunOptions(runs=study.path.parent, storage=postgres, command=words)
    open_study.write_record(study, ranks(2, 4), source, options)
    texts = [path.read_text() for path in study.path.rglob("*") if path.is_file()]
    assert len(texts) == 2
    assert not any(secret in text for secret in SECRETS for text in texts)
    kept = study.read_record().provenance["storage"]
    assert kept.startswith("postgresql+psycopg2://sweeper:***@127.0.0.1:")
    assert resumed_url(kept, postgres) == postgres


# URLs


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////data/x.db", "sqlite:////data/x.db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://me:pw@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("mysql+pymysql://me:a%40b@host/db?ssl=1", "mysql+pymysql://me:***@host/db?ssl=1"),
        ("redis://:pw@host:6379", "redis://:***@host:6379"),
        ("postgresql://h/db?user=me&password=pw", "postgresql://h/db?user=me&password=***"),
        ("--storage=postgresql://me:pw@h/db", "--storage=postgresql://me:***@h/db"),
        ("training.max_steps=50", "training.max_steps=50"),
    ],
)
def test_a_password_is_never_shown(url, shown):
    assert masked(url) == shown
    assert masked(shown) == shown


def test_a_relative_sqlite_file_means_the_same_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert with_absolute_path("sqlite:///x.db?timeout=3") == f"sqlite:///{tmp_path}/x.db?timeout=3"
    assert with_absolute_path("sqlite:///:memory:") == "sqlite:///:memory:"
    assert with_absolute_path("postgresql://h/x.db") == "postgresql://h/x.db"


KEPT = "postgresql://me:***@h/db"


@pytest.mark.parametrize(
    ("kept", "given"),
    [
        (None, None),
        ("sqlite:////x.db", None),
        ("sqlite:////x.db", "sqlite:////x.db"),
        (KEPT, "postgresql://me:pw@h/db"),
    ],
)
def test_a_study_goes_on_in_its_own_storage(kept, given):
    assert resumed_url(kept, given) == (given or kept)


@pytest.mark.parametrize(
    ("kept", "given", "said"),
    [
        (KEPT, None, f"{VARIABLE}: the password of {KEPT} is not kept"),
        (KEPT, "postgresql://me:pw@other/db", f"the study keeps its storage, {KEPT}"),
        (None, "sqlite:////x.db", "the study keeps its storage, its journal file"),
    ],
)
def test_another_storage_or_a_missing_password_is_refused(kept, given, said):
    with pytest.raises(ConfigError) as error:
        resumed_url(kept, given)
    assert said in str(error.value)
    assert "pw" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "sqlite:////no/such/folder/x.db",
        "nosuchdialect://me:sesame@h/db",
        "postgresql+psycopg2://me:sesame@127.0.0.1:1/db",
    ],
)
def test_a_storage_that_cannot_be_opened_is_refused_without_its_password(url, tmp_path):
    with pytest.raises(ConfigError, match="--storage") as error:
        connect(url)
    assert "sesame" not in str(error.value)
    done = invoke("run", "smoke", "--runs", tmp_path, "--storage", url)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "smoke" / "study.json").exists()


def test_a_database_alone_is_opened_with_the_driver_that_is_installed(postgres):
    assert study_names(connect(postgres.replace("postgresql+psycopg2", "postgresql"))) is not None


@pytest.mark.parametrize(
    ("database", "modules"),
    [("postgresql", ["psycopg", "psycopg2"]), ("mysql", ["MySQLdb", "pymysql"])],
)
def test_without_a_driver_the_extra_that_installs_one_is_named(database, modules):
    with pytest.raises(ConfigError) as error:
        connect(f"{database}://me:sesame@127.0.0.1:1/db")
    without = not any(find_spec(module) for module in modules)
    assert (f"pip install 'gaudi-sweep[{database}]'" in str(error.value)) == without
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (driver,) = extras["optional-dependencies"][database]
    assert driver.split("[")[0].split("=")[0] in modules


def one_finished(study: StudyFolder, url: str) -> OptunaDecider:
    """A study with one trial that has ended and one in flight."""
    decider = begin(study, url, ranks(2, 4))
    for _ in range(2):
        proposal = decider.ask()
        TrialFolder.create(study.trial(proposal.number).path, proposal.config)
    study.trial(0).write_result(Result(state="complete", eval_loss=1.0, steps=5))
    decider.tell(0, study.trial(0).read_result())
    return decider


def is_kept_aside(study: StudyFolder, url: str) -> bool:
    """One study under another name, whole; nothing under the old one."""
    (old,) = [StudyFolder(p) for p in study.path.parent.glob(f"{study.name}.*") if p.is_dir()]
    assert [str(finding) for finding in verify(old, open_storage(old, url))] == [
        "trial 1: is in flight: the next run takes it up"
    ]
    assert sorted(path.name for path in old.path.iterdir()) == ["study.json", "trials"]
    return begin(study, url, ranks(2)).numbers() == set()


def test_a_fresh_start_keeps_the_old_study_under_another_name(url, study):
    one_finished(study, url)
    assert archive.archive_study(study, lambda: open_storage(study, url)) is not None
    assert is_kept_aside(study, url)
    assert archive.finish_archiving(study, lambda: open_storage(study, url)) is None
    rename_study(open_storage(study, url), "no such study", "other")
    assert "other" not in optuna.get_all_study_names(open_storage(study, url))


STEPS = [
    "optuna.storages._cached_storage._CachedStorage.create_new_trial",
    "optuna.delete_study",
    "trial.store.folders.StudyFolder.write_record",
    "pathlib.Path.rename",
    "pathlib.Path.unlink",
]


@pytest.mark.parametrize("step", STEPS)
def test_a_fresh_start_that_was_cut_short_is_finished_by_the_next_run(
    step, study, tmp_path, monkeypatch
):
    url = f"sqlite:///{tmp_path}/study.db"
    one_finished(study, url)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(step, killed)
        with pytest.raises(KeyboardInterrupt):
            archive.archive_study(study, lambda: open_storage(study, url))
    options = RunOptions(runs=study.path.parent, storage=url)
    # What `resume` gives as its source is in the folder that goes.
    with contextlib.suppress(ConfigError):
        open_study.archive_existing(study, study.sweep_file, options, Console(quiet=True))
    for path in study.path.parent.glob(f"{study.name}.*"):
        # Whoever goes on with the old study has it left alone.
        assert archive.finish_archiving(StudyFolder(path), lambda: open_storage(study, url)) is None
    assert is_kept_aside(study, url)


def test_a_name_in_a_storage_of_many_studies_belongs_to_one_folder(url, study):
    """Its lease holds in that folder alone: another one would take its running trials up."""
    begin(study, url, ranks(2, 4)).ask()
    made = study.read_record().created
    storage = open_storage(study, url)
    for _ in range(2):
        assert OptunaDecider(ranks(2, 4), study.name, storage).belongs_to(made)
        assert not OptunaDecider(ranks(2, 4), study.name, storage).belongs_to(made + 1.0)
    rename_study(storage, study.name, f"{study.name}.aside")
    assert OptunaDecider(ranks(2, 4), f"{study.name}.aside", storage).belongs_to(made)
    assert OptunaDecider(ranks(2, 4), study.name, storage).belongs_to(made + 1.0)


def test_a_fork_that_was_cut_short_is_done_again(tmp_path, monkeypatch):
    old = StudyFolder(tmp_path / "old")
    decider = begin(old, None, ranks(2, 4))
    for number in range(2):
        proposal = decider.ask()
        folder = TrialFolder.create(old.trial(number).path, proposal.config)
        folder.write_result(Result(state="complete", eval_loss=1.0, steps=5))
        decider.tell(number, folder.read_result())
    options = RunOptions(runs=tmp_path, study="old", fork="new")
    new, source, quiet = StudyFolder(tmp_path / "new"), tmp_path / "x.yaml", Console(quiet=True)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copytree", killed)
        with pytest.raises(KeyboardInterrupt):
            open_study.fork_study(ranks(2, 4, 8), source, new, options, quiet)
    assert new.path.exists()
    assert not new.exists()
    open_study.fork_study(ranks(2, 4, 8), source, new, options, quiet)
    record = StudyRecord(name="new", spec=ranks(2, 4, 8).content())
    new.write_record(record)
    assert verify(new, open_storage(new)) == []
    assert [number for number, _ in new.all_trials()] == [0, 1]
