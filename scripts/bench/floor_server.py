"""A floor, not a service: the least that can answer the benchmark's requests with Starlette, msgspec, ONNX Runtime and FAISS themselves.

Same bundle, tower, index, k and recall as `towers serve`, and nothing else: what a user's history becomes was computed before the first
request, only the users and features of the benchmark are known, nothing is checked, excluded, counted or logged, and the reply holds ids
and scores alone. What it costs is the pace of the machine at that moment, which other figures can be read against.
"""

import argparse
from pathlib import Path

import faiss
import msgspec
import numpy as np
import onnxruntime as ort
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.index.faiss_index import FaissIndex
from serving.index.stored import open_index
from serving.user_state import UserHistories
from towers.batch import HISTORY_AGE, HISTORY_EVENT, HISTORY_ITEM
from towers.bundle import Bundle
from towers.columns import EVENT_TYPE, FIRST_ROW, ITEM_ID
from towers.encoder import Encoder, UserRow
from towers.identity import UserKeys
from towers.lookups import HISTORY_MASK, HISTORY_ROWS


class Ask(msgspec.Struct):
    user_id: str
    context: dict[str, str | float]
    k: int


class Shown(msgspec.Struct):
    items: list[str]
    scores: list[float]


def make_app(folder: Path, histories: Path, key_file: Path, users: int, now_us: int) -> Starlette:
    bundle = Bundle.open(folder)
    preprocessor = bundle.preprocessor()
    index = open_index(bundle)
    if not isinstance(index, FaissIndex):
        raise SystemExit(f"{folder} has no FAISS index")
    find, turned, item_ID = index.index, index.layout.queries, np.asarray(bundle.item_vectors())
    wide = faiss.SearchParametersIVF(nprobe=index.setting.nprobe)
    fetch = max(index.setting.candidates, 100)
    ready = _ready(preprocessor, bundle, histories, key_file, users, now_us)
    table_VD = np.load(bundle.path(f"tables/{ITEM_ID}.npy"), mmap_mode="r")
    chosen = [(f.name, f.input_name) for f in preprocessor.schema.owned_by("context") if f.kind == "categorical"]
    places = {
        name: {value: place for place, value in enumerate(preprocessor.vocabularies[name].values().to_pylist(), FIRST_ROW)}
        for name, _ in chosen
    }
    (numeric,) = [f.input_name for f in preprocessor.schema.owned_by("context") if f.kind == "numeric"]
    mean, deviation = preprocessor.numbers[numeric]
    ids = preprocessor.vocabularies[ITEM_ID].values().to_pylist()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(bundle.path("onnx/user.onnx")), options, providers=["CPUExecutionProvider"])
    decode, encode = msgspec.json.Decoder(Ask).decode, msgspec.json.Encoder().encode
    mask_BL = np.ones((1, ready[HISTORY_ITEM].shape[1]), np.float32)

    async def recommend(request: Request) -> Response:
        ask = decode(await request.body())
        user = slice(place := int(ask.user_id[1:]), place + 1)
        fed = {HISTORY_ROWS: table_VD[ready[HISTORY_ITEM][user]], HISTORY_MASK: mask_BL}
        fed |= {name: ready[name][user] for name in (HISTORY_EVENT, HISTORY_AGE)}
        fed |= {to: np.array([places[name][ask.context[name]]], np.int32) for name, to in chosen}
        fed[numeric] = np.array([[(ask.context["budget"] - mean) / deviation, 0.0]], np.float32)
        vector_D = session.run(["vectors"], fed)[0][0, 0]
        rows_C = find.search(turned(vector_D[None]), fetch, params=wide)[1][0]
        scores_C = item_ID[rows_C] @ vector_D
        best_k = np.argsort(-scores_C)[: ask.k]
        shown = Shown([ids[row] for row in rows_C[best_k].tolist()], scores_C[best_k].tolist())
        return Response(encode(shown), media_type="application/json")

    return Starlette(routes=[Route("/v1/recommend", recommend, methods=["POST"])])


def _ready(preprocessor, bundle, histories, key_file, users, now_us):  # type: ignore[no-untyped-def]
    """What each user's history becomes, for all of them: int32 [users, L] by input."""
    known, keys = UserHistories.open(histories), UserKeys.open(str(key_file))
    known.teach(preprocessor.vocabularies[ITEM_ID], preprocessor.vocabularies[EVENT_TYPE])
    stored = [known.get(keys.key(f"u{user}")) for user in range(users)]
    rows = [UserRow(one.items, one.events, one.timestamps, now_us) for one in stored]
    encoder = Encoder(preprocessor, None, bundle.model_config().history.length)  # type: ignore[arg-type]
    return encoder.user_batch(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("bundle", "histories", "key_file"):
        parser.add_argument(name, type=Path)
    for name in ("--port", "--now-us", "--users"):
        parser.add_argument(name, type=int)
    told = parser.parse_args()
    faiss.omp_set_num_threads(1)
    app = make_app(told.bundle, told.histories, told.key_file, told.users, told.now_us)
    uvicorn.run(app, port=told.port, log_level="warning", access_log=False)
