"""Checkpoints: all that a run needs to continue, saved so that a kill, a full disk or a damaged file never loses what was saved.

    checkpoints/000007-step-420/
        tensors.safetensors     every tensor, by `<part>:<key>`
        state.json              the other values, the config's hash, the best checkpoint so far, and checksums

A checkpoint is written under another name, fsynced and renamed, and only then are older ones removed. Nothing is pickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from towers.disk import sync
from towers.errors import ConfigError, DataError
from training.distributed import ALONE, Part, Processes

FORMAT = 0
TENSORS, STATE = "tensors.safetensors", "state.json"
_TEMPORARY, _DAMAGED = ".tmp", ".damaged"
_SHOWN = 4


class Checkpointer:
    """Saves and restores the named parts of a run.

    Args:
        folder: run_dir/checkpoints.
        parts: every stateful part of the run, by name; all are restored, strictly.
        config_hash: of everything that decides the result; a checkpoint of another hash is refused.
        settings: what is in that hash, by name: a refusal says which differ.
        every: steps between checkpoints for `maybe_save`; 0 = it saves none.
        keep: newest checkpoints kept, besides the best of each.
        say: prints a line for the user.
        processes: that train together. The first one saves and reads, and gives the others what it read; how many there are is no part
            of a checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, Part],
        *,
        config_hash: str,
        settings: Mapping[str, Any] | None = None,
        every: int,
        keep: int,
        say: Callable[[str], None],
        processes: Processes = ALONE,
    ) -> None:
        self.folder = folder
        self.best: str | None = None
        self._parts = dict(parts)
        self._config_hash = config_hash
        self._settings = dict(settings or {})
        self._every = every
        self._keep = max(1, keep)
        self._say = say
        self._processes = processes

    def maybe_save(self, step: int) -> None:
        """Save where `step` is due."""
        if self._every > 0 and step % self._every == 0:
            self.save(step)

    def save(self, step: int, best: bool = False) -> Path:
        """Save all parts; `best` marks this checkpoint as the best so far.

        Raises:
            DataError: the disk is full or cannot be written; what was saved before is untouched.
        """
        return Path(self._processes.lead(lambda: str(self._save(step, best))))

    def restore(self) -> int | None:
        """Load the newest checkpoint that is whole into all parts; says which ones it had to pass over.

        Returns:
            its step; None where there is no checkpoint.

        Raises:
            ConfigError: it belongs to another config, or a file stands where the folder should.
            DataError: there are checkpoints, and none of them is whole.
        """
        step = self._processes.lead(self._restore)
        for part in self._parts.values() if step is not None else ():
            self._processes.copy_state(part)
        return step

    def load_best(self, part: str) -> bool:
        """Load one part from the best checkpoint (the newest one where none was marked).

        Returns:
            False where the best was missing or damaged, which is said, and the newest whole one was taken in its place.

        Raises:
            DataError: none is whole.
        """
        found = self._processes.lead(lambda: self._load_best(part))
        self._processes.copy_state(self._parts[part])
        return found

    def clear(self) -> None:
        """Remove every checkpoint: a run that starts anew must not continue from an old one later.

        Raises:
            ConfigError: a file stands where the folder should.
        """
        self._processes.lead(self._clear)
        self.best = None

    def _clear(self) -> None:
        self._check_folder()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(
                f"run_dir: {self.folder} is a file, and checkpoints need a folder of that name. Move it, or use another run_dir"
            )

    def _save(self, step: int, best: bool) -> Path:
        names = self._names()
        name = f"{int(names[-1].partition('-')[0]) + 1 if names else 1:06d}-step-{step}"
        self.best = name if best else self.best
        temporary = self.folder / (name + _TEMPORARY)
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            self._write(temporary, step)
            os.rename(temporary, self.folder / name)
            sync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            kept = f"{names[-1]} and older ones are kept" if names else "none was saved before"
            raise DataError(
                f"checkpoint {name} could not be written to {self.folder}: {error}. {kept}. Free some space, then run the same"
                " command again to continue"
            ) from error
        self._prune()
        return self.folder / name

    def _restore(self) -> int | None:
        self._check_folder()
        names = self._names()
        for name in reversed(names):
            try:
                state = self._read(name)
            except DataError as error:
                self._say(f"{error}; taking the checkpoint before it")
                shutil.rmtree(self.folder / (name + _DAMAGED), ignore_errors=True)
                os.rename(self.folder / name, self.folder / (name + _DAMAGED))
                for older in sorted(self.folder.glob("*" + _DAMAGED))[:-1]:  # one is enough to look into
                    shutil.rmtree(older, ignore_errors=True)
                continue
            self._check_config(name, state)
            self._load(name, state, list(self._parts))
            self.best = state["best"]
            return int(state["step"])
        # those of an earlier attempt count, too: the same command must not train anew where it has just refused to
        if names or any(self.folder.glob("*" + _DAMAGED)):
            raise DataError(f"{self.folder}: no checkpoint is whole. Start anew with trainer.resume=false")
        return None

    def _load_best(self, part: str) -> bool:
        names = self._names()
        best = self.best or names[-1]
        for name in dict.fromkeys([best, *reversed(names)]):
            try:
                self._load(name, self._read(name), [part])
            except DataError as error:
                self._say(f"{error}; it was the best, and the newest whole one is taken" if name == best else str(error))
                self.best = None if name == self.best else self.best
            else:
                return name == best
        raise DataError(f"{self.folder}: no checkpoint is whole. Start anew with trainer.resume=false")

    def _names(self) -> list[str]:
        """Whole or damaged, oldest first: serial numbers sort."""
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.glob("*-step-*") if p.suffix not in (_TEMPORARY, _DAMAGED))

    def _write(self, folder: Path, step: int) -> None:
        tensors: dict[str, Tensor] = {}
        values: dict[str, dict[str, Any]] = {}
        for part, holder in self._parts.items():
            state = holder.state_dict()
            tensors |= {f"{part}:{k}": v.detach().cpu().contiguous() for k, v in state.items() if isinstance(v, Tensor)}
            values[part] = {k: v for k, v in state.items() if not isinstance(v, Tensor)}
        save_file(tensors, folder / TENSORS)
        document = {
            "format": FORMAT,
            "step": step,
            "best": self.best,
            "config_hash": self._config_hash,
            "settings": self._settings,
            "values": values,
            "tensors_sha256": _sha256(folder / TENSORS),
        }
        document["sha256"] = _document_sha256(document)
        (folder / STATE).write_text(json.dumps(document, indent=1, allow_nan=False))
        for path in (folder / TENSORS, folder / STATE, folder):
            sync(path)

    def _read(self, name: str) -> dict[str, Any]:
        """state.json of a checkpoint whose two checksums hold."""
        folder = self.folder / name
        try:
            state: dict[str, Any] = json.loads((folder / STATE).read_text())
            whole = state["sha256"] == _document_sha256(state) and state["tensors_sha256"] == _sha256(folder / TENSORS)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"checkpoint {folder} is damaged ({error})") from error
        if not whole:
            raise DataError(f"checkpoint {folder} is damaged (its checksum does not hold)")
        if state["format"] != FORMAT:
            raise DataError(f"checkpoint {folder} has format {state['format']}, expected {FORMAT}")
        return state

    def _check_config(self, name: str, state: Mapping[str, Any]) -> None:
        if state["config_hash"] != self._config_hash:
            raise ConfigError(
                f"trainer.resume: {self.folder / name} was trained with other {_differing(state.get('settings'), self._settings)}, and"
                " continuing would mix the two. Start anew with trainer.resume=false (removes these checkpoints), or choose another run_dir"
            )

    def _load(self, name: str, state: Mapping[str, Any], parts: list[str]) -> None:
        tensors = load_file(self.folder / name / TENSORS)
        for part in parts:
            own = {k.removeprefix(part + ":"): v for k, v in tensors.items() if k.startswith(part + ":")}
            self._parts[part].load_state_dict({**own, **state["values"][part]})

    def _best_of(self, name: str) -> set[str]:
        try:
            best = json.loads((self.folder / name / STATE).read_text())["best"]
        except (OSError, ValueError, KeyError):  # damaged since it was written: `restore` will pass it over
            return set()
        return {best} if best else set()

    def _prune(self) -> None:
        """Keep the newest, and the best that each of them names: the one before the newest may have to be taken."""
        names = self._names()
        kept = set(names[-self._keep :])
        for name in list(kept):
            kept |= self._best_of(name)
        for name in set(names) - kept:
            shutil.rmtree(self.folder / name)
        for leftover in self.folder.glob("*" + _TEMPORARY):
            shutil.rmtree(leftover, ignore_errors=True)


def _differing(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """What two runs do not have in common: settings by name, or else the data."""
    if then is None:
        return "settings or other prepared data"
    names = [name for name in sorted({*then, *now}) if name not in then or name not in now or then[name] != now[name]]
    shown = [f"{name} was {_short(then.get(name))}, now {_short(now.get(name))}" for name in names[:_SHOWN]]
    more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"settings ({'; '.join(shown)}{more})" if names else "prepared data"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _document_sha256(document: Mapping[str, Any]) -> str:
    without = {k: v for k, v in document.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(without, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
