"""Typed settings of the training jobs (prepare, train, evaluate, export): one schema, so that one experiment fits them all.

The dataclasses are plain; `register` hands them to Hydra, which refuses unknown keys and wrong types. `validate` holds every check
that crosses fields or files. Nothing here imports torch, so that a mistyped key fails within a second.
"""

import re
from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from towers.consent import PURPOSES
from towers.errors import ConfigError
from towers.model_config import ModelConfig
from towers.phrases import check_phrases
from training.bounds import check_bounds, check_spectral
from training.data_config import DataConfig, IdentityConfig, SplitConfig, schema_of
from training.output_config import DemoConfig, ExportConfig, InspectConfig, ReportConfig

SPLITS = ("global_temporal", "leave_one_out", "given", "random", "item_cold", "user_cold")
BASELINES = ("auto", "most_popular", "own_history", "recent_popular", "markov", "item_knn", "ease", "random", "oracle")


@dataclass
class LossConfig:
    """The training objective.

    Attributes:
        name: auto | sampled_softmax | full_softmax (exact: every item is a candidate).
        exact_worth: auto takes the exact softmax while a target costs at most this many times what it costs against sampled negatives.
        logq_correction: strength of the logQ correction: 1 = unbiased, 0 = off (favours the tail).
        remove_accidental_hits: negatives equal to the row's positive do not count.
        precision: auto | fp32 | bf16: of the loss's matrix products. auto = bf16 where the processor multiplies it natively. Gradients are
            then within 0.5 % of fp32's from a temperature of 0.05 on; at 0.01 (until losses are 1e-3), and with more than 4 targets a
            user (trainer.sampler=user), 1.5 %. Scores past 128 (a temperature below 1/128, long vectors) are computed in fp32 all the same.
    """

    name: str = "auto"
    exact_worth: float = 3.0
    logq_correction: float = 1.0
    remove_accidental_hits: bool = True
    precision: str = "auto"


@dataclass
class NegativesConfig:
    """Where sampled negatives come from.

    Attributes:
        name: in_batch (the batch's other targets) | uniform | popularity (by how often an item is a target, to the power `alpha`) |
            mixed (in_batch and uniform) | hard (mixed, and what the model ranks highest for users who did not choose it).
        count: drawn a step, with replacement, besides the batch's own; 0 with in_batch. More than there are items is told of.
        alpha: of popularity: 1 = as often as met, 0 = uniform.
        hard_share: with hard, the share of `count` that is drawn from the mined items.
        refresh_every: with hard, steps between two minings; each scores all items for up to 256 users.
    """

    name: str = "mixed"
    count: int = 1024
    alpha: float = 0.75
    hard_share: float = 0.5
    refresh_every: int = 100


@dataclass
class OptimConfig:
    """Optimiser and schedule. Everything but the large tables (ids of items, history and users) is always trained by Adam.

    Attributes:
        name: auto | adam | lazy_adam | rowwise_adagrad: of the large tables. adam moves every row at every step; the other two move
            the rows that the step looked up, at a cost that does not grow with the table. rowwise_adagrad keeps one number a row
            where lazy_adam keeps two rows. auto = rowwise_adagrad for tables of which a step reads a part, adam for the others.
        lr: learning rate.
        table_lr: that of tables which lazy_adam or rowwise_adagrad train; 0 = lr with the former, 10 lr with the latter.
        weight_decay: decoupled; of a sparse table's row it is taken where the row is moved.
        schedule: constant | linear | cosine (the last two fall to zero), after a linear warm-up over `warmup_share` of the steps.
        clip_norm: longest gradient, all parameters together; 0 = any.
    """

    name: str = "auto"
    lr: float = 0.003
    table_lr: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_share: float = 0.03
    clip_norm: float = 0.0


