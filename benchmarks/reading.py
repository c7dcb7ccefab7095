"What reading and augmenting a batch costs beside the training step that uses it."
import os
import time
from pathlib import Path

from semsynth.configs import Config, build_augment, build_dataset, with_dataset
from semsynth.datasets import training_batches

from .rows import ROOT, Row
from .steps import BATCH_SIZE, fresh, shipped, training_step

NUM_STEPS = 24


def reading_and_stepping(config: Config) -> tuple[float, float]:
    "Seconds a batch for reading, and for the step: one run, no worker, the two taking turns."
    dataset = build_dataset(config)
    step = training_step(fresh(config, dataset.label_space.num_classes), config)
    batches = iter(training_batches(
        dataset, build_augment(config), batch_size=BATCH_SIZE, num_steps=NUM_STEPS + 1
    ))
    step(next(batches))  # The first batch fills caches and is not counted.

    reading = stepping = 0.0
    for _ in range(NUM_STEPS):
        start = time.perf_counter()
        batch = next(batches)
        read = time.perf_counter()
        step(batch)
        reading, stepping = reading + read - start, stepping + time.perf_counter() - read
    return reading / NUM_STEPS, stepping / NUM_STEPS


def measure() -> list[Row]:
    "Synthetic façades, and the real ones where they are."
    configs = [shipped("synthetic")]
    data = Path(os.environ.get("SEMSYNTH_TEST_DATA", ROOT.parent / "shared" / "data"))
    if (data / "facades").is_dir():
        configs.append(with_dataset(shipped("facades"), root=str(data / "facades")))

    rows = []
    for config in configs:
        reading, stepping = reading_and_stepping(config)
        value = f"{1000 * reading:.0f} ms of {1000 * stepping:.0f} ms = {reading / stepping:.1%}"
        what = f"reading and augmenting `{config.data['name']}` beside a step (128 px, batch 4)"
        rows.append(Row(what, value, "< 10 %", reading / stepping < 0.1))
    return rows
