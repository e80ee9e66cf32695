"""Looking inside a model: gauges after each epoch; at the end its vectors, lists for users who do not exist, and two pictures.

Legend: I items, N sampled items, P pseudo-users, H heads, D dimensions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from towers.batch import take
from towers.columns import CATEGORIES, ITEM_ID, NO_TIME, TITLE, TRAIN
from towers.encoder import Encoder, UserRow
from towers.errors import DataError
from towers.model import TwoTower
from towers.runtime import TorchRuntime
from towers.topk import exact_topk
from training import metrics
from training.config import TrainingConfig
from training.drawing import Picture, bars, scatter_log
from training.gauges import gauges_of
from training.interactions import Interactions
from training.permission import Permission
from training.pseudo_users import pseudo_histories
from training.queries import make_queries, recommendable
from training.rank_queries import encode_items, encode_users
from training.slices import deciles

GAUGE_ITEMS = 600
"""All pairs of them are compared: 0.03 CPU seconds an epoch, where 2,000 took 0.14."""
PROJECTOR_NUMBERS = 256_000
"""Numbers in the projector's table, at most: some two megabytes of text."""
LIST_USERS, LIST_ITEMS, LIST_EVENTS = 8, 6, 8
CHART_QUERIES, CHART_ITEMS = 2000, 3000
HEADER = ("kind", "title", "category", "train_count")

Vectors = NDArray[np.float32]
Histories = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Look:
    """What is shown of a trained model.

    Attributes:
        vectors, labels: rows of the projector and of its table (HEADER), item vectors first, then users.
        lists: recommendations in Markdown.
        pictures: by tag.
    """

    vectors: Vectors
    labels: Sequence[Sequence[str]]
    lists: str
    pictures: Mapping[str, Picture]


