"""A loss of a user's own, written where a test wants it: the one of docs/howto/loss.md."""

from pathlib import Path

from tests.support.command_line import page_blocks

DIVIDES_ON_ITS_OWN = '''

import torch


class DividesOnItsOwn(HardNegatives):
    """The mean over the anchors of each worker."""

    def terms(self, pairs):
        [ratio] = super().terms(pairs)
        mean = ratio.numerator / ratio.denominator.clamp_min(1)
        return [Ratio(mean, torch.ones_like(mean))]


class NoLoss:
    pass
'''


def write_losses(folder: Path, name: str = "my_losses") -> Path:
    """Write the loss of the page, and two wrong ones, as a module; return the file."""
    path = folder / f"{name}.py"
    path.write_text(page_blocks("loss.md", "python")[0] + DIVIDES_ON_ITS_OWN)
    return path
