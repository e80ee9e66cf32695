"""What a run tells while it runs: TensorBoard (its only door) and the console."""

import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from training.inspection import HEADER, Inspector

HPARAMS = ("experiment", "seed", "model.", "loss.", "negatives.", "optim.", "trainer.batch_size", "trainer.epochs", "trainer.sampler")
RESULTS = ("valid/ndcg@", "valid/recall@")


class Floor(Protocol):
    """Tells a share of the least time possible."""

    def share(self, examples: int, seconds: float) -> Mapping[str, float]:
        """A scalar by name, or nothing."""
        ...


class Pace(Protocol):
    """How far a run is: what the tracker reads of its progress."""

    step: int
    epochs: int
    examples: int
    seconds: float


def say(line: str) -> None:
    """A line on standard error that leaves a progress bar whole."""
    tqdm.write(line, file=sys.stderr)


class Tracker:
    """Scalars to TensorBoard, progress to standard error: a bar on a terminal, and a line per epoch. Made by `open`."""

    def __init__(self, writer: SummaryWriter, bar: "tqdm[None]", every: int, since: Pace, inspector: Inspector | None) -> None:
        self._writer = writer
        self._bar = bar
        self._every = every
        self._examples, self._seconds = since.examples, since.seconds
        self._losses: list[float] = []
        self._inspector = inspector

    @classmethod
    def open(cls, folder: Path, *, every: int, since: Pace, total_steps: int, config: str, inspector: Inspector | None = None) -> Self:
        """Start telling.

        Args:
            folder: run_dir/tensorboard. Scalars after the step of `since`, of a run that was cut off, are dropped from view.
            every: steps between scalars.
            since: what is done so far; a pace is that of the steps after it.
            total_steps: of the whole run.
            config: the resolved settings, kept as text.
            inspector: looks at the model that is trained; None = nobody does.
        """
        writer = SummaryWriter(str(folder), purge_step=since.step + 1)
        writer.add_text("config", f"```\n{config}\n```", since.step)
        hidden = not sys.stderr.isatty()
        bar = tqdm(total=total_steps, initial=since.step, desc="train", unit="step", file=sys.stderr, disable=hidden)
        return cls(writer, bar, max(1, every), since, inspector)

    def step(self, pace: Pace, scalars: Mapping[str, float], floor: Floor) -> None:
        """A training step is done; every so often its scalars are written, with the examples per second since the last time and their
        floor's share of it."""
        self._bar.update(1)
        self._losses.append(scalars["train/loss"])
        if pace.step % self._every:
            return
        examples, seconds = pace.examples - self._examples, pace.seconds - self._seconds
        self._examples, self._seconds = pace.examples, pace.seconds
        rate = {"train/examples_per_s": examples / max(seconds, 1e-9)}
        self._write(pace.step, {**scalars, **rate, **floor.share(examples, seconds)})
        self._bar.set_postfix(loss=f"{scalars['train/loss']:.4f}", refresh=False)

    def epoch(self, pace: Pace, metrics: Mapping[str, float], monitor: str, best: bool) -> None:
        """An epoch is done: its validation metrics are written; the monitored one is said, with the mean loss and the pace so far."""
        self._write(pace.step, metrics)
        value = f", {monitor} {metrics[monitor]:.4f}{' (best)' if best else ''}" if monitor in metrics else ""
        loss = sum(self._losses) / max(1, len(self._losses))
        rate = pace.examples / max(pace.seconds, 1e-9)
        say(f"epoch {pace.epochs} (step {pace.step}): loss {loss:.4f}{value}, {rate:.0f} examples/s")
        self._losses.clear()
        if self._inspector:
            self._write(pace.step, self._inspector.gauges(pace.epochs))

    def finish(self, pace: Pace, settings: Mapping[str, Any], best: Mapping[str, float]) -> None:
        """Training is done: its settings beside its best metrics, and a look at the model as it will be used.

        Args:
            settings: nested settings of the run; those that one tunes are kept (HPARAMS).
            best: metrics of the best epoch; recall and NDCG are kept.
        """
        kept = {f"result/{name.partition('/')[2]}": value for name, value in best.items() if name.startswith(RESULTS)}
        self._write(pace.step, kept)
        known = {name: value for name, value in _flat(settings) if name.startswith(HPARAMS) and isinstance(value, int | float | str)}
        for summary in hparams(known, kept):
            self._writer.file_writer.add_summary(summary)
        if self._inspector is None:
            return
        look = self._inspector.look()
        self._writer.add_text("recommendations", look.lists, pace.step)
        for name, picture in look.pictures.items():
            self._writer.add_image(f"model/{name}", picture, pace.step, dataformats="HWC")
        # four digits are more than a picture shows, and keep the file small
        vectors = np.round(look.vectors.astype(np.float64), 4)
        _drop_vectors(Path(self._writer.log_dir))
        self._writer.add_embedding(vectors, look.labels, tag="vectors", global_step=pace.step, metadata_header=list(HEADER))

    def close(self) -> None:
        """Flush and close the event file and the bar."""
        self._bar.close()
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)


def _drop_vectors(folder: Path) -> None:
    """Of a run that was here before: the projector would list them beside the new ones, and TensorBoard warn that they are written over."""
    (folder / "projector_config.pbtxt").unlink(missing_ok=True)
    for vectors in folder.glob("*/vectors"):
        shutil.rmtree(vectors)


def _flat(settings: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{where}{name}.")
        else:
            yield where + name, value


class Silence:
    """A tracker that tells nothing: of several processes, the first one speaks."""

    def step(self, pace: Pace, scalars: Mapping[str, float], floor: Floor) -> None: ...

    def epoch(self, pace: Pace, metrics: Mapping[str, float], monitor: str, best: bool) -> None: ...

    def finish(self, pace: Pace, settings: Mapping[str, Any], best: Mapping[str, float]) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
