"""What a run tells while it runs: TensorBoard (its only door) and the console."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


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

    def __init__(self, writer: SummaryWriter, bar: "tqdm[None]", every: int, since: Pace) -> None:
        self._writer = writer
        self._bar = bar
        self._every = every
        self._examples, self._seconds = since.examples, since.seconds
        self._losses: list[float] = []

    @classmethod
    def open(cls, folder: Path, *, every: int, since: Pace, total_steps: int, config: str) -> Self:
        """Start telling.

        Args:
            folder: run_dir/tensorboard. Scalars after the step of `since`, of a run that was cut off, are dropped from view.
            every: steps between scalars.
            since: what is done so far; a pace is that of the steps after it.
            total_steps: of the whole run.
            config: the resolved settings, kept as text.
        """
        writer = SummaryWriter(str(folder), purge_step=since.step + 1)
        writer.add_text("config", f"```\n{config}\n```", since.step)
        hidden = not sys.stderr.isatty()
        bar = tqdm(total=total_steps, initial=since.step, desc="train", unit="step", file=sys.stderr, disable=hidden)
        return cls(writer, bar, max(1, every), since)

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


class Silence:
    """A tracker that tells nothing: of several processes, the first one speaks."""

    def step(self, pace: Pace, scalars: Mapping[str, float], floor: Floor) -> None: ...

    def epoch(self, pace: Pace, metrics: Mapping[str, float], monitor: str, best: bool) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
