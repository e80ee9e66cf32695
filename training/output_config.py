"""Typed settings of what a run leaves: export, report, demo. Plain dataclasses, like training.config, which holds them all."""

from dataclasses import dataclass, field


@dataclass
class ExportConfig:
    """Batch export and the bundle.

    Attributes:
        name: of the model, in the bundle's manifest.
        rows_per_shard: of the Parquet shards.
        users: export user vectors too.
        users_for: what these are for: personalize | train | marketing | measure. With data.consent, users who do not allow it, or do not
            allow to be personalized for, have none.
        raw_user_ids: write raw user ids beside the keys (needs identity.keep_raw_ids at prepare).
        onnx: write ONNX towers, checked equal to torch.
        history_events: newest events of each user kept for serving.
        held_out_queries: most validation and most test queries left in export/held_out.parquet, by which `towers recommend sweep=true` is
            judged (a refitted model by the test ones alone); they hold histories by user key. 0 = none.
    """

    name: str = "towers"
    rows_per_shard: int = 100_000
    users: bool = True
    users_for: str = "personalize"
    raw_user_ids: bool = False
    onnx: bool = True
    history_events: int = 1000
    held_out_queries: int = 0


@dataclass
class InspectConfig:
    """What TensorBoard shows of the vectors besides scalars.

    Attributes:
        every: epochs between gauges (effective rank, norms, uniformity, hubness of item vectors); 0 = no inspection at all. The
            projector, sample lists and pictures are made once, when training ends.
        users: invented users in the projector: walks over items that were chosen together, no one's history.
        real_users: real users beside them, drawn by the seed; their histories are then readable in run_dir/tensorboard.
    """

    every: int = 1
    users: int = 200
    real_users: int = 0


@dataclass
class DemoConfig:
    """`towers demo`: port 0 takes a free one; `k` items are asked for."""

    k: int = 5
    port: int = 0


@dataclass
class ReportConfig:
    """`towers report`.

    Attributes:
        runs: folders of evaluated runs, folders of such folders, or patterns, quoted (`report.runs=["runs/gowalla*"]`).
        metrics: names such as ndcg@20; none = those of the published figures, else recall and NDCG at the middle cut-off.
    """

    runs: list[str] = field(default_factory=lambda: ["runs"])
    metrics: list[str] = field(default_factory=list)
