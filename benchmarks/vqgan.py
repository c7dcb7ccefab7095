"How fast a transformer writes, with and without its cache, and what fused attention saves."
import torch
import torch.nn.functional as F
from torch import Tensor

from semsynth.vqgan import GPT, write

from .rows import Row, best_of

LENGTH, ROUNDS = 127, 2
HEADS, WIDTH = 8, 32  # of one attention


@torch.no_grad()
def writing() -> list[Row]:
    "A small transformer writes 127 tokens after one."
    torch.manual_seed(0)
    network = GPT(1024, LENGTH + 1, width=256, num_layers=4, num_heads=HEADS).eval()
    prompt = torch.zeros(1, 1, dtype=torch.int64)

    def written(cached: bool) -> None:
        write(network, prompt, LENGTH, temperature=0.0, cached=cached)

    with_cache, without = best_of(ROUNDS, lambda: written(True), lambda: written(False))
    what = f"GPT, 4 layers of 256, {LENGTH} tokens, with a cache"
    return [
        Row(what, f"{LENGTH / with_cache:.0f} tokens/s"),
        Row("the same without", f"{LENGTH / without:.0f} tokens/s"),
        Row("with / without", f"{without / with_cache:.1f}", "> 1", with_cache < without),
    ]


def naive(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    "Causal attention with all weights written out."
    length = query.shape[-2]
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ value


@torch.no_grad()
def attention() -> list[Row]:
    "One layer's attention over 1,024 tokens."
    torch.manual_seed(0)
    sides = torch.randn(3, 1, HEADS, 1024, WIDTH).unbind()

    def fused() -> Tensor:
        return F.scaled_dot_product_attention(*sides, is_causal=True)

    apart = (fused() - naive(*sides)).abs().max().item()
    ours, other = best_of(5, fused, lambda: naive(*sides))
    return [
        Row("causal attention over 1,024 tokens, fused", f"{1000 * ours:.1f} ms"),
        Row("the same by a softmax that is written out", f"{1000 * other:.1f} ms"),
        Row("fused / written out", f"{ours / other:.2f}", "<= 1", ours <= other),
        Row("largest difference", f"{apart:.1e}", "< 1e-5", apart < 1e-5),
    ]


def measure() -> list[Row]:
    "Everything about VQGAN's second stage."
    return [*writing(), *attention()]
