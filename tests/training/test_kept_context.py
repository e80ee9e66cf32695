"""Context that events of a history keep, from prepared data through files and live events to the towers of a server."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from serving.cutting import _shorter
from serving.decoding import decode
from serving.events import LiveHistory
from serving.messages import RecommendRequest
from serving.onnx_runtime import OnnxRuntime
from serving.profiles import joined
from serving.signals import read_signals
from serving.user_state import StoredUser, UserHistories
from towers.bundle import Bundle, publish
from towers.columns import MISSING_ROW, NO_TIME, REMOVAL
from towers.encoder import Encoder, UserRow
from towers.errors import ConfigError, RequestError
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.runtime import TorchRuntime, save_model
from towers.schema import Feature, make_schema
from training.batches import user_inputs
from training.histories import write_histories
from training.onnx_export import export_towers
from training.views import View

LENGTH, HOUR = 8, "history.context.hour"


@pytest.fixture(scope="module")
def data(make_toy):
    """Some events have no hour."""
    toy = make_toy(keeps=True, events=(4, 14))
    hours = np.array(toy.context["context.hour"])
    hours[::5] = MISSING_ROW
    keys = np.random.default_rng(0).integers(0, 256, (toy.n_users, 16), np.uint8)  # the toy's repeat
    return replace(toy, context={"context.hour": hours}, user_keys=keys)


@pytest.fixture(scope="module")
def stored(data, tmp_path_factory):
    """Histories as export writes and a server reads them."""
    path = tmp_path_factory.mktemp("kept") / "histories.parquet"
    write_histories(path, data, path.parent / "none.parquet", 1000, np.ones(data.n_users, bool))
    table = pq.read_table(path)
    pq.write_table(table.take(pa.array(np.argsort([key.tobytes() for key in data.user_keys]))), path)
    found = UserHistories.open(path)
    vocabularies = data.preprocessor.vocabularies
    found.teach(vocabularies["item_id"], vocabularies["event_type"], {"hour": vocabularies["hour"]})
    return found


@pytest.fixture(scope="module", params=[False, True], ids=["rows", "second rows"])
def towers(request, data, tmp_path_factory):
    """Towers whose weights say something of repeats and hours, by torch and by ONNX."""
    torch.manual_seed(0)
    history = HistoryConfig(length=LENGTH, share_item_table=True, use_repeats=True, associations=request.param)
    config = ModelConfig(dim=8, history=history)
    model = TwoTower(config, data.preprocessor.inputs, data.preprocessor.event_rows).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("log_weight"):
            parameter.data = 0.3 * torch.randn_like(parameter)
    parts = tmp_path_factory.mktemp("towers")
    data.preprocessor.save(parts)
    save_model(model, parts)
    (parts / "tables").mkdir()
    for name, table in model.table_arrays().items():
        np.save(parts / "tables" / f"{name}.npy", table)
    export_towers(model, whole(data, np.arange(20)), {name: array[:20] for name, array in data.item_features.items()}, parts / "onnx")
    files = {path.relative_to(parts).as_posix(): path for path in parts.rglob("*") if path.is_file()}
    bundle = Bundle.open(publish(parts / "bundles", "v1", files, {}))
    assert bundle.preprocessor().schema.in_history == data.schema.in_history
    return TorchRuntime(model), OnnxRuntime(bundle, bundle.preprocessor())


def whole(data, users, hour="noon"):
    context = data.preprocessor.encode("context", {"hour": [hour] * len(users)}, len(users))
    return user_inputs(data, users, data.offsets[users + 1], np.full(len(users), data.newest()), context, LENGTH)


def served(data, known, request=None):
    """The user tower's inputs as a request gets them."""
    request = request or RecommendRequest(user_id="x", context={"hour": "noon"})
    return Encoder(data.preprocessor, None, LENGTH).user_batch(
        [read_signals(request, known, True, data.preprocessor, LENGTH, data.newest()).row]
    )


def test_a_stored_history_gives_what_training_reads(data, stored):
    batch = whole(data, np.arange(data.n_users))
    assert len(np.unique(batch[HOUR])) == 4, "three hours, and none"
    for user in range(data.n_users):
        for name, array in served(data, stored.get(data.user_keys[user].tobytes())).items():
            np.testing.assert_array_equal(array[0], batch[name][user], err_msg=name)


@pytest.mark.parametrize("way", ["live", "request"])
def test_newer_events_bring_theirs(data, stored, way):
    """A part of each history is stored, the rest comes as live events or in the request."""
    batch = whole(data, np.arange(20))
    for user in range(20):
        known = stored.get(data.user_keys[user].tobytes())
        hours = list(known.contexts["hour"])
        before = known._of(range(3), known.features)
        rest = list(zip(known.items, known.events, known.timestamps, hours, strict=True))[3:]
        request = None
        if way == "live":
            facts = [json.dumps({"context": {"hour": hour, "lost": [1]}}) if hour else None for *_, hour in rest]
            items, events, times, _ = zip(*rest, strict=True)
            live = LiveHistory(items, events, times, range(1, len(rest) + 1), facts)
            known = joined(before, live, "time", 1000, ["hour"])
        else:
            history = [
                {"item_id": item, "event_type": kind, "timestamp": time / 1e6, "context": {"hour": hour} if hour else {}}
                for item, kind, time, hour in rest
            ]
            body = json.dumps({"user_id": "x", "context": {"hour": "noon"}, "history": history})
            known, request = before, decode(body.encode(), RecommendRequest)
        np.testing.assert_array_equal(served(data, known, request)[HOUR][0], batch[HOUR][user])