class Inspector:
    """Looks at one model on one dataset; all that is drawn comes from the seed, so that epochs can be compared.

    Args:
        model: looked at as it stands, whenever asked.
        data: of the run.
        config: of the run.
    """

    def __init__(self, model: TwoTower, data: Interactions, config: TrainingConfig) -> None:
        self._model, self._data, self._config = model, data, config
        self._counts_I = data.train_counts()
        trained = np.flatnonzero(self._counts_I)
        rng = np.random.default_rng(config.seed)
        self._gauged_N = np.sort(rng.permutation(trained)[:GAUGE_ITEMS])
        self._runtime = TorchRuntime(model, next(model.parameters()).device)

    def gauges(self, epoch: int) -> dict[str, float]:
        """Gauges of a sample of trained items, by scalar name, where they are due after that epoch."""
        if epoch % self._config.inspect.every or len(self._gauged_N) < 2:
            return {}
        vectors_ND = self._runtime.item(take(self._data.item_features, self._gauged_N))
        return {f"items/{name}": value for name, value in gauges_of(vectors_ND).items()}

    def look(self) -> Look:
        """Everything else, for the finished model."""
        items_ID = encode_items(self._runtime, self._data)
        histories = pseudo_histories(self._data, self._config.inspect.users, LIST_EVENTS, self._config.seed)
        users_PHD = self._users(histories)
        shown = [("invented user", histories, users_PHD)]
        if self._config.inspect.real_users:
            real = self._real_histories()
            shown.append(("real user", real, self._users(real)))
        vectors, labels = self._projector(items_ID, shown)
        pictures = {}
        if len(histories):
            pictures["score_by_popularity"] = self._scores(items_ID, users_PHD)
        self._data.release()
        pictures |= self._recall(items_ID)
        return Look(vectors, labels, self._lists(items_ID, users_PHD, histories), pictures)

    def _users(self, histories: Histories) -> Vectors:
        """Vectors of users with these histories and nothing else known of them: float32 [P, H, D]."""
        if not histories:
            return np.empty((0, 1, self._model.config.width), np.float32)
        encoder = Encoder(self._data.preprocessor, self._runtime, self._model.config.history.length)
        ids = self._data.catalog[ITEM_ID]
        newest = self._data.newest() if self._data.schema.order == "time" else NO_TIME
        rows = []
        for history in histories:
            times = [] if newest == NO_TIME else [newest - 60_000_000 * back for back in range(len(history), 0, -1)]
            rows.append(UserRow([ids[item].as_py() for item in history], history_timestamps=times, now=newest))
        return encoder.users(rows).vectors_BHD

    def _real_histories(self) -> list[list[int]]:
        """The newest training events of some users, whom the settings opted in and who allow to be looked at."""
        data, rng = self._data, np.random.default_rng(self._config.seed)
        permission = Permission.open(self._config)
        allowed = np.flatnonzero(permission.measurable(data.user_keys))
        found = []
        for user in np.sort(rng.permutation(allowed)[: self._config.inspect.real_users]):
            rows = np.arange(data.offsets[user], data.offsets[user + 1])
            rows = rows[(data.split[rows] == TRAIN) & (data.weight[rows] > 0)][-LIST_EVENTS:]
            found += [data.item[rows].tolist()] if len(rows) else []
        return found

    def _projector(self, items_ID: Vectors, shown: Sequence[tuple[str, Histories, Vectors]]) -> tuple[Vectors, list[list[str]]]:
        """Rows for users first of all (a quarter of the room at most for each kind), the rest for items: the half of it for those with most
        events, since a picture of the tail alone has no title that one knows, the other half drawn from the others."""
        dim = items_ID.shape[1]
        vectors, labels = [], []
        for kind, histories, users_PHD in shown:
            most = max(1, PROJECTOR_NUMBERS // (4 * users_PHD.shape[1] * dim))
            for history, vectors_HD in zip(histories[:most], users_PHD[:most], strict=True):
                told = f"{kind}: " + " > ".join(self._title(item) for item in history[-3:])
                vectors += list(vectors_HD)
                labels += [[kind, told, self._category(history[-1]), "0"]] * len(vectors_HD)
        room = max(1, PROJECTOR_NUMBERS // dim - len(vectors))
        order = np.argsort(-self._counts_I, kind="stable")
        head, tail = order[: room // 2], order[room // 2 :]
        kept = np.sort(np.concatenate([head, np.random.default_rng(self._config.seed).permutation(tail)[: room - len(head)]]))
        items = [["item", self._title(i), self._category(i), str(self._counts_I[i])] for i in kept.tolist()]
        return np.concatenate([items_ID[kept], *([np.stack(vectors)] if vectors else [])]), [*items, *labels]

    def _lists(self, items_ID: Vectors, users_PHD: Vectors, histories: Histories) -> str:
        shown = histories[:LIST_USERS]
        if not shown:
            return "There are no items that two users chose, so there is nobody to invent."
        offsets = np.concatenate([[0], np.cumsum([len(history) for history in shown])])
        seen = (offsets, np.concatenate(shown).astype(np.int64))
        top = exact_topk(users_PHD[: len(shown)], items_ID, min(LIST_ITEMS, len(items_ID)), seen, recommendable(self._data))
        lines = ["Users who do not exist: walks over items that were chosen together.", ""]
        lines += ["| history, newest last | recommended |", "|---|---|"]
        for history, rows in zip(shown, top.rows_Qk, strict=True):
            lines.append(f"| {self._named(history)} | {self._named([int(row) for row in rows if row >= 0])} |")
        return "\n".join(lines)

    def _scores(self, items_ID: Vectors, users_PHD: Vectors) -> Picture:
        kept = np.random.default_rng(self._config.seed).permutation(len(items_ID))[:CHART_ITEMS]
        mean_N = np.einsum("phd,nd->pnh", users_PHD, items_ID[kept]).max(axis=2).mean(axis=0)
        return scatter_log(
            f"Mean score of {len(kept):,} items for {len(users_PHD)} invented users", "training events of the item", "score",
            self._counts_I[kept], mean_N,
        )  # fmt: skip

    def _recall(self, items_ID: Vectors) -> dict[str, Picture]:
        """Recall by popularity decile on a sample of validation queries; none where nothing validates."""
        settings, length = self._config.evaluate, self._model.config.history.length
        try:
            queries = make_queries(self._data, "valid", settings.unit, self._config.split.name, CHART_QUERIES, self._config.seed)
        except DataError:
            return {}
        queries = queries if settings.seen == "unmasked" else queries.unseen()
        if not len(queries):
            return {}
        k = sorted(settings.ks)[len(settings.ks) // 2]
        users_QHD = encode_users(self._runtime, queries, length)
        seen = None if settings.seen == "unmasked" else queries.seen_items(slice(0, len(queries)))
        top = exact_topk(users_QHD, items_ID, min(k, len(items_ID)), seen, recommendable(self._data))
        found = np.zeros(len(queries.relevant[1]), bool)
        place = metrics.match(top.rows_Qk, queries.relevant, self._data.n_items)
        found[place[place >= 0]] = True
        decile_R = deciles(self._counts_I)[queries.relevant[1]]
        parts = [d for d in range(11) if (decile_R == d).any()]
        return {
            "recall_by_popularity": bars(
                f"Recall@{k} by popularity of the held-out item, {len(queries):,} validation queries",
                "popularity decile in training (10 = best known); above each bar, its held-out items", f"recall@{k}",
                ["cold" if d == 0 else str(d) for d in parts], [float(found[decile_R == d].mean()) for d in parts],
                [f"{int((decile_R == d).sum()):,}" for d in parts],
            )
        }  # fmt: skip

    def _named(self, items: Sequence[int]) -> str:
        return "; ".join(self._title(item).replace("|", "/") for item in items)

    def _title(self, item: int) -> str:
        catalog = self._data.catalog
        title = catalog[TITLE][item].as_py() if TITLE in catalog.column_names else None
        return " ".join(str(title or catalog[ITEM_ID][item].as_py()).split())

    def _category(self, item: int) -> str:
        catalog = self._data.catalog
        names = catalog[CATEGORIES][item].as_py() if CATEGORIES in catalog.column_names else None
        return " ".join(str(names[0]).split()) if names else ""
