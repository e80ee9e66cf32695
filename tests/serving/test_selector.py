"""The identity policy: the k best candidates as they came, each with certainty."""

import numpy as np
import pytest

from serving.selector import Candidates, Policy, select


@pytest.mark.parametrize(("k", "found"), [(1, 1), (3, 3), (9, 5)])
def test_the_identity_keeps_the_k_best_in_order(k: int, found: int) -> None:
    candidates = Candidates(np.array([4, 2, 9, 0, 7]), np.array([5, 4, 3, 2, 1], np.float32))
    chosen = select(candidates, Policy(k))
    assert chosen.rows_k.tolist() == [4, 2, 9, 0, 7][:found]
    assert chosen.scores_k.tolist() == [5, 4, 3, 2, 1][:found]
    assert chosen.propensities_k.tolist() == [1.0] * found


def test_no_candidates_give_an_empty_list() -> None:
    chosen = select(Candidates(np.empty(0, np.int64), np.empty(0, np.float32)), Policy(5))
    assert len(chosen.rows_k) == len(chosen.scores_k) == len(chosen.propensities_k) == 0
