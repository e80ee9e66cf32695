"""The work of `towers subject`."""

import json
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving.raw_scan import read_ids, scan
from serving.rekey import rekey
from serving.rights import Rights, places_of
from serving.subject_config import DELETE, SubjectJobConfig
from serving.subjects import PREPARED, verify
from towers.errors import ConfigError, DataError, GateError, listed
from towers.identity import UserKeys, keep_secret, key_file, new_secret
from towers.job import write_json
from towers.prepared import USER_TABLES
from towers.receipts import receipts_file

_MEND = "Put each back from a backup, or delete it (with everybody's rows in it)"


def run(config: SubjectJobConfig) -> str:
    """Do what `action` says.

    Returns:
        path of run_dir/subject.json, or of what action=export wrote.

    Raises:
        ConfigError: the secret of the user keys is not where it should be or another's, a setting is missing, or there is no run.
        DataError: a file cannot be read or rewritten, or a receipt was changed.
        GateError: action=scan found raw ids where none was asked for; names damaged files too.
    """
    run_dir = Path(config.run_dir)
    done: dict[str, Any] = {"action": config.action}
    if config.action == "verify":
        done |= verify(receipts_file(config.serving.receipts, config.serving.key_file))
        print(f"   {done['receipts']} lines of the receipts are as they were written; last hash {done['last_hash']}", flush=True)
        if torn := done.get("torn_bytes"):
            print(f"   after them stand {torn} bytes of one that was not written whole, of which nobody was told; the next replaces them")
    elif config.action == "scan":
        return str(_scan(config, run_dir))
    elif not run_dir.is_dir():
        raise ConfigError(f"run_dir: no folder {run_dir}, so nothing of anybody would be found; name the run that people are in")
    elif config.action == "rekey":
        done |= {"receipt": _rekeyed(config, run_dir)}
    else:
        keys = UserKeys.open(config.serving.key_file)
        with closing(Rights.open(config, keys)) as rights:
            rights.check_secret()
            if config.action == "export":
                return str(_export(config, rights))
            done |= _removed(config, rights)
    if not run_dir.is_dir():  # receipts alone are verified without one
        return str(receipts_file(config.serving.receipts, config.serving.key_file))
    path = write_json(run_dir / "subject.json", done)
    removal = done.get("receipt", done)
    if failed := removal.get("not_removed_from"):
        raise DataError(_still_there(config.action, failed, removal["rows"], path))
    return str(path)


def _removed(config: SubjectJobConfig, rights: Rights) -> dict[str, Any]:
    if config.action == "purge":
        days = config.subject.days or config.serving.event_days or 0.0
        rows, failed, left = rights.subjects.purge(days)
        print(f"   {_counted(rows)} older than {days:g} days removed", flush=True)
        for place, what in left.items():
            print(f"   left in {place}: {what}", flush=True)
        return {"days": days, "rows": rows, "not_removed_from": failed, "left": left}
    users = [config.user] if config.user is not None else read_ids(Path(config.subject.users or ""))
    receipt = rights.subjects.forget([rights.keys.key(user) for user in users])
    nobody = "" if receipt["found"] else "nobody of that id was found: "
    print(f"   {nobody}{_counted(receipt['rows'])} removed; line {receipt['number']} of the receipts, hash {receipt['hash']}", flush=True)
    return {"receipt": receipt}


def _counted(rows: Mapping[str, int]) -> str:
    return f"{sum(rows.values()):,} rows in {_places(len(rows))}"


def _places(count: int) -> str:
    return f"{count:,} place{'s' * (count != 1)}"


def _still_there(action: str, failed: Mapping[str, str], rows: Mapping[str, int], path: Path) -> str:
    """What could not be reached, what to do, and what is done."""
    return (
        f"{_places(len(failed))} could not be reached, and may hold rows still:{listed(failed.values())}\n{_MEND}, then"
        f" {action} again. All else is done, {_counted(rows)}: {path} lists both"
    )


