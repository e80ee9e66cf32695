"""Who is forgotten or withdraws while lists of all are made gets none."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving import recommend_job
from serving.config import ServingConfig

FORGOTTEN, WITHDREW, OTHER = "user-4", "user-7", "user-9"


def test_lists_of_all_are_of_those_who_want_one_when_they_are_written(used: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config: ServingConfig = used.config
    config.recommend.users_per_shard = config.recommend.block_users = 5
    make, made = recommend_job.lists, []

    def slowly(*told: Any) -> pa.Table:
        table = make(*told)
        made.append(used.keys.key(FORGOTTEN) in table["user_key"].to_pylist())
        if made[-1]:  # its user was there when it was made, and a service is told before it is written
            with used.served() as (_, rights):
                rights.subjects.forget([used.keys.key(FORGOTTEN)])
                rights.standing.decide(used.keys.key(WITHDREW), {"personalize": False})
        return table

    withdrew_first = sorted([FORGOTTEN, WITHDREW], key=used.keys.key)[0] == WITHDREW
    monkeypatch.setattr(recommend_job, "lists", slowly)
    recommend_job.run(config)
    lists = pa.concat_tables(map(pq.read_table, sorted((used.dir / "recommendations").glob("part-*.parquet"))))
    keys = lists["user_key"].to_pylist()
    assert any(made) and used.keys.key(FORGOTTEN) not in keys and used.keys.key(OTHER) in keys
    assert used.keys.key(WITHDREW) not in keys or withdrew_first, "a list of before the withdrawal stays"
    assert json.loads((used.dir / "recommend.json").read_text())["users"] == len(keys) > 5
    assert "recommendations" not in {name.partition("/")[0] for name in used.bytes_of(FORGOTTEN)}
