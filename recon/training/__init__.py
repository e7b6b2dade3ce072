"""Training of depth networks: `train(config)` is what `recon train` runs."""

from recon.training.loop import train

__all__ = ["train"]
