"""The command line: every config composes, a mistake ends with code 2, fast and named, and a job's end is told by its exit code."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import serving.config
import serving.subject_config
import training.config
from towers import __version__, cli, job
from towers.combination import combination_dir, share_prepared
from towers.help_text import meanings
from towers.verbs import VERBS, conf_dir, config_groups, missing_library

ROOT = Path(__file__).resolve().parent.parent
SERVING = ("index", "serve", "recommend", "feedback", "subject")
TRAINING = tuple(name for name in VERBS if name not in SERVING)

FAKE_JOB = """
import sys
from towers.job import run_job
from training.config import register, validate

register()
run_job("train", "fake_run:run", validate)
"""

FAKE_RUN = """
from towers.errors import DataError, GateError

def run(config):
    print(f"seed {config.seed} in {config.run_dir}")
    if config.seed == 3:
        raise DataError("interactions.csv: no rows")
    if config.seed == 4:
        raise GateError("recall 0.1, floor 0.9")
    if config.seed == 5:
        raise KeyboardInterrupt
    if config.seed == 70:
        raise RuntimeError("boom")
    return config.run_dir + "/train.json"
"""


@pytest.fixture
def composed() -> Iterator[None]:
    training.config.register()
    serving.subject_config.register()
    OmegaConf.register_new_resolver("towers.meanings", lambda schema: schema, replace=True)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A folder with a job that does nothing but end as its seed says."""
    (tmp_path / "fake_job.py").write_text(FAKE_JOB)
    (tmp_path / "fake_run.py").write_text(FAKE_RUN)
    return tmp_path


