// How rare a score is among healthy pixels: their share above it, the p-value of a pixel by itself.

export type Shares = [number, number][];

const LEAST = 1e-4; // the shares of the detector are known no better
// From transparent to full: as high as 1 in 10 healthy pixels, and as 1 in 1000.
export const FAINT = 0.1;
export const FULL = 0.001;
export const NODES = 33;

export function share(value: number, shares: Shares): number {
  const at = shares.findIndex(([score]) => score >= value);
  if (at < 0) return LEAST;
  const [high, above] = shares[at]!;
  if (at === 0 || high === value) return Math.max(above, LEAST);
  const [low, below] = shares[at - 1]!;
  const part = (value - low) / (high - low);
  const [from, to] = [below, above].map((one) => Math.log(Math.max(one, LEAST))) as [number, number];
  return Math.exp(from + part * (to - from));
}

// 0 to 1.
export function opacityOf(value: number, shares: Shares): number {
  const part = Math.log(FAINT / share(value, shares)) / Math.log(FAINT / FULL);
  return Math.min(1, Math.max(0, part));
}

export function told(p: number): string {
  return p <= LEAST ? `p < ${LEAST}` : `p ${Number(p.toPrecision(2))}`;
}
