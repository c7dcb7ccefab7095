"Trains two small players, as a process that can be interrupted, killed or multiplied."
import argparse
import sys
import time

import torch
from blocks import Blocks, Duel, optim

from semsynth.training import Devices, SynthesisData, TrainOptions, fit

OPTIONS = TrainOptions(
    num_steps=10, batch_size=4, log_every=3, checkpoint_every=4, sample_every=0,
    ema_decay=0.9, warmup_steps=3,
)


def slowly(batch):
    time.sleep(0.05)
    return batch


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.5)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = Duel(args.dropout)
    data = SynthesisData(Blocks(resolution=16), slowly, OPTIONS)
    run = fit(
        model, data, optim(model), OPTIONS, args.run_dir, resume=args.resume,
        devices=Devices(cpu_processes=args.processes),
    )
    return 0 if run.finished else 130


if __name__ == "__main__":
    sys.exit(main())
