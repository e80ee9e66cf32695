"""The numbers that settings may have, in one table. Nothing here imports torch."""

import math
from operator import attrgetter
from typing import Any, Final, NamedTuple

from towers.errors import ConfigError


class Bound(NamedTuple):
    """Least and greatest value, both allowed, and how the message says it."""

    least: float
    most: float
    words: str


_TINY: Final = math.ulp(0.0)
_HUGE: Final = 1.7e308
_ANY: Final = Bound(0, _HUGE, "0 or more")
_SOME: Final = Bound(1, _HUGE, "at least 1")
_ABOVE: Final = Bound(_TINY, _HUGE, "a number above 0")
_SHARE: Final = Bound(0, 1, "a share between 0 and 1")
_OFF: Final = Bound(0, _HUGE, "at least 1, or 0 to switch it off")
_SEED: Final = Bound(0, 2**63 - 1, "a whole number from 0 to 2^63 - 1")

BOUNDS: Final = {
    "seed": _SEED,
    "data.synthetic.seed": _SEED,
    "data.synthetic.pushed": _SHARE,
    "data.synthetic.tired": _SHARE,
    "data.chunk_rows": _SOME,
    "data.min_user_events": _ANY,
    "data.min_item_events": _ANY,
    "data.max_rejected_share": _SHARE,
    "split.seed": _SEED,
    "loss.exact_worth": _ANY,
    "loss.logq_correction": _ANY,
    "negatives.count": _ANY,
    "negatives.alpha": Bound(0, 4, "between 0 (uniform) and 4"),
    "negatives.hard_share": _SHARE,
    "negatives.refresh_every": _SOME,
    "optim.lr": _ABOVE,
    "optim.table_lr": _ANY,
    "optim.weight_decay": _ANY,
    "optim.warmup_share": _SHARE,
    "optim.clip_norm": _OFF._replace(words="a number above 0, or 0 to switch it off"),
    # all events would leave none to predict
    "trainer.history_share": Bound(0, math.nextafter(1, 0), "a share of at least 0 and below 1"),
    "trainer.batch_size": _OFF._replace(words="at least 1, or 0 for the sampler's own"),
    "trainer.epochs": _SOME,
    "trainer.max_steps": _OFF,
    "trainer.evaluate_every": _OFF,
    "trainer.patience": _OFF,
    "trainer.checkpoint_every": _OFF,
    "trainer.keep_checkpoints": _SOME,
    "trainer.log_every": _SOME,
    "trainer.processes": Bound(0, 1024, "0 (this one alone) or more"),
    "trainer.threads": Bound(0, 1024, "1 to 1024, or 0 for all cores"),
    "evaluate.draws": Bound(20, _HUGE, "at least 20: the ends of an interval that holds 95 % of fewer draws are any two of them"),
    "evaluate.max_history": _ANY,
    "evaluate.max_queries": Bound(0, _HUGE, "0 (all) or more"),
    "export.rows_per_shard": _SOME,
    "export.history_events": _ANY,
    "export.held_out_queries": Bound(0, _HUGE, "0 (none) or more"),
    "inspect.every": _OFF,
    "inspect.users": Bound(1, 2000, "1 to 2000"),
    "inspect.real_users": Bound(0, 2000, "0 (none) to 2000"),
    "demo.k": Bound(1, 1000, "1 to 1000"),
    "demo.port": Bound(0, 65535, "a port, or 0 for a free one"),
}


def check_bounds(config: Any) -> None:
    """Every number of BOUNDS lies within; NaN lies nowhere.

    Raises:
        ConfigError: names the setting.
    """
    for key, (least, most, words) in BOUNDS.items():
        value = attrgetter(key)(config)
        if not least <= value <= most:
            raise ConfigError(f"{key}: got {value}, expected {words}")


def check_spectral(config: Any) -> None:
    """That a spectral part and the order of the data go together (model_config.SpectralConfig).

    Raises:
        ConfigError: names the setting.
    """
    spectral, order = config.model.spectral, config.data.order
    if not spectral.dim:
        return
    if config.trainer.evaluate_every == 0 == spectral.weight:
        raise ConfigError(
            "model.spectral.dim: validation chooses its weight, and trainer.evaluate_every is 0: set model.spectral.weight or"
            " trainer.evaluate_every=1"
        )
    if (order == "set") != (spectral.newest == 0):
        wanted = "0: all events of a history count alike" if order == "set" else "1: its vectors are of what came right after an item"
        raise ConfigError(f"model.spectral.newest: got {spectral.newest} where data.order is {order!r}, expected {wanted}")
    if spectral.narrow_to and order != "set":
        raise ConfigError(f"model.spectral.narrow_to: it is for data.order=set, and data.order is {order!r}. Set it to 0")