def run(*command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{cwd}", **variables}
    return subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def check(name: str, config: DictConfig) -> None:
    module = serving.subject_config if name == "subject" else serving.config if name in SERVING else training.config
    module.validate(OmegaConf.to_object(config))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", VERBS)
def test_every_job_composes(composed: None, name: str) -> None:
    config = compose(name)
    check(name, config)
    assert str(config.run_dir).startswith("runs/")


@pytest.mark.parametrize("option", [f"{group}={option}" for group, options in config_groups().items() for option in options])
def test_every_option_composes(composed: None, option: str) -> None:
    """With the job that has the group; each must name itself right, and fit the schema."""
    group, _, name = option.partition("=")
    which = "serve" if group in ("index", "serving") else "train"
    needs = {"split=given": ["data=lightgcn"], "trainer=refresh": ["trainer.init_from=runs/before"]}.get(option, [])
    config = compose(which, overrides=[*needs, option])
    if group != "experiment":
        check(which, config)
    else:
        assert config.experiment == name
        assert config.run_dir == f"runs/{name}"
        check(which, config)


def test_a_dataset_chooses_its_tower_and_the_command_line_has_the_last_word(composed: None) -> None:
    assert compose("train", overrides=["data=ml_1m"]).model.history.name == "transformer"
    assert compose("train", overrides=["data=ml_1m"]).split.name == "leave_one_out"
    assert compose("train", overrides=["data=ml_1m", "model=pooled"]).model.history.name == "mean"
    assert compose("train", overrides=["model=pooled", "data=ml_1m"]).model.history.name == "mean"
    assert compose("train", overrides=["data=ml_1m", "model.history.length=7"]).model.history.length == 7


@pytest.mark.parametrize("data", config_groups()["data"])
def test_an_option_asked_for_goes_over_what_the_dataset_suggests(composed: None, data: str) -> None:
    """`trainer=refresh data=...` is one epoch, whatever number of them the dataset is best trained with."""
    for group in ("loss", "negatives", "optim", "trainer", "evaluate", "export"):
        for option in config_groups()[group]:
            told = OmegaConf.load(conf_dir() / group / f"{option}.yaml")
            told = OmegaConf.create({group: told})
            if option == "refresh":  # it speaks of several groups, after all of them
                told = OmegaConf.load(conf_dir() / group / "last" / f"{option}.yaml")
            asked = compose("train", overrides=[f"data={data}", f"{group}={option}"])
            assert OmegaConf.merge(asked, told) == asked, f"{group}={option}"


@pytest.mark.parametrize("experiment", config_groups()["experiment"])
def test_a_refresh_of_an_experiment_is_one_pass_at_a_low_rate(composed: None, experiment: str) -> None:
    whole = compose("train", overrides=[f"experiment={experiment}"])
    refresh = compose("train", overrides=[f"experiment={experiment}", "trainer=refresh", "trainer.init_from=runs/monday"])
    assert (refresh.trainer.epochs, refresh.trainer.patience, refresh.optim.lr) == (1, 0, 0.0003)
    assert refresh.model == whole.model and refresh.split == whole.split
    assert compose("train", overrides=[f"experiment={experiment}", "trainer=refresh", "optim.lr=0.5"]).optim.lr == 0.5


def test_without_one_the_dataset_has_its_say(composed: None) -> None:
    for overrides in ([], ["trainer=default", "optim=auto"]):
        config = compose("train", overrides=["data=ml_1m", *overrides])
        assert (config.trainer.epochs, config.optim.lr) == (5, 0.006)
    assert compose("train", overrides=["data=frappe"]).trainer.sampler == "event"


def test_the_default_is_the_linear_tower(composed: None) -> None:
    model = compose("train").model
    assert (model.history.name, model.user_head.name, model.item_head.name) == ("mean", "linear", "linear")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optim.lrr=1", "optim.lrr: no such setting in optim; did you mean 'lr'?"),
        ("optm.lr=1", "did you mean 'optim'?"),
        ("+model.foo=1", "model.foo: no such setting in model"),
        ("optim.lr=abc", "optim.lr: Value 'abc'"),
        ("data.features=3", "data.features: "),
        ("model=poled", "model: no option 'poled'; did you mean 'pooled'?"),
        ("experiment=nope", "experiment: no option 'nope'"),
        ("trainer.epochs=0", "trainer.epochs: got 0, expected at least 1"),
        ("export.name=my/model", "export.name: got 'my/model', expected letters"),
        ("data.event_weights.buy=2", "to add it: +data.event_weights.buy="),
        ("a=b=c", "a=b=c"),
        ("word", "word"),
        ("run_dir=???", "run_dir: "),
        ("--lr", "lr=..."),
        ("--learn-rate=0.1", "learn_rate=0.1"),
    ],
)
def test_a_wrong_setting_ends_with_2_and_its_name(tmp_path: Path, override: str, told: str) -> None:
    done = run("-m", "towers", "train", override, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [], "a job that cannot run leaves nothing"


def test_a_wrong_setting_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    done = run("-X", "importtime", "-m", "towers", "train", "optim.lrr=1", cwd=tmp_path)
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 2
    assert modules.isdisjoint({"torch", "pandas", "tensorboard", "faiss", "onnx"})


@pytest.mark.parametrize(("seed", "code"), [(0, 0), (3, 3), (4, 4), (5, 5), (70, 70)])
def test_exit_codes(fake: Path, seed: int, code: int) -> None:
    done = run("fake_job.py", f"seed={seed}", cwd=fake)
    assert done.returncode == code, done.stderr
    assert ("Traceback" in done.stderr) == (code == 70)
    if code == 0:
        assert done.stdout.splitlines()[-1] == "train: done -> runs/default/train.json"


def test_a_job_leaves_its_settings_in_run_dir_and_nothing_elsewhere(fake: Path) -> None:
    before = {path.name for path in fake.iterdir()}
    assert run("fake_job.py", "run_dir=here", "model.dim=8", cwd=fake).returncode == 0
    assert {path.name for path in fake.iterdir()} - before - {"__pycache__"} == {"here"}
    assert [str(p.relative_to(fake)) for p in (fake / "here").rglob("*") if p.is_file()] == ["here/config/train.yaml"]
    assert (fake / "here/config/train.yaml").read_text().startswith("# towers train run_dir=here model.dim=8\n"), "the command, too"
    kept = OmegaConf.load(fake / "here/config/train.yaml")
    assert (kept.model.dim, kept.run_dir) == (8, "here")
    (fake / "my own").mkdir()
    assert run("fake_job.py", "run_dir=here", "--config-dir", "my own", cwd=fake).returncode == 0
    command = f"# towers train '--config-dir={fake}/my own' run_dir=here\n"
    assert (fake / "here/config/train.yaml").read_text().startswith(command), "it can be given again as it stands"


def test_a_multirun_gives_each_combination_its_folder(fake: Path) -> None:
    (fake / "runs/default/prepared").mkdir(parents=True)
    done = run("fake_job.py", "-m", "seed=1,2", "model.dim=8", cwd=fake)
    assert done.returncode == 0, done.stderr
    assert "seed 1 in runs/default/seed=1" in done.stdout
    assert "seed 2 in runs/default/seed=2" in done.stdout
    assert (fake / "runs/default/seed=2/prepared").resolve() == (fake / "runs/default/prepared").resolve()


def test_a_multirun_stops_at_the_first_failure(fake: Path) -> None:
    done = run("fake_job.py", "-m", "seed=1,3,2", cwd=fake)
    assert done.returncode == 3
    assert "seed 2 in" not in done.stdout


def test_combination_folders(tmp_path: Path) -> None:
    assert combination_dir(tmp_path, ["seed=1", "model.dim=8"], ["seed=1,2", "model.dim=8"]) == tmp_path / "seed=1"
    assert combination_dir(tmp_path, ["run_dir=a"], ["run_dir=a,b"]) == tmp_path
    assert combination_dir(tmp_path, ["data.path=/a/b c"], []) == tmp_path / "data.path=_a_b_c"
    long = [combination_dir(tmp_path, [f"data.path={'x' * 300}{n}"], []).name for n in (1, 2)]
    assert long[0] != long[1]
    assert max(map(len, long)) <= 120


def test_prepared_data_is_not_shared_where_the_sweep_decides_it(tmp_path: Path) -> None:
    (tmp_path / "prepared").mkdir()
    share_prepared(tmp_path, tmp_path / "data.synthetic.seed=1")
    share_prepared(tmp_path, tmp_path / "optim.lr=1,split=leave_one_out")
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


def test_a_missing_library_says_what_to_install(fake: Path) -> None:
    (fake / "fake_run.py").write_text("import torch_that_is_not_there")
    done = run("fake_job.py", cwd=fake)
    assert done.returncode == 2
    assert 'towers train needs: pip install "towers[train]"' in done.stderr
    assert missing_library("train", ModuleNotFoundError("x", name="training.nope")) is None, "our own missing module is a bug"


@pytest.mark.parametrize("name", VERBS)
def test_help_teaches(name: str, tmp_path: Path) -> None:
    done = run("-m", "towers", name, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in (f"towers {name}", "Writes", "Examples", "Groups", "What they mean", "Exit codes"):
        assert part in done.stdout, f"{part!r} is not in the help"
    assert list(tmp_path.iterdir()) == []


def test_cfg_job_prints_the_settings(tmp_path: Path) -> None:
    done = run("-m", "towers", "train", "optim.lr=0.5", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0
    assert OmegaConf.create(done.stdout).optim.lr == 0.5


def test_meanings_name_every_group() -> None:
    text = meanings(training.config.TrainingConfig)
    for group in ("data", "data.synthetic", "model.history", "trainer", "evaluate", "export"):
        assert f"{group}: " in text


def test_the_command_without_a_job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def towers(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["towers", *arguments])
        code = cli.main()
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    code, text = towers("--help")
    assert code == 0
    assert all(f"  {verb.name}" in text and verb.sentence in text for verb in VERBS.values())
    assert all(f"  {group}" in text for group in config_groups())
    assert towers("--version") == (0, f"towers {__version__}\n")
    assert towers()[0] == 2
    assert towers("trian") == (2, "error: no job named 'trian': did you mean 'train'? `towers --help` lists the jobs\n")
    assert towers("xyzzy")[0] == 2


def test_every_verb_has_a_config_and_a_module() -> None:
    for verb in VERBS.values():
        assert (conf_dir() / f"{verb.name}.yaml").is_file()
        module = verb.target.partition(":")[0]
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), verb.target


def test_results_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = job.write_json(tmp_path / "sub" / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        job.write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 1\n}\n'