def test_what_is_removed_or_cut_takes_its_context_along():
    known = StoredUser(list("abcb"), ["play"] * 4, [1, 2, 3, 4], {}, {"hour": ["noon", None, "night", "noon"]})
    removal = LiveHistory(["b", "d"], [REMOVAL, "play"], [5, 6], [1, 2], [None, '{"context":{"hour":"night"}}'])
    user = joined(known, removal, "time", 9, ["hour"])
    assert (user.items, user.contexts) == (["a", "c", "d"], {"hour": ["noon", "night", "night"]})
    assert joined(known, removal, "time", 1, ["hour"]).contexts == {"hour": ["night"]}
    assert known.before(3).contexts == {"hour": ["noon", None]}
    assert known.after(2).contexts == {"hour": ["night", "noon"]}
    assert removal.after(5).facts == ('{"context":{"hour":"night"}}',)


def test_a_file_that_forgets_events_forgets_their_context():
    lists = {"item_ids": [["a", "b"], ["c"]], "event_types": [["play"] * 2, ["play"]], "timestamps": [[1, 5], [9]]}
    beside = {"context.hour": [["noon", None], ["night"]], "item_rows": [[7, 8], [9]]}
    left, _ = _shorter(pa.table({"user_key": [b"a" * 16, b"b" * 16], **lists, **beside}), np.array([1, NO_TIME]), undated=False)
    assert left["item_ids"].to_pylist() == [["b"], ["c"]] and left["context.hour"].to_pylist() == [[None], ["night"]]
    assert left["item_rows"].to_pylist() == [[8], [9]]


def test_what_does_not_fit_is_refused(data):
    for context, field in (({"weather": "wet"}, "history[0].context.weather"), ({"hour": ["noon"]}, "history[0].context.hour")):
        request = decode(json.dumps({"history": [{"item_id": "a", "context": context}]}).encode(), RecommendRequest)
        with pytest.raises(RequestError) as caught:
            served(data, None, request)
        assert caught.value.field == field
    with pytest.raises(ConfigError, match=r"data\.features\.size\.in_history"):
        make_schema([Feature("size", "numeric", "context", in_history=True)], "time", {})
    with pytest.raises(ConfigError, match=r"model\.history\.name=mean"):
        TwoTower(ModelConfig(history=HistoryConfig(name="transformer")), data.preprocessor.inputs, data.preprocessor.event_rows)


def test_onnx_equals_torch_and_parts_add_up(data, towers):
    batch = whole(data, np.arange(data.n_users))
    ours, theirs = (runtime.user(batch, parts=True) for runtime in towers)
    np.testing.assert_allclose(theirs.vectors_BHD, ours.vectors_BHD, atol=1e-5)
    np.testing.assert_allclose(theirs.history_weights_BL, ours.history_weights_BL, atol=1e-5)
    for encoding in (ours, theirs):
        np.testing.assert_allclose(encoding.parts.parts_BSD.sum(1), encoding.vectors_BHD[:, 0], atol=1e-5)
    night = towers[0].user(whole(data, np.arange(data.n_users), "night"))
    assert np.abs(night.history_weights_BL - ours.history_weights_BL).max() > 0.1, "who asks at night is told of nights"


def test_shown_less_repeats_are_counted_of_what_is_shown(data, towers):
    batch = whole(data, np.arange(20))
    shown = View("shown=3", shown=3).apply(batch, data.preprocessor)
    short = {name: array[:, -3:] if name.startswith("history.") else array for name, array in batch.items()}
    np.testing.assert_allclose(towers[0].user(shown).vectors_BHD, towers[0].user(short).vectors_BHD, atol=1e-6)


def test_hidden_context_matches_nothing(data, towers):
    """As where a request gives none: events weigh by the rest alone."""
    batch = whole(data, np.arange(20))
    hidden = View("without=context", hidden=("context.hour",)).apply(batch, data.preprocessor)
    unknown = {**hidden, HOUR: np.zeros_like(batch[HOUR])}
    np.testing.assert_array_equal(towers[0].user(hidden).history_weights_BL, towers[0].user(unknown).history_weights_BL)


def test_a_row_of_plain_values_needs_no_context(data):
    row = UserRow(["item-001", "item-002"], [], [], context={"hour": "noon"})
    assert not Encoder(data.preprocessor, None, LENGTH).user_batch([row])[HOUR].any()
