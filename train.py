"""Train a model: ``python train.py vgg16-cp-trl --data PATH`` is ``fer train vgg16-cp-trl --data PATH``."""

import sys

from fer.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
