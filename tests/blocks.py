"A dataset for tests: twelve classes, one colour each, in blocks of pixels."
import torch

from semsynth.datasets import SemanticDataset
from semsynth.labels import FACADES, Batch


def same(batch: Batch) -> Batch:
    "The transform that changes nothing."
    return batch


class Blocks(SemanticDataset):
    "Image, label map and instance map agree to the pixel; deterministic by index."

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
        return Batch(*(torch.stack(part) for part in zip(*map(self.__getitem__, range(size)), strict=True)))