@dataclass
class TrainerConfig:
    """The loop.

    Attributes:
        sampler: auto | event | sequence | user: what an example is: one event, a window of events (transformer), or all of a user's events
            divided into a history and targets. auto = sequence for a transformer; else user for data without order where the loss is exact
            (grouped by user it costs least); else event.
        history_share: with the user sampler and data without order, the share of a user's events that is the history; the others are
            predicted from it.
        batch_size: examples a step. 0 = 1024 events, windows of at most 5000 targets together (200 steps an epoch or more), or 64 to 512
            users (58 steps an epoch).
        device: auto | cpu | cuda. A run may be resumed on another one, or with other threads or processes; sums then round otherwise, so
            the result equals that of an uninterrupted run to rounding, not bit for bit.
        precision: fp32 | bf16 (autocast).
        max_steps: 0 = no bound besides epochs.
        evaluate_every: epochs between validations; 0 = never.
        monitor: validation metric that chooses the best checkpoint; valid/unmasked/... or valid/masked/... names the form.
        patience: validations without improvement before stopping; 0 = never.
        refit: once validation has chosen the number of epochs, train anew on training and validation rows together for as many.
            That model is kept.
        checkpoint_every: steps between checkpoints, besides the one at each epoch's end; 0 = only epochs.
        keep_checkpoints: newest ones kept, besides the best.
        resume: continue from the newest checkpoint of run_dir.
        threads: torch CPU threads of each process; 0 = all cores, shared among the processes.
        processes: that train together on this machine, on one batch of batch_size; with GPUs one each. 0 = this one alone, or as many
            as torchrun started; another number than that is refused.
        init_from: start from the weights of a trained model: a bundle, a folder of bundles, a run_dir or its model/. Rows follow their
            ids, new ids start from the OOV or the mean row.
        half_from: rows from which on a table (item ids, histories, user ids) is rounded to half precision when the model is written: a
            server then maps half as much. null = never. Train again to change it: a run that is done is only written anew.
        new_items: tower | content: what makes vectors of items without an id of training: the item tower, which learns to do without ids by
            model.id_dropout, or a regression of trained vectors on content (towers.new_items). Changed as half_from is.
    """

    sampler: str = "auto"
    history_share: float = 0.5
    batch_size: int = 0
    epochs: int = 10
    max_steps: int = 0
    device: str = "auto"
    precision: str = "fp32"
    evaluate_every: int = 1
    monitor: str = "valid/ndcg@20"
    patience: int = 3
    refit: bool = False
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    log_every: int = 20
    resume: bool = True
    threads: int = 0
    processes: int = 0
    init_from: str | None = None
    half_from: int | None = 200_000
    new_items: str = "content"


@dataclass
class EvaluateConfig:
    """What is measured, and how.

    Attributes:
        split: valid | test.
        ks: cut-offs.
        unit: auto | user | event: one query per user with all held-out items relevant, or one per held-out event with
            its own time, context and history strictly before it. auto = user for `given`, event otherwise.
        seen: masked | unmasked | both: whether items of the user's history may be recommended.
        baselines: auto, or names among most_popular, own_history, recent_popular, markov, item_knn, ease, random, oracle. auto = all that
            apply but random; item_knn and ease where they take seconds (ease: 8 I^2 bytes for I items, time I^3; up to 6,000 items).
        draws: bootstrap draws over users for the 95 % intervals.
        slices: metrics by history length, item age and popularity decile.
        max_queries: most queries evaluated, drawn by seed; 0 = all.
        max_history: queries with more events before them are left out: how are the lists of people who are still new? 0 = none is.
        without: the same queries once more with inputs missing: context, user, history or a feature (`context.hour`), joined by + where
            several are to be missing together. Reported as `test/without=context/...`.
        history_curve: the same queries once more with only the newest n events shown, for each n ([0, 1, 3, 10]); of queries with as
            many events as the greatest. Reported as `test/shown=3/...`.
        against: folders of other trained runs on the same events: ranked as baselines, with paired differences.
        exposure: what the lists show too: Gini, popularity, tail share, and where items have categories calibration (C_KL), their entropy
            and the distance within a list.
        provider: with exposure, the column of the catalogue that says whose an item is: what providers have of the slots against what
            they have of the items; null = not asked.
        groups: recall and NDCG by group of people: audit columns (gender), or `taste` (thirds by how popular what they chose is).
            Groups of fewer than 50 people are put together.
    """

    split: str = "test"
    ks: list[int] = field(default_factory=lambda: [10, 20, 50])
    unit: str = "auto"
    seen: str = "masked"
    baselines: list[str] = field(default_factory=lambda: ["auto"])
    draws: int = 1000
    slices: bool = True
    max_queries: int = 0
    max_history: int = 0
    without: list[str] = field(default_factory=list)
    history_curve: list[int] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    exposure: bool = False
    provider: str | None = None
    groups: list[str] = field(default_factory=list)


