"What the tests of training share: a dataset, a family of two small players, and bitwise equality."
from pathlib import Path

import torch
from torch import nn

from semsynth.datasets import SemanticDataset
from semsynth.labels import FACADES, Batch, semantics
from semsynth.synthesizer import Synthesizer, frozen, seeded
from semsynth.training import read_checkpoint


def same(batch: Batch) -> Batch:
    "The transform that changes nothing."
    return batch


class Blocks(SemanticDataset):
    "Twelve classes, one colour each, in blocks of pixels; deterministic by index."

    name, split, label_space = "blocks", "train", FACADES

    def __init__(self, num_images: int = 8, resolution: int = 64):
        self.num_images, self.resolution = num_images, resolution

    def __len__(self) -> int:
        return self.num_images

    def label_map(self, index: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(index)
        side = self.resolution // 4
        ids = torch.randint(FACADES.num_classes, (4, 4), generator=rng)
        return ids.repeat_interleave(side, 0).repeat_interleave(side, 1)

    def __getitem__(self, index: int) -> Batch:
        rng = torch.Generator().manual_seed(1000)
        colours = torch.rand(FACADES.num_classes, 3, generator=rng) * 2 - 1
        label_map = self.label_map(index)
        return Batch(colours[label_map].movedim(-1, 0), label_map, label_map.clone())

    def batch(self, size: int = 2) -> Batch:
        "The first few, with a batch axis."
        samples = [self[index] for index in range(size)]
        return Batch(*(torch.stack(part) for part in zip(*samples, strict=True)))


class Duel(Synthesizer):
    "Two small players without norms; dropout is the noise, and one loss term comes late."

    def __init__(self, dropout: float = 0.5, players: int = 2):
        super().__init__()
        self.trained = ("discriminator", "generator")[-players:]
        self.num_classes = FACADES.num_classes
        channels = FACADES.num_classes + 1
        self.generator = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.Dropout(dropout), nn.Tanh(),
            nn.Conv2d(8, 3, 3, padding=1), nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(channels + 3, 4, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 4)
        )

    def training_losses(self, batch, step):
        condition = semantics(batch.label_map, batch.instance_map, self.num_classes)
        fake = self.generator(condition)
        terms = {"l1": (fake - batch.image).abs().mean()}
        if "discriminator" in self.trained:
            real_logits = self.discriminator(torch.cat([condition, batch.image], 1))
            fake_logits = self.discriminator(torch.cat([condition, fake.detach()], 1))
            penalty = {"late": 0.1 * real_logits.square().mean()} if step % 4 == 3 else {}
            yield "discriminator", {
                "real": (real_logits - 1).square().mean(), "fake": fake_logits.square().mean(),
            } | penalty
            with frozen(self.discriminator):
                fake_logits = self.discriminator(torch.cat([condition, fake], 1))
            terms = {"adversarial": (fake_logits - 1).square().mean()} | terms
        yield "generator", terms

    @torch.no_grad()
    def sample(self, label_map, instance_map=None, *, rng=None):
        with seeded(rng):
            return self.generator(semantics(label_map, instance_map, self.num_classes))


def optim(model: Synthesizer, lr: float = 2.0e-3) -> dict:
    "Adam for each player."
    return {name: {"lr": lr, "betas": [0.5, 0.999]} for name in model.trained}


def assert_equal(first, second, where: str = "") -> None:
    "Bitwise, through dictionaries and lists."
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second), where
    elif isinstance(first, dict):
        assert list(first) == list(second), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for place, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_equal(a, b, f"{where}/{place}")
    else:
        assert first == second, where


def assert_equal_runs(*folders: Path) -> None:
    "Weights, EMA, optimizers, schedules, random states and logs."
    checkpoints = [read_checkpoint(folder) for folder in folders]
    for checkpoint in checkpoints:  # beartype picks what it checks with Python's own source
        del checkpoint["rng"][0]["python"]
    assert_equal(*checkpoints)
    assert_equal(*((folder / "metrics.csv").read_bytes() for folder in folders))


class PowerCut(Exception):
    "What `Breaks` raises."


class Breaks:
    "A transform that ends the training at its n-th image, as a power cut would."

    def __init__(self, n: int):
        self.n = n

    def __call__(self, batch: Batch) -> Batch:
        self.n -= 1
        if self.n < 0:
            raise PowerCut
        return batch
