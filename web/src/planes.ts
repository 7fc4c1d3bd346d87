// Planes as pictures that the server draws, for browsers without WebGL.

import { address, made, type ScanData } from "./api";
import type { View, ViewState } from "./view";

export class Planes implements View {
  private at: number[] = [];
  private data: ScanData | null = null;
  private state: ViewState | null = null;

  constructor(private stage: HTMLElement, private moved: (text: string) => void) {}

  async show(data: ScanData, state: ViewState): Promise<void> {
    const shape = data.volumes.scan ?? data.volumes.map ?? [];
    if (this.data?.name !== data.name) this.at = data.components[0]?.peak_index ?? shape.map((n) => Math.floor(n / 2));
    this.data = data;
    const axes = shape.length === 3 ? [2, 1, 0] : [2];
    this.stage.replaceChildren(...axes.map((axis) => this.pane(axis, shape)));
    this.adjust(data, state);
  }

  adjust(data: ScanData, state: ViewState): void {
    if (this.data?.name !== data.name) return;
    this.state = state;
    this.paint();
  }

  goTo(_: number[], index: number[]): void {
    this.at = index;
    this.paint();
  }

  private pane(axis: number, shape: number[]): HTMLElement {
    const box = made("figure", "", "plane");
    const picture = document.createElement("img");
    picture.dataset.axis = String(axis);
    picture.alt = `Plane across axis ${axis + 1} of ${this.data?.name ?? "the scan"}`;
    box.append(picture);
    if (shape.length === 3) {
      const slider = document.createElement("input");
      slider.type = "range";
      slider.max = String((shape[axis] ?? 1) - 1);
      slider.dataset.axis = String(axis);
      slider.setAttribute("aria-label", `Plane across axis ${axis + 1}`);
      slider.addEventListener("input", () => { this.at[axis] = Number(slider.value); this.paint(); });
      box.append(slider);
    }
    return box;
  }

  private paint(): void {
    const { data, state } = this;
    if (!data || !state) return;
    for (const part of this.stage.querySelectorAll<HTMLElement>("[data-axis]")) {
      const axis = Number(part.dataset.axis);
      const index = this.at[axis] ?? 0;
      if (part instanceof HTMLInputElement) part.value = String(index);
      else (part as HTMLImageElement).src = address("plane.png", {
        name: data.name, axis, index, low: state.threshold, high: data.range?.high ?? 1,
        opacity: state.map ? state.opacity : 0, radiological: state.radiological,
      });
    }
    this.moved(`voxel ${this.at.join(", ")}`);
  }
}
