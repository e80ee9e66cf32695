"""Running a job: Hydra's door. Composes the typed config, runs, writes the result file, maps errors to exit codes.

Every runnable module is `main() -> register(); run_job("train", "training.train_run:run", validate)`: the same `--help`, exit codes
and last line for all.
"""

import dataclasses
import difflib
import importlib
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from towers.combination import combination_dir, share_prepared
from towers.disk import disk_error
from towers.errors import EXIT_BUG, EXIT_CONFIG, EXIT_DONE, EXIT_INTERRUPTED, ConfigError, DataError, TowersError
from towers.help_text import meanings
from towers.interrupts import TOLD, end_at_once, follow_starter, raise_in_work
from towers.typed_text import refuse_numbers_for_text
from towers.verbs import conf_dir, missing_library

Run = Callable[[Any], str | Path]


LAUNCHED = "TOWERS_LAUNCHED"
"""Set in processes that a job has started as parts of itself, to its pid: the last line is the job's own."""


def run_job(name: str, run: Run | str, validate: Callable[[Any], None], keep_settings: bool = True) -> None:
    """Compose conf/<name>.yaml with the command line's overrides, run, and exit with the decided code.

    Args:
        name: the job, and its YAML's name.
        run: does the work on the typed config; returns the path of its result, printed as the last line. As a string,
            `module:function`, it is imported only after the settings are known to be right, so that a mistyped key does not wait for
            torch.
        validate: cross-field checks, run before the work.
        keep_settings: beside the results; not those of a job that is told whom it is about.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting 1, and `_guard` decides.
    end_at_once()
    follow_starter()
    OmegaConf.register_new_resolver("towers.meanings", _meanings, replace=True)

    def one_run(raw: DictConfig) -> None:
        first = _is_first()
        _refuse_unknown(raw)
        refuse_numbers_for_text(raw, sys.argv[1:], _config_folders())
        if not OmegaConf.is_missing(raw, "run_dir") and not raw.run_dir.strip():
            raise ConfigError("run_dir: got '', expected a folder for all that a run leaves. Leave the setting out, or run_dir=runs/mine")
        _place(name, raw, first)
        config = OmegaConf.to_object(raw)
        validate(config)
        work = _resolve(name, run)
        raise_in_work()
        put_back = write_resolved(Path(raw.run_dir), name, raw) if first and keep_settings else _nothing
        try:
            result = work(config)
        except TowersError as error:
            if error.exit_code == EXIT_CONFIG:
                put_back()  # nothing was done with these settings: those beside the results are still theirs
            raise
        except OSError as error:
            full = disk_error(error, raw.run_dir)
            if full is None:
                raise
            raise full from error
        if first and LAUNCHED not in os.environ:
            print(f"{name}: done -> {result}", flush=True)

    sys.exit(_guard(lambda: _compose_and_run(name, one_run)))


def overrides() -> list[str]:
    """The command line's overrides of the running job, as typed; none where the work is called from Python."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def config_dirs() -> list[str]:
    """The `--config-dir` of the running job, its path in full, for a job that starts others and for whoever repeats this one."""
    return [f"--config-dir={folder}" for folder in _config_folders()]


def _config_folders() -> list[Path]:
    return [Path(source.path) for source in HydraConfig.get().runtime.config_sources if source.provider == "command-line"]


def write_resolved(run_dir: Path, name: str, raw: DictConfig) -> Callable[[], object]:
    """Keep the resolved config beside the results, with the command that asked for it: run_dir/config/<job>.yaml. Returns what puts back
    the one that was there; where none was, this one stays."""
    file = run_dir / "config" / f"{name}.yaml"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        before = file.read_text() if file.is_file() else None
        file.write_text(f"# {shlex.join(['towers', name, *config_dirs(), *overrides()])}\n{OmegaConf.to_yaml(raw, resolve=True)}")
    except OSError as error:
        raise ConfigError(f"run_dir: cannot write to {run_dir}: {error.strerror}") from error
    return _nothing if before is None else lambda: file.write_text(before)


def read_resolved(path: Path) -> dict[str, Any]:
    """The settings that `write_resolved` kept, as they stand there, whatever version of Towers wrote them.

    Raises:
        DataError: they cannot be read.
    """
    try:
        settings = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # of PyYAML, which is OmegaConf's own, or of OmegaConf
        raise DataError(f"{path}: cannot be read as settings ({error}). Give back the file that the job wrote, or remove it") from error
    return {str(name): value for name, value in settings.items()} if isinstance(settings, dict) else {}


