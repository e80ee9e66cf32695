"""The two towers: exact decomposition, all positions against prefixes, gathering in NumPy against torch, ONNX, learning."""

import dataclasses
import io

import numpy as np
import onnxruntime
import pytest
import torch

from towers.errors import ConfigError
from towers.lookups import gather, plan_towers
from towers.model import ExportCore, TwoTower
from towers.model_config import HeadConfig, HistoryConfig, InputSpec, ModelConfig
from training.loss import full_softmax

ITEMS, DIM, LENGTH, EVENTS = 30, 8, 6, 5
INPUTS = (
    InputSpec("item.item_id", "id", ITEMS, 0, "item_id"),
    InputSpec("item.categories", "multi_categorical", 9, 3, "categories"),
    InputSpec("item.title", "text", 21, 4, "item.title"),
    InputSpec("item.price", "numeric", 0, 2, "item.price"),
    InputSpec("user.user_id", "id", 12, 0, "user_id"),
    InputSpec("user.likes", "preferences", 9, 3, "categories"),
    InputSpec("user.liked_items", "preferences", ITEMS, 2, "item_id"),
    InputSpec("context.device", "categorical", 5, 0, "device"),
    InputSpec("context.at", "time", 34, 2, "context.at"),
    InputSpec("context.speed", "numeric", 0, 2, "context.speed"),
)


def config(name="mean", head="linear", **settings):
    history = HistoryConfig(name=name, length=LENGTH, dropout=0.0, share_item_table=settings.pop("share", False))
    return ModelConfig(
        dim=DIM, history=history, user_head=HeadConfig(head, [12]), item_head=HeadConfig(head, [12]),
        **{"id_dropout": 0.0, "context_dropout": 0.0, **settings},
    )  # fmt: skip


def build(*args, **settings):
    torch.manual_seed(0)
    model = TwoTower(config(*args, **settings), INPUTS, EVENTS)
    for parameter in model.history.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def users(lengths=(0, 1, 4, 6), positions=False, seed=1):
    rng = np.random.default_rng(seed)
    rows = len(lengths)
    mask = np.arange(LENGTH) >= LENGTH - np.array(lengths)[:, None]
    at = (rows, LENGTH) if positions else (rows,)

    def ints(low, high, shape):
        return rng.integers(low, high, shape).astype(np.int32)

    return {
        "history.item": ints(3, ITEMS, mask.shape) * mask,
        "history.event": ints(3, EVENTS, mask.shape) * mask,
        "history.age": ints(1, 32, mask.shape) * mask,
        "history.gap": ints(1, 32, mask.shape) * mask,
        "user.user_id": ints(1, 12, rows),
        "user.likes": ints(0, 9, (rows, 3)),
        "user.liked_items": ints(0, ITEMS, (rows, 2)),
        "context.device": ints(1, 5, at),
        "context.at": ints(2, 34, (*at, 2)),
        "context.speed": rng.normal(size=(*at, 2)).astype(np.float32),
    }


def items(rows=7, seed=2):
    rng = np.random.default_rng(seed)
    return {
        "item.item_id": rng.integers(1, ITEMS, rows).astype(np.int32),
        "item.categories": rng.integers(0, 9, (rows, 3)).astype(np.int32),
        "item.title": rng.integers(0, 21, (rows, 4)).astype(np.int32),
        "item.price": rng.normal(size=(rows, 2)).astype(np.float32),
    }


def tensors(batch):
    return {k: torch.from_numpy(v.copy()) for k, v in batch.items()}


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("name", ["mean", "transformer"])
def test_shapes_and_lengths(name, head, similarity):
    model = build(name, head, similarity=similarity)
    vectors, weights, _ = model.user(tensors(users()))
    item = model.item(tensors(items()))
    assert vectors.shape == (4, 1, DIM) and weights.shape == (4, LENGTH) and item.shape == (7, DIM)
    for v in (vectors, item):
        assert torch.isfinite(v).all()
        assert torch.allclose(v.norm(dim=-1), torch.ones(v.shape[:-1]), atol=1e-5) == (similarity == "cosine")


