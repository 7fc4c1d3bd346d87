// What shows a scan: volumes in WebGL, or pictures of its planes where there is no WebGL.

import type { ScanData } from "./api";

export interface ViewState {
  threshold: number;
  opacity: number;
  map: boolean;
  solid: boolean;
  restoration: boolean;
  radiological: boolean;
  rarity: boolean;
}

export interface View {
  show(data: ScanData, state: ViewState): Promise<void>;
  adjust(data: ScanData, state: ViewState): void;
  goTo(place: number[], index: number[]): void;
}

export function hasWebGL(): boolean {
  return document.createElement("canvas").getContext("webgl2") !== null;
}
