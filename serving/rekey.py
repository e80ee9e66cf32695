"""Exchanging the secret of a run's user keys: all that holds keys is written anew under the new ones, and takes its place at once.

Everything is written beside what is there first. Then a journal names what is to take whose place; from there on the exchange is decided,
and a process that dies leaves the rest to whoever runs the job again. Before, it leaves nothing but files that nobody reads.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from serving.consent_store import CONSENT_FILE, ConsentStore
from serving.cutting import Cut, Moments
from serving.holding import Hold
from serving.receipt_writer import write_receipt
from serving.rekey_files import Rewritten, beside, rekey_database, rekey_tables, sweep
from serving.rekey_map import KeyMap
from serving.rekey_prepared import refuse_learned_keys, rekey_prepared, settle_facts
from serving.subjects import Places, cut_everywhere, iso, now_us
from towers.disk import sync
from towers.errors import ConfigError, DataError
from towers.identity import UserKeys
from towers.live_consent import LIVE_CONSENT
from towers.live_logs import EVENTS_FILE
from towers.receipts import REKEYED, Erasures, Receipts
from towers.rekeying import JOURNAL


def rekey(
    places: Places,
    old: UserKeys,
    new: UserKeys,
    user_ids: Sequence[str],
    delete_unnamed: bool = False,
    keep: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Exchange the secret, or end an exchange that was interrupted.

    Args:
        user_ids: everybody who may be met, forgotten people too: who is forgotten and not named is not known again in a log that names
            them, only in a backup from before.
        delete_unnamed: rows and decisions of others are deleted, and forgotten people not carried over; else that is refused.
        keep: called when nothing stands in the way any more, before the exchange is decided: to write the new secret down.

    Returns:
        the receipt, with its `number` and `hash`.

    Raises:
        ConfigError: the state is in use, a file is of a third secret, or keys were learned as a feature.
        DataError: a file cannot be read or written, the chain of receipts was changed, or somebody is not named. Nothing was changed.
    """
    hold = Hold(places.state_dir, alone=True)
    try:
        journal = places.run_dir / JOURNAL
        if not journal.is_file():
            sweep(places.run_dir, places.state_dir, places.histories)
            refuse_learned_keys(places.run_dir)
            _prepare(places, KeyMap(user_ids, old, new), delete_unnamed, keep)
        told = json.loads(journal.read_text())
        between = (old.fingerprint().decode(), new.fingerprint().decode())
        if (told["receipt"]["from"], told["receipt"]["secret"]) != between:
            raise ConfigError(f"{journal}: an exchange between two other secrets was interrupted; run it again with those, which ends it")
        return _finish(places, journal, told)
    finally:
        hold.close()


def _prepare(places: Places, to: KeyMap, delete_unnamed: bool, keep: Callable[[], None]) -> None:
    """Write everything beside its place, then the journal."""
    erasures = Erasures(Receipts(places.receipts))
    erasures.refresh()
    forgotten = erasures.under(to.old.fingerprint())
    _forget_again(places, to, erasures)
    try:
        written = list(_written(places, to))
        carried = {of: moment for of, moment in forgotten.items() if to.mark(of) is not None}
        missing = {places.name(one.path): one.unnamed for one in written if one.unnamed}
        if not delete_unnamed and (missing or len(carried) < len(forgotten)):
            raise DataError(_refusal(missing, len(forgotten) - len(carried)))
        for one in written:
            sync(beside(one.path))
        receipt = {
            "what": REKEYED, "at": iso(now_us()), "run": places.run_dir.name, "exchange": secrets.token_hex(8),
            "from": to.old.fingerprint().decode(), "secret": to.new.fingerprint().decode(),
            "rows": {places.name(one.path): one.rows for one in written if one.rows}, "deleted": missing,
            "forgotten": {(to.mark(of) or b"").hex(): moment for of, moment in carried.items()},
            "forgotten_unnamed": len(forgotten) - len(carried),
        }  # fmt: skip
        replaced = [_noted(one.path, places.run_dir) for one in written]
        users = (places.state_dir / EVENTS_FILE).with_suffix(".users")
        keep()
        _note(places.run_dir / JOURNAL, {"replace": replaced, "remove": [_noted(users, places.run_dir)], "receipt": receipt})
    except BaseException:
        if not (places.run_dir / JOURNAL).is_file():
            sweep(places.run_dir, places.state_dir, places.histories)
        raise


