"""The fused softmax: bf16 near fp32, blocks equal the whole, grouped rows equal single targets, bounded equal shifted."""

import doctest

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from training import fused, score_blocks
from training.fused import Targets, fused_softmax


def test_doctests() -> None:
    result = doctest.testmod(fused)
    assert (result.failed, result.attempted > 0) == (0, True)


def unit(rows: int, dim: int, seed: int) -> Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))).requires_grad_()


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, of)]


def far(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def sampled(user: Tensor, item: Tensor, half: bool, temperature: float = 0.07) -> Tensor:
    g = torch.Generator().manual_seed(7)
    column = torch.randint(len(item), (len(user),), generator=g)
    log_k = torch.randn(len(item), generator=g) * 2
    targets = Targets(None, column, torch.full((len(user),), 1 / len(user)), log_k[column])
    return fused_softmax(user, item, temperature, targets, log_k, half)


def test_bf16_products_stay_near_fp32() -> None:
    user, item = unit(300, 64, 0), unit(500, 64, 1)
    exact, rough = (gradients(sampled(user, item, half), user, item) for half in (False, True))
    assert float(abs(rough[0] - exact[0])) < 5e-3
    assert far(rough[1], exact[1]) < 6e-3 and far(rough[2], exact[2]) < 6e-3


def exact(user: Tensor, item: Tensor, temperature: float, column: Tensor, log_k: Tensor) -> list[Tensor]:
    """Loss and gradients by autograd in fp64; the factor of a target is not part of its own score."""
    user, item = (v.detach().double().requires_grad_() for v in (user, item))
    logits = user @ item.t() / temperature + log_k.double()
    return gradients(torch.nn.functional.cross_entropy(logits, column) + log_k.double()[column].mean(), user, item)


@pytest.mark.parametrize(("temperature", "near_enough"), [(0.05, 8e-3), (0.02, 8e-3), (0.01, 1.5e-2)])
@pytest.mark.parametrize("half", [False, True])
def test_sharp_scores_stay_fast(monkeypatch: pytest.MonkeyPatch, temperature: float, near_enough: float, half: bool) -> None:
    """Users near their item, as after training, and users that are not; factors over several powers of e."""
    monkeypatch.setattr(fused, "Shifted", None)
    user, item = unit(300, 64, 0), unit(500, 64, 1)
    column, log_k = torch.arange(300), torch.randn(500, generator=torch.Generator().manual_seed(2)) * 2
    near = normalize(user.detach()[:100] + item.detach()[:100])
    user = torch.cat([near, user.detach()[100:]]).requires_grad_()
    targets = Targets(None, column, torch.full((300,), 1 / 300), log_k[column])
    got = gradients(fused_softmax(user, item, temperature, targets, log_k, half), user, item)
    for mine, true in zip(got, exact(user, item, temperature, column, log_k), strict=True):
        assert far(mine, true) < (near_enough if half else 1e-5)


@pytest.mark.parametrize("several", [1, 2, 4, 16])
@pytest.mark.parametrize(
    ("temperature", "off", "near_enough"), [(0.07, 1.0, 5e-3), (0.07, 0.1, 5e-3), (0.05, 0.5, 5e-3), (0.01, 1.5, 1.5e-2)]
)
@pytest.mark.parametrize("half", [False, True])
def test_gradients_of_rows_predicted_well_keep_their_digits(
    temperature: float, off: float, near_enough: float, half: bool, several: int
) -> None:
    """What is left of a gradient, where the targets have nearly all of the softmax, is not the rounding of their shares."""
    g = torch.Generator().manual_seed(0)
    item = normalize(torch.randn(1500, 64, generator=g))
    column, row = torch.randperm(1500, generator=g)[:512], torch.arange(512 // several).repeat_interleave(several)
    column[5] = column[4]  # with several targets a row, one that comes twice
    middle = normalize(torch.zeros(512 // several, 64).index_add_(0, row, item[column]))
    user = normalize(middle + off * normalize(torch.randn(512 // several, 64, generator=g)))
    near_enough = 1.5e-2 if several > fused.FEW_TARGETS else near_enough  # they share the softmax: what is left is much
    targets = Targets(row if several > 1 else None, column, torch.rand(512, generator=g) / 256)
    got, true = (
        gradients(fused_softmax(u, i, temperature, targets, half=half and u.dtype == torch.float32), u, i)
        for u, i in ((v.clone().to(kind).requires_grad_() for v in (user, item)) for kind in (torch.float32, torch.float64))
    )
    u, i = (v.double().requires_grad_() for v in (user, item))
    wanted = gradients(
        (torch.nn.functional.cross_entropy((u[row] @ i.t()) / temperature, column, reduction="none") * targets.weight_P.double()).sum(),
        u,
        i,
    )
    assert all(far(mine, plain) < 1e-9 for mine, plain in zip(true, wanted, strict=True))
    assert all(far(mine, plain) < (near_enough if half else 1e-5) for mine, plain in zip(got[1:], wanted[1:], strict=True))
    assert abs(float(got[0] - wanted[0])) < 2e-3 * (1 + float(wanted[0])), (got[0], wanted[0])


@pytest.mark.parametrize("half", [False, True])
def test_a_guess_that_hides_the_others_gives_way(half: bool) -> None:
    """The target leads its row's sample by far, and what is left of the row without it is too small beside it."""
    item = torch.cat([unit(1, 8, 3), -unit(1, 8, 3) + 0.01 * unit(40, 8, 1)]).detach()
    item = normalize(item).requires_grad_()
    user = normalize(item.detach()[:1] + 0.01 * unit(5, 8, 4).detach()).requires_grad_()
    column, log_k = torch.zeros(5, dtype=torch.int64), torch.zeros(41)
    log_own = torch.full((5,), -240.0)  # so that the others count although they are far
    targets = Targets(None, column, torch.full((5,), 0.2), log_own)
    got = gradients(fused_softmax(user, item, 0.008, targets, log_k, half), user, item)
    wide_user, wide_item = (v.detach().double().requires_grad_() for v in (user, item))
    logits = wide_user @ wide_item.t() / 0.008
    z = torch.logsumexp(torch.cat([logits[:, :1] - 240.0, logits[:, 1:]], 1), 1)
    true = gradients((z - logits[:, 0]).mean(), wide_user, wide_item)
    for mine, theirs in zip(got, true, strict=True):
        assert far(mine, theirs) < 1e-3


def test_a_candidate_that_counts_for_nobody_moves_nobody() -> None:
    user, item = unit(6, 8, 0), unit(5, 8, 1)
    log_k = torch.tensor([0.0, 0.0, -torch.inf, 0.0, 0.0])
    for half, temperature in ((False, 0.1), (True, 0.1), (True, 0.02)):
        column = torch.tensor([0, 1, 3, 4, 0, 1])
        targets = Targets(None, column, torch.full((6,), 1 / 6), torch.zeros(6))
        _, by_user, by_item = gradients(fused_softmax(user, item, temperature, targets, log_k, half), user, item)
        assert bool(torch.isfinite(by_user).all()) and not by_item[2].any() and bool(by_item[[0, 1, 3, 4]].any(1).all())


def small_blocks(monkeypatch: pytest.MonkeyPatch, rows: int, tile: int) -> None:
    """Blocks of so many rows, in tiles of so many columns."""
    for name, value in {"FEWEST_ROWS": tile, "WIDE_ROWS": rows, "TILE_BYTES": 1, "EVEN": 1}.items():
        monkeypatch.setattr(score_blocks, name, value)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("rows", "tile"), [(7, 7), (100, 13), (100, 100), (300, 13), (300, 1)])
@pytest.mark.parametrize("temperature", [0.07, 0.02])
def test_blocks_and_tiles_equal_the_whole(monkeypatch: pytest.MonkeyPatch, half: bool, rows: int, tile: int, temperature: float) -> None:
    user, item = unit(300, 16, 0), unit(50, 16, 1)
    whole = gradients(sampled(user, item, half, temperature), user, item)
    small_blocks(monkeypatch, rows, tile)
    for got, want in zip(gradients(sampled(user, item, half, temperature), user, item), whole, strict=True):
        assert far(got, want) < (5e-3 if half else 1e-6)


def test_blocks_share_their_work_evenly() -> None:
    for rows, columns in ((2300, 3416), (512, 41_000), (64, 1_000_000), (4096, 3660), (5, 7), (0, 7)):
        block = score_blocks.block_rows(rows, columns, torch.bfloat16, torch.device("cpu"))
        tiles = score_blocks.tiles(block, columns, torch.bfloat16, torch.device("cpu"))
        assert [tile.start for tile in tiles[1:]] == [tile.stop for tile in tiles[:-1]] and (tiles[0].start, tiles[-1].stop) == (0, columns)
        widths = [tile.stop - tile.start for tile in tiles]
        assert max(widths) - widths[-1] < 32 * len(tiles)
        assert block * columns * 2 <= max(score_blocks.BLOCK_BYTES, 64 * columns * 2) * 1.2
        assert block * max(widths) * 2 <= score_blocks.TILE_BYTES * 1.2


@pytest.mark.parametrize("half", [False, True])
def test_a_step_leaves_nothing_for_the_next(half: bool) -> None:
    """The memory of a block is kept: what stands in it must not matter."""
    user, item = unit(30, 8, 0), unit(50, 8, 1)
    first = gradients(sampled(user, item, half), user, item)
    sampled(unit(40, 8, 2), unit(70, 8, 3) * 1e-3, half)
    for got, want in zip(gradients(sampled(user, item, half), user, item), first, strict=True):
        assert torch.equal(got, want)


def test_bounded_and_shifted_paths_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    user, item = unit(40, 16, 0), unit(50, 16, 1)
    bounded = gradients(sampled(user, item, False), user, item)
    monkeypatch.setattr(fused, "WIDEST_RANGE", 0.0)
    for got, want in zip(gradients(sampled(user, item, False), user, item), bounded, strict=True):
        assert far(got, want) < 1e-5


def test_rows_with_several_targets_equal_rows_repeated() -> None:
    user, item = unit(3, 8, 0), unit(20, 8, 1)
    row, column, weight = torch.tensor([0, 0, 2, 0]), torch.tensor([3, 5, 3, 19]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    grouped = gradients(fused_softmax(user, item, 0.1, Targets(row, column, weight)), user, item)
    single = gradients(fused_softmax(user[row], item, 0.1, Targets(None, column, weight)), user, item)
    for got, want in zip(grouped, single, strict=True):
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dim", [7, 8])
@pytest.mark.parametrize("temperature", [0.1, 0.02])
@pytest.mark.parametrize("half", [False, True])
def test_any_width_will_do_with_factors_and_without(dim: int, temperature: float, half: bool) -> None:
    user, item = unit(30, dim, 0), unit(40, dim, 1)
    column, weight = torch.arange(30), torch.full((30,), 1 / 30)
    for log_k in (torch.zeros(40), torch.linspace(-3, 3, 40)):
        got = gradients(fused_softmax(user, item, temperature, Targets(None, column, weight), log_k, half), user, item)
        for mine, true in zip(got, exact(user, item, temperature, column, log_k), strict=True):
            assert far(mine, true) < (1.5e-2 if half else 1e-5)


def test_the_only_candidate_costs_nothing() -> None:
    user, item = unit(2, 4, 0), unit(1, 4, 1)
    targets = Targets(None, torch.zeros(2, dtype=torch.int64), torch.ones(2), torch.zeros(2))
    loss, *grads = gradients(fused_softmax(user, item, 0.1, targets, torch.zeros(1)), user, item)
    assert abs(float(loss)) < 1e-6 and all(float(g.abs().max()) < 1e-5 for g in grads)


def test_nan_vectors_reach_the_loss() -> None:
    user, item = unit(2, 4, 0), unit(3, 4, 1).detach().clone()
    item[1, 2] = float("nan")
    assert torch.isnan(fused_softmax(user, item, 0.1, Targets(None, torch.tensor([0, 1]), torch.ones(2))))


def test_autocast_does_not_reach_inside() -> None:
    user, item = unit(30, 16, 0), unit(50, 16, 1)
    plain = gradients(sampled(user, item, False), user, item)
    with torch.autocast("cpu", torch.bfloat16):
        cast = gradients(sampled(user, item, False), user, item)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))
