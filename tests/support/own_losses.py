"""A loss of a user's own, written where a test wants it: the one of docs/howto/loss.md."""

import re
from pathlib import Path

from tests.support.paths import REPOSITORY

PAGE = REPOSITORY / "docs" / "howto" / "loss.md"
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


def page_blocks(language: str) -> list[str]:
    """The blocks of the page in a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def write_losses(folder: Path, name: str = "my_losses") -> Path:
    """Write the loss of the page, and two wrong ones, as a module; return the file."""
    path = folder / f"{name}.py"
    path.write_text(page_blocks("python")[0] + DIVIDES_ON_ITS_OWN)
    return path
