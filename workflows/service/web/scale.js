// The meaning of a score: the share of random pairs of tiles that are less alike.

// From hardly more alike than random tiles to as alike as one pair in ten thousand.
const STEPS = [[0.5, 0], [0.9, 0.3], [0.99, 0.55], [0.999, 0.8], [0.9999, 1]];
export const COLOURS = [0, "#5b4b9a", 0.35, "#2f7fa8", 0.6, "#3aa687", 0.8, "#b5c334", 1, "#ffd23f"];

/** The score that a share of pairs does not reach. */
function scoreAt({ shares, scores }, share) {
  return scores[Math.max(0, shares.findIndex((one) => one >= share))];
}

/**
 * What scores are measured by: the pairs of tiles. They say nothing about the scores of words, which
 * are measured by the hits that are shown, and by as much again below them.
 */
export function scaleOf(hits, pairs) {
  const ofWords = hits.length && (hits[0].closer_than ?? null) === null;
  if (!pairs || !ofWords) return pairs;
  const [best, worst] = [hits[0].score, hits.at(-1).score];
  const least = worst - Math.max(best - worst, 0.01);
  return {
    shares: STEPS.map(([share]) => share),
    scores: STEPS.map(([, shade]) => least + shade * (best - least)),
  };
}

/** Scores and shades from 0 to 1, ascending, for an interpolation; without pairs the scores themselves. */
export function stops(pairs) {
  if (!pairs) return [[0, 0], [1, 1]];
  const rising = [];
  for (const [share, shade] of STEPS) {
    const score = scoreAt(pairs, share);
    if (!rising.length || score > rising.at(-1)[0]) rising.push([score, shade]);
  }
  return rising;
}

/** The shade of a score: 0 is ordinary, 1 the most alike. */
export function shadeOf(score, pairs) {
  const known = stops(pairs);
  const next = known.findIndex(([at]) => at > score);
  if (next === 0) return 0;
  if (next < 0) return 1;
  const [[low, from], [high, to]] = [known[next - 1], known[next]];
  return from + (to - from) * (score - low) / (high - low);
}

/** "closer than 99.9 % of pairs", rounded down; empty when the index does not know. */
export function closerThan(share) {
  if (share === null || share === undefined) return "";
  const digits = share >= 0.9999 ? 2 : share >= 0.99 ? 1 : 0;
  const floor = Math.floor(share * 100 * 10 ** digits + 1e-6) / 10 ** digits;
  return `closer than ${floor.toFixed(digits)} % of pairs`;
}