def _forget_again(places: Places, to: KeyMap, erasures: Erasures) -> None:
    """What a backup brought back of people who are forgotten: those of the old secret by its keys, those of the new one by who is named."""
    old = erasures.under(to.old.fingerprint())
    if not len(erasures):
        return
    _, failed = cut_everywhere(places, Cut(_moments(to, erasures)), to.old)
    if failed:
        raise DataError("; ".join(failed.values()))
    if old and (places.state_dir / CONSENT_FILE).is_file():
        try:
            store = ConsentStore(places.state_dir / CONSENT_FILE, to.old.fingerprint())
        except ConfigError:
            return  # under the new secret already
        with closing(store):
            store.forget(old)


def _moments(to: KeyMap, erasures: Erasures) -> Moments:
    old, new = to.old.fingerprint(), to.new.fingerprint()
    return lambda keys_n: np.maximum(erasures.moments_under(old, keys_n), erasures.moments_under(new, to.find(keys_n).keys_n))


def _written(places: Places, to: KeyMap) -> Iterator[Rewritten]:
    for path in places.databases():
        if (one := rekey_database(path, to)) is not None:
            yield one
    decisions = places.state_dir / LIVE_CONSENT
    yield from rekey_tables([*places.tables(), *([decisions] if decisions.is_file() else [])], to)
    if (folder := places.prepared()) is not None:
        yield from rekey_prepared(folder, to)


def _finish(places: Places, journal: Path, told: dict[str, Any]) -> dict[str, Any]:
    """Everything into its place; each step may have been done before."""
    replaced = [places.run_dir / name for name in told["replace"]]
    if missing := [str(path) for path in replaced if not path.exists() and not beside(path).exists()]:
        raise DataError(f"{journal}: of the files that it names these are gone: {', '.join(missing)}. Put them back, then run it again")
    for path in replaced:
        if beside(path).exists():
            for log in (f"{path}-wal", f"{path}-shm"):  # of the old database, which is in the new one
                Path(log).unlink(missing_ok=True)
            os.replace(beside(path), path)
    for name in told["remove"]:
        (places.run_dir / name).unlink(missing_ok=True)
    for folder in {path.parent for path in replaced}:
        sync(folder)
    if (folder_of := places.prepared()) is not None:
        settle_facts(folder_of)
    receipt = told["receipt"]
    chain = Receipts(places.receipts)
    done = [line for line in chain.fresh() if line.get("exchange") == receipt["exchange"]]
    number, last = (chain.count, chain.last) if done else write_receipt(places.receipts, receipt)
    journal.unlink()
    return {**receipt, "number": number, "hash": last}


def _refusal(missing: dict[str, int], forgotten: int) -> str:
    shown = ", ".join(f"{place}: {count:,}" for place, count in missing.items())
    rows = f"{sum(missing.values()):,} rows of users whom it does not name ({shown})" if missing else ""
    people = f"{forgotten:,} forgotten people whom it does not name, who would return with a log that does" if forgotten else ""
    return (
        f"subject.ids: there are {' and '.join(filter(None, (rows, people)))}. Nothing was changed. Name everybody, from every log that is"
        f" prepared again, or set subject.unnamed=delete: such rows are then deleted, and such people known again only in older backups"
    )


def _noted(path: Path, run_dir: Path) -> str:
    """What the journal calls a file: one of the run goes with the run, wherever that is moved or copied to."""
    whole, run = path.resolve(), run_dir.resolve()
    return str(whole.relative_to(run) if whole.is_relative_to(run) else whole)


def _note(path: Path, document: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(document, indent=2) + "\n")
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)