def _rekeyed(config: SubjectJobConfig, run_dir: Path) -> dict[str, Any]:
    if not key_file(config.subject.old_key).is_file():
        raise ConfigError(f"subject.old_key: no file {config.subject.old_key}; it is the secret that the users are keyed with now")
    file = key_file(config.serving.key_file)
    made = None if file.exists() else new_secret()  # written down when nothing stands in the way: what is refused leaves nothing
    old, new = UserKeys.open(config.subject.old_key), UserKeys.open(config.serving.key_file) if made is None else UserKeys(made)
    if old.fingerprint() == new.fingerprint():
        raise ConfigError("subject.old_key: the same secret as the new one. Move the old file away, so that serving.key_file is made anew")
    places, former = places_of(config), receipts_file(None, config.subject.old_key)
    if config.serving.receipts is None and former != places.receipts and former.is_file():
        raise ConfigError(f"serving.receipts: those of the old secret are {former}; move them to {places.receipts}, or name them")

    def keep() -> None:
        if made is not None and not keep_secret(file, made):
            raise ConfigError(f"{file}: another process has just made a secret there. Nothing was changed; run it again")

    receipt = rekey(places, old, new, read_ids(_ids(config, run_dir)), config.subject.unnamed == DELETE, keep)
    rows, deleted = sum(receipt["rows"].values()), sum(receipt["deleted"].values())
    print(
        f"   {rows - deleted:,} rows under new keys, {deleted:,} deleted; receipt {receipt['number']}, hash {receipt['hash']}",
        flush=True,
    )
    return {**receipt, "forgotten": len(receipt["forgotten"])}  # who they are stands in the chain alone


def _ids(config: SubjectJobConfig, run_dir: Path) -> Path:
    source = Path(config.subject.ids).expanduser() if config.subject.ids else run_dir / PREPARED / USER_TABLES[1]
    if not source.is_file():
        raise ConfigError(f"subject.ids: no file {source}; name one with the user ids")
    return source


def _export(config: SubjectJobConfig, rights: Rights) -> Path:
    out = Path(config.subject.out or "")
    try:
        with open(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as sink:
            if out.is_file():  # one that was there, which others may read
                os.fchmod(sink.fileno(), 0o600)
            told = rights.held(config.user or "")
            json.dump(told, sink, indent=2, ensure_ascii=False)
    except OSError as error:
        raise ConfigError(f"subject.out: {out} cannot be written: {error.strerror}") from error
    if unread := told["unread"]:
        raise DataError(
            f"{_places(len(unread))} cannot be read, and may hold more of this person:"
            f"{listed(f'{place}: {reason}' for place, reason in unread.items())}\n{_MEND}, then export again. {out} tells all else"
        )
    return out


def _scan(config: SubjectJobConfig, run_dir: Path) -> Path:
    ids = read_ids(_ids(config, run_dir))
    found, unread, untold = scan(run_dir, ids)
    hits, asked_for = [asdict(place) for place in found if not place.asked_for], [place.place for place in found if place.asked_for]
    document = {"action": "scan", "hits": hits, "asked_for": asked_for, "not_looked_for": untold, "unread": unread}
    path = write_json(run_dir / "subject.json", document)
    elsewhere = f"besides where a setting asked for them: {', '.join(asked_for) or 'nowhere'}"
    damaged = ""
    if unread:
        damaged = f"{_places(len(unread))} cannot be read, and may hold some:{listed(f'{place}: {why}' for place, why in unread.items())}"
        damaged += f"\n{_MEND}, then scan again. "
    if hits:
        shown = listed(f"{place['place']} ({place['ids']})" for place in hits)
        raise GateError(f"raw user ids stand in {_places(len(hits))}:{shown}\n{damaged}{path} lists them all")
    if unread:
        raise DataError(f"raw user ids: {damaged}All else holds none, {elsewhere}")
    looked = f"of {len(ids) - untold:,} looked for" if untold else ""
    left = f"; {untold:,} were NOT looked for: too short, plain numbers or ids of items" if untold else ""
    print(f"   no raw user id {looked + ' ' if looked else ''}in {run_dir}, {elsewhere}{left}")
    return path
