"What a pix2pix training step costs beside its convolutions, its data, and an unfrozen judge."
import itertools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from semsynth.configs import Config, build_model, find_config
from semsynth.labels import Batch
from semsynth.synthesizer import Synthesizer, frozen
from semsynth.training import make_optimizers

from .rows import Row, best_of

RESOLUTION, BATCH_SIZE = 128, 4
ROUNDS = 8


class Convolution(NamedTuple):
    "One call, as it was made: enough to make it again."

    function: Callable[..., Tensor]
    shapes: tuple[torch.Size, ...]   # Of the input, the weight, and the bias if there is one
    needs_grad: tuple[bool, ...]     # A frozen judge needs the gradient of its input alone
    channels_last: bool
    others: tuple                    # Stride, padding and so on, by position
    options: Mapping[str, object]    # The same by name


class Recorder(TorchFunctionMode):
    "Writes down every convolution that is called while it is active."

    def __init__(self):
        super().__init__()
        self.calls: list[Convolution] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.conv2d, F.conv_transpose2d, torch.conv2d, torch.conv_transpose2d):
            tensors = [argument for argument in args if isinstance(argument, Tensor)]
            self.calls.append(Convolution(
                function,
                tuple(tensor.shape for tensor in tensors),
                tuple(tensor.requires_grad for tensor in tensors),
                tensors[0].is_contiguous(memory_format=torch.channels_last),
                args[len(tensors):],
                kwargs or {},
            ))
        return function(*args, **(kwargs or {}))


def replay(call: Convolution) -> Callable[[], None]:
    "The same convolution alone: forward, and backward if the step asked for gradients."
    layout = torch.channels_last if call.channels_last else torch.contiguous_format
    tensors = []
    for shape, needs_grad in zip(call.shapes, call.needs_grad, strict=True):
        tensor = torch.randn(shape)
        tensor = tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor
        tensors.append(tensor.requires_grad_(needs_grad))
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    gradient = torch.randn_like(call.function(*tensors, *call.others, **call.options))

    def forward_and_backward() -> None:
        output = call.function(*tensors, *call.others, **call.options)
        if wanted:
            torch.autograd.grad(output, wanted, gradient)

    return forward_and_backward


def noise_batch(num_classes: int = 12) -> Batch:
    "A step takes the same time on any pixels."
    size = (BATCH_SIZE, RESOLUTION, RESOLUTION)
    label_map = torch.randint(num_classes, size)
    image = torch.rand(BATCH_SIZE, 3, RESOLUTION, RESOLUTION) * 2 - 1
    return Batch(image, label_map, label_map)


def shipped(dataset: str) -> Config:
    "The config that trains pix2pix on a dataset, at the resolution that is measured."
    return find_config(dataset, "pix2pix", [f"data.resolution={RESOLUTION}"])


def fresh(config: Config, num_classes: int = 12) -> Synthesizer:
    "Fresh weights, ready to learn."
    torch.manual_seed(0)
    return build_model(config, num_classes).train()


def training_step(model: Synthesizer, config: Config) -> Callable[[Batch], None]:
    "Everything that a step does to a batch: losses, gradients, both optimizers."
    optimizers = make_optimizers(model, config.optim)
    steps = itertools.count()

    def step(batch: Batch) -> None:
        for name, terms in model.training_losses(batch, next(steps)):
            optimizers[name].zero_grad()
            sum(terms.values()).backward()
            optimizers[name].step()

    return step


def against_convolutions(
    what: str,                  # Names the step
    step: Callable[[], None],
    rounds: int = ROUNDS,
    most: float | None = None,  # Times its convolutions that the step may take
) -> list[Row]:
    "A step, and all the convolutions that it calls alone: the rest is overhead."
    step()  # finds its way, and reads what it needs
    with Recorder() as recorder:
        step()
    replays = [replay(call) for call in recorder.calls]

    def alone() -> None:
        for again in replays:
            again()

    whole, parts = best_of(rounds, step, alone)
    verdict = () if most is None else (f"<= {most}", whole / parts <= most)
    return [
        Row(what, f"{1000 * whole:.0f} ms"),
        Row(f"its {len(replays)} convolutions alone", f"{1000 * parts:.0f} ms"),
        Row("step / convolutions", f"{whole / parts:.2f}", *verdict),
    ]


def convolutions() -> list[Row]:
    "A step may cost little beyond its own convolutions."
    config, batch = shipped("synthetic"), noise_batch()
    take = training_step(fresh(config), config)
    what = "pix2pix step, 128 px, batch 4, as shipped"
    return against_convolutions(what, lambda: take(batch), most=1.35)


def judging() -> list[Row]:
    "While the generator learns, the judge's own weights need no gradient."
    model, batch = fresh(shipped("synthetic")), noise_batch()
    discriminator = model.discriminator
    condition = model.condition(batch.label_map, batch.instance_map)
    fake = batch.image.clone().requires_grad_()

    def judge(held) -> None:
        discriminator.zero_grad()
        with held(discriminator):
            model.judge(condition, fake).mean().backward()

    def learning() -> None:
        judge(nullcontext)

    def judging_only() -> None:
        judge(frozen)

    both, input_alone = best_of(ROUNDS, learning, judging_only)
    saving = f"{1 - input_alone / both:.0%} less time"
    return [Row("judging pass with a frozen discriminator", saving)]


def measure() -> list[Row]:
    "Everything about the step itself."
    return [*convolutions(), *judging()]
