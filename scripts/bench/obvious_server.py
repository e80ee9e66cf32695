"""The stack that one would put together first, over the same index: FastAPI, pydantic, a thread pool, torch eager.

Same bundle, same stored histories, same index, k and recall, same exclusion of what was seen, same fields in the reply: what differs is how
it is put together. Handlers are plain functions, which FastAPI runs in its thread pool; the tower is called eagerly; requests and replies
are pydantic models. Nothing is made slow on purpose: one thread for torch, what is looked up lies in dictionaries and lists, histories were
looked up before the first request, the index is memory-mapped.
"""

import argparse
import sys
import uuid
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from serving.index.stored import open_index
from serving.runtimes import open_runtime
from serving.user_state import UserHistories
from towers import vocab
from towers.bundle import Bundle
from towers.columns import EVENT_TYPE, FIRST_ROW, ITEM_ID
from towers.encoder import Encoder, UserRow
from towers.identity import UserKeys


class Ask(BaseModel):
    user_id: str
    context: dict[str, Any] = {}
    k: int = 20
    exclude_seen: bool = True


class ShownItem(BaseModel):
    item_id: str
    title: str | None
    score: float
    categories: list[str]


class Shown(BaseModel):
    recommendation_id: str
    model_version: str
    items: list[ShownItem]
    returned: int
    k: int


def make_app(folder: Path, histories: Path, key_file: Path, now_us: int) -> FastAPI:
    bundle = Bundle.open(folder)
    preprocessor = bundle.preprocessor()
    vocab.HELD_AT_MOST = sys.maxsize  # a dictionary of all ids, as one would write it
    preprocessor.hold()
    encoder = Encoder(preprocessor, open_runtime(bundle, preprocessor, "torch"), bundle.model_config().history.length)
    index, users, keys = open_index(bundle), UserHistories.open(histories), UserKeys.open(str(key_file))
    table = bundle.catalog()
    ids, titles, categories = (table.column(name).to_pylist() for name in ("item_id", "title", "categories"))
    item_ids = preprocessor.vocabularies[ITEM_ID]
    users.teach(item_ids, preprocessor.vocabularies[EVENT_TYPE])
    app = FastAPI()

    @app.post("/v1/recommend", response_model=Shown)
    def recommend(ask: Ask) -> Shown:
        known = users.get(keys.key(ask.user_id))
        if known is None:
            raise HTTPException(404, "unknown user")
        read = item_ids.rows(known.items)
        row = UserRow(known.items, known.events, known.timestamps, now_us, ask.context, dict(known.features), read)
        vector = encoder.users([row]).vectors_BHD[0]
        found = index.search(vector, ask.k, None, read[read >= FIRST_ROW] - FIRST_ROW if ask.exclude_seen else None)
        shown = [
            ShownItem(item_id=ids[row], title=titles[row], score=score, categories=categories[row] or [])
            for row, score in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        ]
        return Shown(recommendation_id=uuid.uuid4().hex, model_version=bundle.version, items=shown, returned=len(shown), k=ask.k)

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("bundle", "histories", "key_file"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--now-us", type=int)
    told = parser.parse_args()
    torch.set_num_threads(1)
    app = make_app(told.bundle, told.histories, told.key_file, told.now_us)
    uvicorn.run(app, port=told.port, log_level="warning", access_log=False)