@pytest.mark.parametrize("share", [False, True])
def test_a_linear_mean_score_is_a_sum_over_events_and_features(share):
    model = build(share=share, similarity="dot", use_user_id=True)
    batch, item = tensors(users()), model.item(tensors(items()))
    vectors, weights, _ = model.user(batch)
    gathered = model.lookup_user(batch)
    parts = [model.user_features.part(spec, gathered, model.small_tables) @ item.T for spec in model.user_features.specs]
    table = model.tables["item_id" if share else "history_item"].weight
    for b, count in enumerate((0, 1, 4, 6)):
        total = sum(part[b] for part in parts)
        for j in range(LENGTH):
            total = total + weights[b, j] * (table[batch["history.item"][b, j].long()] @ item.T)
        if not count:
            total = total + model.history.no_history_D @ item.T
        assert torch.allclose(vectors[b, 0] @ item.T, total, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_all_positions_equal_each_prefix_alone(head):
    model = build("transformer", head)
    batch = users(positions=True)
    everywhere = model.user_sequence(tensors(batch))
    assert everywhere.shape == (4, LENGTH, DIM)
    for t in range(LENGTH):
        prefix = {k: v[:, t] if k.startswith("context.") else v for k, v in batch.items()}
        for k in ("history.item", "history.event", "history.age", "history.gap"):
            prefix[k] = np.pad(batch[k][:, : t + 1], ((0, 0), (LENGTH - 1 - t, 0)))
        assert torch.allclose(everywhere[:, t], model.user(tensors(prefix)).vectors_BHD[:, 0], atol=1e-5), t


def test_sequence_without_context_features():
    torch.manual_seed(0)
    model = TwoTower(config("transformer"), INPUTS[:1], EVENTS).eval()
    batch = tensors({k: v for k, v in users().items() if k.startswith("history.")})
    assert torch.allclose(model.user_sequence(batch)[:, -1], model.user(batch).vectors_BHD[:, 0], atol=1e-5)


def test_a_mean_tower_has_no_positions():
    with pytest.raises(ConfigError, match="only a causal encoder"):
        build().user_sequence(tensors(users(positions=True)))


@pytest.mark.parametrize("use_user_id", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_tables_are_exactly_the_large_ones(share, use_user_id):
    model = build(share=share, use_user_id=use_user_id)
    expected = {"item_id": ITEMS} | ({} if share else {"history_item": ITEMS}) | ({"user_id": 12} if use_user_id else {})
    assert {k: t.num_embeddings for k, t in model.tables.items()} == expected
    assert set(model.small_tables) == {"categories", "item:title", "device", "context:at"}
    changed = users()
    changed["user.user_id"] = (changed["user.user_id"] + 1) % 12
    same = torch.equal(model.user(tensors(users())).vectors_BHD, model.user(tensors(changed)).vectors_BHD)
    assert same != use_user_id


@pytest.mark.parametrize("name", ["mean", "transformer"])
def test_numpy_gathers_what_torch_gathers(name):
    model = build(name)
    tables = {k: t.weight.detach().numpy() for k, t in model.tables.items()}
    for batch, wanted, got in (
        (users(), model.plan.user, model.lookup_user(tensors(users()))),
        (items(), model.plan.item, model.lookup_item(tensors(items()))),
    ):
        in_numpy = gather(batch, wanted, tables)
        assert list(in_numpy) == list(got) == [entry.name for entry in wanted]
        for entry in wanted:
            assert np.array_equal(in_numpy[entry.name], got[entry.name].detach().numpy())
            assert in_numpy[entry.name].dtype == entry.dtype and in_numpy[entry.name].shape[1:] == entry.shape


# the exporter warns about its own internals and about two inputs of one batch axis
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize(("name", "head"), [("mean", "linear"), ("transformer", "mlp")])
def test_cores_export_to_onnx_with_a_free_batch(name, head, side):
    model = build(name, head)
    core = ExportCore(model, side).eval()
    tables = {k: t.weight.detach().numpy() for k, t in model.tables.items()}

    def feed(seed, lengths, rows):
        return gather(users(lengths, seed=seed) if side == "user" else items(rows, seed), core.inputs, tables)

    example = tuple(torch.from_numpy(np.array(v)) for v in feed(0, (0, 3), 2).values())
    batch = torch.export.Dim("batch", min=1, max=100_000)
    program = torch.onnx.export(
        core, example, dynamo=True, verbose=False, input_names=[e.name for e in core.inputs],
        output_names=["vectors", "weights"][: 2 if side == "user" else 1], dynamic_shapes=(tuple({0: batch} for _ in example),),
    )  # fmt: skip
    buffer = io.BytesIO()
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    for lengths in ((0,), (6,), (0, 1, 2, 3, 4, 5, 6) * 3):
        arrays = feed(9, lengths, len(lengths))
        expected = core(*(torch.from_numpy(np.array(v)) for v in arrays.values()))
        for got, wanted in zip(session.run(None, arrays), expected, strict=True):
            assert np.allclose(got, wanted.detach().numpy(), atol=1e-5)


def test_ids_give_way_to_the_oov_row_in_training_only():
    model = build(id_dropout=0.5)
    batch = tensors(items(400))
    oov = model.tables["item_id"].weight[1]
    assert not (model.lookup_item(batch)["item.item_id.rows"] == oov).all(1)[batch["item.item_id"] != 1].any()
    model.train()
    share = (model.lookup_item(batch)["item.item_id.rows"] == oov).all(1).float().mean().item()
    assert 0.4 < share < 0.62


def test_history_tokens_hide_behind_the_oov_row_and_padding_stays():
    model = build(share=True)
    model.config.history.token_dropout = 0.5
    batch = tensors(users((0, 6) * 100))
    gathered = model.train().lookup_user(batch)
    rows, mask = gathered["history.item.rows"], gathered["history.mask"]
    assert torch.equal(mask, (batch["history.item"] > 0).float())
    hidden = (rows == model.tables["item_id"].weight[1]).all(-1)
    assert 0.4 < hidden[mask > 0].float().mean().item() < 0.6
    assert not hidden[mask == 0].any()


@pytest.mark.parametrize("positions", [False, True])
def test_context_is_hidden_whole_row_by_row(positions):
    model = build("transformer", context_dropout=0.5).train()
    batch = tensors(users((3,) * 300, positions))
    batch["context.device"].fill_(3)
    gathered = model.lookup_user(batch)
    device = gathered["context.device"].reshape(300, -1)
    hidden = (device == 2).all(1)
    assert torch.equal(hidden, ~(device == 3).all(1)), "never a part of a row"
    assert 0.4 < hidden.float().mean().item() < 0.6
    assert (gathered["context.at"].reshape(300, -1)[hidden] == 2).all()
    assert (gathered["context.speed"].reshape(300, -1, 2)[hidden] == torch.tensor([0.0, 1.0])).all()
    assert torch.equal(gathered["user.likes"], batch["user.likes"])
    assert torch.equal(gathered["context.speed"][~hidden], batch["context.speed"][~hidden])


def test_temperature_fixed_and_learned():
    assert build(temperature=0.2).temperature().item() == pytest.approx(0.2)
    model = build(temperature=0.2, learn_temperature=True)
    assert model.temperature().item() == pytest.approx(0.2, rel=1e-5)
    for logit, bound in ((-50.0, 0.01), (50.0, 1.0)):
        model.temperature_logit.data.fill_(logit)
        assert model.temperature().item() == pytest.approx(bound, rel=1e-4)
    with pytest.raises(ConfigError, match=r"model\.temperature: got 1\.5, expected between 0\.01 and 1\.0"):
        build(temperature=1.5, learn_temperature=True)


def test_the_same_seed_gives_the_same_weights():
    one, two = build("transformer", "mlp"), build("transformer", "mlp")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("settings", "inputs", "message"),
    [
        ({"user_head": HeadConfig("deep")}, INPUTS, r"model\.user_head\.name: got 'deep', expected one of linear, mlp"),
        ({"item_head": HeadConfig("mlp", [4, 0])}, INPUTS, r"model\.item_head\.hidden: got \[4, 0\]"),
        ({"use_user_id": True}, INPUTS[:4], r"model\.use_user_id: there is no user id"),
        ({}, INPUTS[1:], r"data\.features: no input item\.item_id"),
        ({"dim": 0}, INPUTS, r"model\.dim"),
    ],
)
def test_shapes_that_cannot_be_built_name_the_knob(settings, inputs, message):
    with pytest.raises(ConfigError, match=message):
        TwoTower(dataclasses.replace(config(), **settings), inputs, EVENTS)


def test_one_event_type_and_a_transformer_leave_out_what_tells_nothing():
    assert not plan_towers(config(), INPUTS, 4).reads_event
    assert plan_towers(config(), INPUTS, 5).reads_event
    names = {name: {entry.name for entry in plan_towers(config(name), INPUTS, 5).user} for name in ("mean", "transformer")}
    assert "history.age" in names["mean"] - names["transformer"], "it reads recency off the order of its columns"
    assert "history.gap" in names["transformer"] - names["mean"]
    quiet = config()
    quiet.history.use_event_type = quiet.history.use_age = False
    assert [e.name for e in plan_towers(quiet, INPUTS[:1], 5).user] == ["history.item.rows", "history.mask"]


@pytest.mark.parametrize("name", ["mean", "transformer"])
def test_it_learns_which_item_follows(name):
    """Item i is followed by item i + 1: a few dozen steps must rank it first."""
    torch.manual_seed(0)
    model = TwoTower(config(name), INPUTS[:1], 4)
    last = torch.arange(3, ITEMS - 1, dtype=torch.int32)
    zeros = torch.zeros(len(last), LENGTH - 1, dtype=torch.int32)
    history = torch.cat([zeros, last.unsqueeze(1)], 1)
    batch = {
        "history.item": history,
        "history.event": history.clamp(max=3),
        "history.age": history.clamp(max=3),
        "history.gap": history.clamp(max=3),
    }
    catalogue = {"item.item_id": torch.arange(3, ITEMS, dtype=torch.int32)}
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(80):
        optimiser.zero_grad()
        vectors = model.user(batch).vectors_BHD[:, 0]
        full_softmax(vectors, model.item(catalogue), last.long() - 2, torch.ones(len(last)), model.temperature()).backward()
        optimiser.step()
    model.eval()
    best = (model.user(batch).vectors_BHD[:, 0] @ model.item(catalogue).T).argmax(1)
    assert (best == last.long() - 2).float().mean().item() > 0.95
