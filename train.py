"The same as `semsynth train …`: python train.py --dataset cityscapes --model pix2pix --gpus 1"

import sys

from semsynth.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
