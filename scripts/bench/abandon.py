"""What three abandoned items do to a list: the share of their category among the first 20, and the other answers' NDCG@20.

    towers prepare experiment=synthetic_abandon run_dir=runs/abandon && towers train experiment=synthetic_abandon run_dir=runs/abandon
    python scripts/bench/abandon.py runs/abandon [--quick]

Of each test query (one held-out event of the synthetic world, seen items masked) the category that fills most of the first 20 is taken, the
answer's own categories apart. Its three best ranked items are abandoned now: appended to the history as `abandon` events, and masked
as seen. To tell the signal from the mask, the same three are also only masked, and appended as `view` events. NDCG is that of the
held-out answer, which stands in other categories, so it tells what the rest of the list loses.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from report import finish, say

from towers.batch import HISTORY_AGE, HISTORY_EVENT, HISTORY_ITEM
from towers.columns import CATEGORIES, EVENT_TYPE
from towers.runtime import TorchRuntime, load_model
from training.bootstrap import estimate
from training.interactions import Interactions
from training.queries import Queries, make_queries, recommendable
from training.rank_queries import encode_items

K, ABANDONED, AGE_NOW = 20, 3, 2
BLOCK = 512


@dataclass(frozen=True)
class Lists:
    """Of Q queries: the category looked at, items abandoned, and by form its share of the first 20 and the answer's NDCG@20."""

    share_QF: NDArray[np.float64]
    ndcg_QF: NDArray[np.float64]
    user_Q: NDArray[np.int64]


FORMS = ("as it is", "three masked", "three viewed", "three abandoned")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="of a trained experiment=synthetic_abandon")
    parser.add_argument("--quick", action="store_true", help="500 queries instead of 4,000")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = Interactions.open(args.run_dir / "prepared")
    runtime = TorchRuntime(load_model(args.run_dir / "model", data.preprocessor))
    queries = make_queries(data, "test", "event", "global_temporal", 500 if args.quick else 4000).unseen()
    say(f"{len(queries)} queries")
    lists = measure(runtime, queries)
    values = np.concatenate([lists.share_QF, lists.ndcg_QF, lists.ndcg_QF[:, 3:] - lists.ndcg_QF[:, :1]], axis=1)
    found = estimate(values, lists.user_Q, 1000, 0)
    share_F, ndcg_F = found.value_M[:4], found.value_M[4:8]
    rows = [("form", f"share of the category in the first {K}", "against as it is", f"ndcg@{K} elsewhere")]
    for f, form in enumerate(FORMS):
        rows.append((form, f"{share_F[f]:.4f}", f"{share_F[f] / share_F[0] - 1:+.1%}", f"{ndcg_F[f]:.4f}"))
    low, high = found.low_M[8], found.high_M[8]
    rows.append((f"ndcg@{K}: abandoned - as it is, paired", "", "", f"{found.value_M[8]:+.4f} [{low:+.4f}, {high:+.4f}]"))
    finish(
        "abandon",
        rows,
        {"share_change": share_F[3] / share_F[0] - 1, "share_change_masked": share_F[1] / share_F[0] - 1, "ndcg": ndcg_F[3] / ndcg_F[0]},
        {"share": share_F[0], "share_abandoned": share_F[3], "ndcg": ndcg_F[0], "ndcg_abandoned": ndcg_F[3], "queries": len(lists.user_Q)},
    )


def measure(runtime: TorchRuntime, queries: Queries) -> Lists:
    """Every form of every query that has three items to abandon."""
    data = queries.data
    item_ID = encode_items(runtime, data)
    member_IC = memberships(data)
    allowed_I = recommendable(data)
    types = data.preprocessor.vocabularies[EVENT_TYPE]
    shares, ndcgs, users = [], [], []
    for start in range(0, len(queries), BLOCK):
        block = slice(start, min(len(queries), start + BLOCK))
        inputs = queries.inputs(block, runtime.model.config.history.length)
        masked_BI = np.zeros((block.stop - block.start, data.n_items), bool)
        offsets, seen = queries.seen_items(block)
        masked_BI[np.repeat(np.arange(len(masked_BI)), np.diff(offsets)), seen] = True
        masked_BI |= ~allowed_I
        answer_B = queries.relevant[1][queries.relevant[0][block.start : block.stop]]
        top_BK = ranked(runtime, inputs, item_ID, masked_BI)
        category_B, three_BT, enough_B = choose(top_BK, answer_B, member_IC)
        after_BI = masked_BI.copy()
        np.put_along_axis(after_BI, three_BT, True, axis=1)
        lists = [top_BK, ranked(runtime, inputs, item_ID, after_BI)]
        for kind in ("view", "abandon"):
            longer = appended(inputs, data.item_features["item.item_id"][three_BT], int(types.rows([kind])[0]))
            lists.append(ranked(runtime, longer, item_ID, after_BI))
        shares.append(np.stack([member_IC[top, category_B[:, None]].mean(1) for top in lists], axis=1)[enough_B])
        ndcgs.append(np.stack([gain(top, answer_B) for top in lists], axis=1)[enough_B])
        users.append(queries.user_Q[block][enough_B])
    return Lists(np.concatenate(shares), np.concatenate(ndcgs), np.concatenate(users))


def memberships(data: Interactions) -> NDArray[np.bool_]:
    """bool [I, C]: which categories an item is of."""
    lists = data.catalog[CATEGORIES].to_pylist()
    names = sorted({name for names in lists for name in names})
    return np.array([[name in own for name in names] for own in lists])


def choose(
    top_BK: NDArray[np.int64], answer_B: NDArray[np.int64], member_IC: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """The category that fills most of each list, the answer's apart; its best ranked items; whether there are three."""
    counts_BC = member_IC[top_BK].sum(1) * ~member_IC[answer_B]
    category_B = counts_BC.argmax(1)
    inside_BK = member_IC[top_BK, category_B[:, None]]
    first_BT = np.argsort(~inside_BK, axis=1, kind="stable")[:, :ABANDONED]
    return category_B, np.take_along_axis(top_BK, first_BT, 1), inside_BK.sum(1) >= ABANDONED


def appended(inputs: Mapping[str, NDArray[np.generic]], ids_BT: NDArray[np.int32], event_row: int) -> dict[str, NDArray[np.generic]]:
    """The inputs with events of now behind the newest."""
    new = {HISTORY_ITEM: ids_BT, HISTORY_EVENT: np.full_like(ids_BT, event_row), HISTORY_AGE: np.full_like(ids_BT, AGE_NOW)}
    return {**inputs, **{name: np.concatenate([inputs[name][:, ABANDONED:], array], axis=1) for name, array in new.items()}}


def ranked(
    runtime: TorchRuntime, inputs: Mapping[str, NDArray[np.generic]], item_ID: NDArray[np.float32], masked_BI: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The first 20 of each query, [B, K]; equal scores by row."""
    scores_BI = runtime.user(inputs).vectors_BHD[:, 0] @ item_ID.T
    return np.argsort(-np.where(masked_BI, -np.inf, scores_BI), axis=1, kind="stable")[:, :K]


def gain(top_BK: NDArray[np.int64], answer_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """NDCG@20 of one answer."""
    return ((top_BK == answer_B[:, None]) / np.log2(np.arange(2, K + 2))).sum(1)


if __name__ == "__main__":
    main()