def write_json(path: Path, document: dict[str, Any]) -> Path:
    """Write a JSON result atomically: a reader sees the old file or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(json.dumps(document, indent=2, sort_keys=False, allow_nan=False) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # only there where the disk was full
    return path


def _compose_and_run(name: str, one_run: Callable[[DictConfig], None]) -> None:
    """Let Hydra read the command line and call `one_run` once, or once per combination until one fails."""
    failures: list[Exception] = []

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)
    def main(raw: DictConfig) -> None:
        # Hydra would print a line of its own on the way of an exception, so none passes through it.
        if not failures:
            try:
                one_run(raw)
            except Exception as error:
                failures.append(error)

    try:
        main()
    except ValueError as error:  # of Hydra's composing: what `one_run` raises is kept above
        raise ConfigError(f"{error}. A group takes the name of an option (data=table); to choose none, leave it out") from error
    if failures:
        raise failures[0]


def _nothing() -> None:
    """What is put back where nothing has to be."""


def _meanings(schema: str) -> str:
    """`${towers.meanings:training_schema}` in a job's help; Hydra reads that as a template, in which `$` is doubled."""
    declared = OmegaConf.get_type(ConfigStore.instance().load(f"{schema}.yaml").node)
    return meanings(declared).replace("$", "$$") if declared else ""


def _refuse_unknown(raw: DictConfig, where: str = "") -> None:
    """Hydra lets `+key=1` add a key that the schema does not have, and would then drop it."""
    known = getattr(OmegaConf.get_type(raw), "__dataclass_fields__", None)
    for key in map(str, raw):
        if known is not None and key not in known:
            raise ConfigError(_no_such_setting(where + key, list(known)))
        if not OmegaConf.is_missing(raw, key) and OmegaConf.is_dict(raw[key]):
            _refuse_unknown(raw[key], f"{where}{key}.")


def _is_first() -> bool:
    """Whether this process writes and speaks: of several that torchrun started for one job, the one of RANK 0."""
    return os.environ.get("RANK", "0") == "0"


def _place(name: str, raw: DictConfig, first: bool) -> None:
    """In a multirun, give each combination a folder of its own under run_dir."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        whole = Path(raw.run_dir)
        own = combination_dir(whole, overrides(), sys.argv[1:])
        raw.run_dir = str(own)
        if first and name == "train":
            share_prepared(whole, own)
        if first:
            print(f"== {own}", flush=True)


def _resolve(name: str, run: Run | str) -> Run:
    if not isinstance(run, str):
        return run
    module, _, function = run.partition(":")
    try:
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        problem = missing_library(name, error)
        if problem is None:
            raise
        raise ConfigError(problem) from error


def _guard(main: Callable[[], None]) -> int:
    try:
        main()
    except TowersError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {_explain(error)}", file=sys.stderr)
        return EXIT_CONFIG
    except KeyboardInterrupt:
        print(TOLD, file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `towers train --help | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more when it closes the stream
        return EXIT_INTERRUPTED
    except Exception:
        traceback.print_exc()
        print("error: this is a bug in Towers; the lines above say where", file=sys.stderr)
        return EXIT_BUG
    return EXIT_DONE


def _explain(error: Exception) -> str:
    """What was wrong with the settings, in our words where the key is known, else in Hydra's without what speaks of its insides."""
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and isinstance(cause.parent_node, DictConfig):
        if not dataclasses.is_dataclass(OmegaConf.get_type(cause.parent_node)):
            return f"{cause.full_key}: a map without that key yet; to add it: +{cause.full_key}=..."
        return _no_such_setting(str(cause.full_key), [str(key) for key in cause.parent_node])
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return f"{cause.full_key}: {cause.msg or cause}".partition("\n")[0]
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}: no option {option!r}{_nearest(option, error.options)}"
    text = str(error).partition("Config search path:")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip() and "hydra.cc" not in line and "To append" not in line]
    if isinstance(error, OverrideParseException):
        lines[:0] = [] if error.override in text else [f"cannot read {error.override!r}"]
        lines.append("settings are written as key=value; quote values with spaces, signs or letters beyond a to z: 'key=\"a value\"'")
    return "\n  ".join(lines)


def _no_such_setting(key: str, siblings: list[str]) -> str:
    group, _, last = key.rpartition(".")
    return f"{key}: no such setting{f' in {group}' if group else ''}{_nearest(last, siblings)}"


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