@dataclass
class TrainingConfig:
    """Everything the training jobs share. `run_dir` holds a run; `seed` is the only one training uses.

    Attributes:
        sweep: of `towers report`: what each dial of the selector gives and costs, from the lists of `towers recommend sweep=true`.
    """

    run_dir: str = MISSING
    seed: int = 0
    experiment: str = "default"
    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    identity: IdentityConfig = field(default_factory=IdentityConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    inspect: InspectConfig = field(default_factory=InspectConfig)
    demo: DemoConfig = field(default_factory=DemoConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    sweep: bool = False


def register() -> None:
    """Tell Hydra the schema; every conf/<job>.yaml starts from it."""
    ConfigStore.instance().store(name="training_schema", node=TrainingConfig)


def validate(config: TrainingConfig) -> None:
    """Checks across fields, before any work.

    Raises:
        ConfigError: names the knob to turn.
    """
    config.model.validate()
    schema_of(config.data)
    check_phrases(config.data.phrases, "data.phrases")
    _choice("split.name", config.split.name, SPLITS)
    _choice("loss.name", config.loss.name, ("auto", "sampled_softmax", "full_softmax"))
    _choice("loss.precision", config.loss.precision, ("auto", "fp32", "bf16"))
    _choice("negatives.name", config.negatives.name, ("in_batch", "uniform", "popularity", "mixed", "hard"))
    _choice("optim.name", config.optim.name, ("auto", "adam", "lazy_adam", "rowwise_adagrad"))
    _choice("optim.schedule", config.optim.schedule, ("constant", "linear", "cosine"))
    _choice("trainer.sampler", config.trainer.sampler, ("auto", "event", "sequence", "user"))
    _choice("trainer.device", config.trainer.device, ("auto", "cpu", "cuda"))
    _choice("trainer.precision", config.trainer.precision, ("fp32", "bf16"))
    _choice("trainer.new_items", config.trainer.new_items, ("tower", "content"))
    _choice("evaluate.split", config.evaluate.split, ("valid", "test"))
    _choice("evaluate.unit", config.evaluate.unit, ("auto", "user", "event"))
    _choice("evaluate.seen", config.evaluate.seen, ("masked", "unmasked", "both"))
    if config.data.retention_days is not None and not config.data.retention_days > 0:
        raise ConfigError(f"data.retention_days: got {config.data.retention_days}, expected a number above 0, or null")
    if config.trainer.half_from is not None and config.trainer.half_from < 0:
        raise ConfigError(f"trainer.half_from: got {config.trainer.half_from}, expected a number of rows, or null for none")
    _choice("export.users_for", config.export.users_for, PURPOSES)
    for name in config.evaluate.baselines:
        _choice("evaluate.baselines", name, BASELINES)
    if config.split.name == "global_temporal" and config.data.order != "time":
        other = "random" if config.data.order == "set" else "leave_one_out"
        raise ConfigError(f"split.name: global_temporal needs timestamps, and data.order is {config.data.order!r}. Use {other} or given")
    if config.data.live is not None and config.split.name == "given":
        raise ConfigError("data.live: live events stand in no split, and split.name is 'given'. Use another split, or leave data.live out")
    if config.data.order == "set" and (config.split.name in ("leave_one_out", "user_cold") or config.split.warm_too):
        key = "warm_too" if config.split.warm_too else "name"
        raise ConfigError(f"split.{key}: {getattr(config.split, key)} needs an order, and data.order is 'set'. Use given or random")
    if config.split.warm_too and config.split.name != "item_cold":
        raise ConfigError(f"split.warm_too: it goes with split=item_cold, and split.name is {config.split.name!r}")
    if config.model.history.name == "transformer" and config.data.order == "set":
        raise ConfigError("model.history.name: a transformer reads an order, and data.order is 'set'. Use mean")
    check_spectral(config)
    if config.model.history.content and not config.model.history.share_item_table:
        raise ConfigError("model.history.content: histories share the item tower's rows then. Set model.history.share_item_table=true")
    if config.trainer.sampler == "sequence" and config.model.history.name != "transformer":
        raise ConfigError("trainer.sampler: 'sequence' trains all positions of a causal encoder. Use model=transformer")
    if config.trainer.refit and config.trainer.evaluate_every == 0:
        raise ConfigError(
            "trainer.refit: validation chooses its number of epochs, and trainer.evaluate_every is 0. Set it to 1, or refit=false"
        )
    for name, share in (("valid_share", config.split.valid_share), ("test_share", config.split.test_share)):
        if not 0 < share < 0.5:
            raise ConfigError(f"split.{name}: got {share}, expected a share between 0 and 0.5")
    check_bounds(config)
    if config.evaluate.max_history and config.data.order == "set":
        raise ConfigError("evaluate.max_history: nothing lies before anything else, as data.order is 'set'. Leave it 0")
    if config.negatives.name != "in_batch" and config.negatives.count < 1:
        raise ConfigError(f"negatives.count: got {config.negatives.count}, expected at least 1 with negatives.name={config.negatives.name}")
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", config.export.name):
        raise ConfigError(f"export.name: got {config.export.name!r}, expected letters, digits, '.', '_' and '-': it names a folder")
    if config.trainer.init_from == "":
        raise ConfigError("trainer.init_from: it is empty, and a refresh starts from a trained model. Name its run_dir or its bundle")
    if config.optim.table_lr and config.optim.name == "adam":
        raise ConfigError(
            "optim.table_lr: optim.name=adam trains tables with optim.lr. Leave it 0, or use optim=lazy_adam or rowwise_adagrad"
        )
    if min(config.evaluate.history_curve, default=0) < 0:
        raise ConfigError(f"evaluate.history_curve: got {list(config.evaluate.history_curve)}, expected numbers of events, 0 or more")
    if not config.evaluate.ks or min(config.evaluate.ks) < 1:
        raise ConfigError(f"evaluate.ks: got {list(config.evaluate.ks)}, expected cut-offs of at least 1")


def _choice(key: str, got: str, allowed: tuple[str, ...]) -> None:
    if got not in allowed:
        raise ConfigError(f"{key}: got {got!r}, expected one of {', '.join(allowed)}")
