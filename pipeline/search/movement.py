"""How far tiles moved between two dates, beyond the movement of all tiles of these dates.

Two dates differ in season, sun, haze and sensor, and these move every tile. So each date's mean
vector, over the same ground, is subtracted before two vectors are compared; and an angle is judged
by the angles of the other tiles of the same two dates: by the number of robust standard deviations
above their median. Pure functions of arrays; :mod:`pipeline.search.change` reads them.

References
----------
Hampel (1974), The Influence Curve and Its Role in Robust Estimation, JASA 69: median and MAD.
Iglewicz and Hoaglin (1993), How to Detect and Handle Outliers: the score and its limit of 3.5.
"""

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

FEWEST_PAIRS = 30
"""Pairs of tiles that make a median and a spread. With fewer, none of them is judged."""
BEYOND_USUAL = 3.5
"""Scores from here on are outliers by the rule of Iglewicz and Hoaglin."""
SMALLEST_SPREAD_DEGREES = 1.0
"""Least spread of angles: so that a scene that was processed twice has no outliers."""
SMALLEST_SPREAD = 0.01
"""Least spread of gains, in cosine; as that of angles."""
_MAD_TO_SIGMA = 1.4826
# Length that the rounding of stored vectors (float16, relative 2**-11) can give a difference.
_ROUNDING = 1e-3


def centred_angle(
    before_ND: npt.ArrayLike, after_ND: npt.ArrayLike, mean_before_D: Float64, mean_after_D: Float64
) -> Float64:
    """Return the angle (n,) between the vectors of each pair, each less the mean of its date.

    The angle of noise in many dimensions is nearly normal, so that a median and a spread describe
    angles; cosine distances, which are squares of small angles, are skewed.

    Parameters
    ----------
    before_ND, after_ND
        Unit vectors (n, D) of the same tiles at two dates.
    mean_before_D, mean_after_D
        Mean vectors of the dates over the same tiles.

    Returns
    -------
    ndarray
        float64 degrees from 0 to 180; 0 where both vectors are the means, 90 where one of them is.

    References
    ----------
    Kahan (2006), How Futile are Mindless Assessments of Roundoff, section 12: the stable form.

    Examples
    --------
    >>> before = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> centred_angle(before, before + 0.5, before.mean(0), before.mean(0) + 0.5).tolist()
    [0.0, 0.0]
    """
    x, at_x = _directions(np.asarray(before_ND, np.float64) - mean_before_D)
    y, at_y = _directions(np.asarray(after_ND, np.float64) - mean_after_D)
    apart, together = np.linalg.norm(x - y, axis=1), np.linalg.norm(x + y, axis=1)
    angle: Float64 = np.degrees(2 * np.arctan2(apart, together))
    angle[at_x & at_y] = 0.0
    angle[at_x ^ at_y] = 90.0
    return angle


def _directions(x_ND: Float64) -> tuple[Float64, npt.NDArray[np.bool_]]:
    """Return unit vectors (n, D), and which (n,) are too short to have a direction."""
    lengths = np.linalg.norm(x_ND, axis=1)
    short = lengths < _ROUNDING
    return x_ND / np.where(short, 1.0, lengths)[:, None], short


def gain(before_ND: npt.ArrayLike, after_ND: npt.ArrayLike, toward_D: npt.ArrayLike) -> Float64:
    """Return how much more alike (n,) to a query the tiles became: a difference of cosines.

    Parameters
    ----------
    before_ND, after_ND
        Unit vectors (n, D) of the same tiles at two dates.
    toward_D
        The query, of any length but zero.

    Examples
    --------
    >>> gain([[1.0, 0.0]], [[0.0, 1.0]], [0.0, 2.0]).tolist()
    [1.0]
    """
    query = np.asarray(toward_D, np.float64)
    moved = np.asarray(after_ND, np.float64) - np.asarray(before_ND, np.float64)
    difference: Float64 = moved @ (query / np.linalg.norm(query))
    return difference


def robust_scores(values: npt.ArrayLike, smallest_spread: float) -> tuple[Float64, float, float]:
    """Return how far values (n,) are above their median, in robust standard deviations.

    The spread is 1.4826 times the median absolute deviation, which is the standard deviation of a
    normal distribution; half of the values may be changes and move neither median nor spread
    without bound.

    Parameters
    ----------
    values
        (n,), in any unit.
    smallest_spread
        In the same unit; a smaller spread counts as this.

    Returns
    -------
    scores, median, spread
        The scores (n,), and the two numbers that they are measured by.

    Examples
    --------
    >>> scores, median, spread = robust_scores([0.1, 0.2, 0.3, 0.4, 2.0], 0.01)
    >>> round(median, 2), round(spread, 4), scores.round(1).tolist()
    (0.3, 0.1483, [-1.3, -0.7, 0.0, 0.7, 11.5])
    """
    numbers = np.asarray(values, np.float64)
    median = float(np.median(numbers))
    mad = float(np.median(np.abs(numbers - median)))
    spread = max(_MAD_TO_SIGMA * mad, smallest_spread)
    return (numbers - median) / spread, median, spread
