// The scan in three planes with its map, drawn by NiiVue; loaded when the first scan is opened.

import { Niivue, NVImage, SHOW_RENDER, SLICE_TYPE } from "@niivue/niivue";
import { address, figure, type Kind, type ScanData } from "./api";
import { opacityOf, type Shares, share, told } from "./rarity";
import type { View, ViewState } from "./view";

// Inferno without its black end, as in the report: it would darken the scan instead of standing out.
// Only what is above the threshold is drawn: the lowest level is transparent.
const COLOURS = { R: [106, 106, 188, 243, 252], G: [23, 23, 55, 120, 255], B: [110, 110, 84, 25, 164], A: [0, 255, 255, 255, 255], I: [0, 1, 85, 170, 255] };

const RARITY = "rarity.nii";

declare global { interface Window { niivue?: Niivue } }

export class Volumes implements View {
  private panes: { nv: Niivue; kind: Kind; box: HTMLElement }[] = [];
  private loaded = "";
  private turn = 0;
  private at: number[] | null = null;
  private shares: Shares = [];

  constructor(private stage: HTMLElement, private moved: (text: string) => void) {}

  async show(data: ScanData, state: ViewState): Promise<void> {
    const turn = ++this.turn;
    const before = this.loaded === data.name ? this.at : null;
    const wanted: Kind[] = ["scan", ...(state.restoration && data.volumes.restoration ? ["restoration" as Kind] : [])];
    const kinds = data.volumes.scan ? wanted : (["map"] as Kind[]);
    if (this.panes.map((pane) => pane.kind).join() !== kinds.join()) await this.arrange(kinds);
    const buffers = await Promise.all(kinds.map((kind) => fetched(data.name, kind)));
    const map = data.volumes.map && data.range && data.volumes.scan ? await fetched(data.name, "map") : null;
    if (turn !== this.turn) return; // another scan was chosen meanwhile
    const flat = (data.volumes.scan ?? data.volumes.map ?? []).length === 2;
    for (const [i, pane] of this.panes.entries()) {
      const below = await NVImage.loadFromUrl({ url: buffers[i]!, name: "scan.nii", colormap: kinds[i] === "map" ? "score" : "gray" });
      const volumes = [below];
      if (map && data.range && pane.kind === "scan") {
        volumes.push(await NVImage.loadFromUrl({
          url: map, name: "map.nii", colormap: "score", opacity: state.opacity,
          cal_min: state.threshold, cal_max: Math.max(data.range.high, state.threshold + 1e-6),
        }));
      }
      if (turn !== this.turn) return;
      while (pane.nv.volumes.length) pane.nv.removeVolume(pane.nv.volumes[0]!);
      for (const volume of volumes) pane.nv.addVolume(volume);
      pane.nv.setSliceType(sliceType(pane.nv, flat));
    }
    this.loaded = data.name;
    this.shares = data.finding.pixel_shares ?? [];
    this.adjust(data, state);
    if (before) this.goTo(before);
  }

  adjust(data: ScanData, state: ViewState): void {
    if (data.name !== this.loaded) return;
    const flat = (data.volumes.scan ?? data.volumes.map ?? []).length === 2;
    for (const { nv, kind } of this.panes) {
      nv.opts.multiplanarShowRender = state.solid && !flat ? SHOW_RENDER.ALWAYS : SHOW_RENDER.NEVER;
      const mirrored = state.radiological && !data.raster;
      if (nv.opts.isRadiologicalConvention !== mirrored) nv.setRadiologicalConvention(mirrored);
      const over = nv.volumes[1] ?? (kind === "map" ? nv.volumes[0] : undefined);
      if (over && data.range) {
        over.cal_min = state.threshold;
        over.cal_max = Math.max(data.range.high, state.threshold + 1e-6);
        if (kind !== "map") fade(nv, over, state.rarity ? this.shares : [], state.threshold);
        if (kind !== "map") over.opacity = state.map ? state.opacity : 0;
        nv.updateGLVolume();
      }
      nv.drawScene();
    }
  }

  goTo(place: number[]): void {
    this.at = place;
    for (const { nv } of this.panes) {
      nv.scene.crosshairPos = nv.mm2frac([place[0]!, place[1]!, place[2]!]);
      nv.drawScene();
      nv.createOnLocationChange();
    }
  }

  private async arrange(kinds: Kind[]): Promise<void> {
    for (const pane of this.panes.splice(0)) {
      pane.nv.broadcastTo([]);
      pane.nv.gl.getExtension("WEBGL_lose_context")?.loseContext();
    }
    this.stage.replaceChildren();
    for (const kind of kinds) {
      const box = document.createElement("figure");
      const canvas = document.createElement("canvas");
      const caption = document.createElement("figcaption");
      caption.textContent = kind;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${kind} in three planes`);
      box.append(canvas, ...(kinds.length > 1 || kind === "map" ? [caption] : []));
      this.stage.append(box);
      const nv = new Niivue({
        backColor: [0, 0, 0, 1], crosshairColor: [0.45, 0.8, 1, 0.9], crosshairWidth: 0.6, crosshairWidthUnit: "percent", crosshairGap: 6, show3Dcrosshair: true,
        dragAndDropEnabled: false, isColorbar: false, loadingText: "", logLevel: "error", fontMinPx: 11,
      });
      nv.addColormap("score", COLOURS);
      nv.onLocationChange = (location: unknown): void => {
        this.at = Array.from((location as Location).mm ?? []).slice(0, 3);
        this.moved(place(location as Location, this.shares));
      };
      await nv.attachToCanvas(canvas, false);
      this.panes.push({ nv, kind, box });
    }
    const [first, ...others] = this.panes;
    if (first) {
      window.niivue = first.nv;
      first.nv.broadcastTo(others.map((pane) => pane.nv), { "2d": true, "3d": true });
      for (const pane of others) pane.nv.broadcastTo(first.nv, { "2d": true, "3d": true });
    }
  }
}

// Let the opacity of the map say how rare its scores are: NiiVue takes it from a further volume, itself unseen.
function fade(nv: Niivue, map: NVImage, shares: Shares, threshold: number): void {
  const known = nv.volumes.find(({ name }) => name === RARITY);
  map.modulationImage = null;
  if (!shares.length || !(map.img instanceof Uint16Array)) {
    if (known) nv.removeVolume(known);
    return;
  }
  const { scl_slope: slope, scl_inter: first } = map.hdr!;
  const opacities = Float32Array.from({ length: 65536 }, (_, code) => {
    const value = code * slope + first;
    return value > threshold ? opacityOf(value, shares) : 0;
  });
  const rarity = known ?? map.clone();
  rarity.img = Float32Array.from(map.img, (code) => opacities[code]!);
  if (!known) {
    Object.assign(rarity.hdr!, { datatypeCode: 16, numBitsPerVoxel: 32, scl_slope: 1, scl_inter: 0 });
    Object.assign(rarity, { name: RARITY, opacity: 0, cal_min: 0, cal_max: 1 });
    nv.addVolume(rarity);
  }
  map.modulationImage = nv.volumes.indexOf(rarity);
  map.modulateAlpha = 1;
}

interface Location { mm?: ArrayLike<number>; values?: { value: number; name: string }[] }

function place({ mm, values }: Location, shares: Shares): string {
  const at = Array.from(mm ?? []).slice(0, 3).map((v) => v.toFixed(1)).join(", ");
  const read = (values ?? []).filter(({ name }) => name !== RARITY).map(({ name, value }) => `${name.replace(".nii", "")} ${figure(value)}`);
  const map = shares.length ? (values ?? []).find(({ name }) => name === "map.nii") : undefined;
  return [`${at} mm`, ...read, ...(map ? [told(share(map.value, shares))] : [])].join(" · ");
}

async function fetched(name: string, kind: Kind): Promise<ArrayBuffer> {
  const answer = await fetch(address("volume.nii", { name, kind }));
  if (!answer.ok) throw new Error(`The ${kind} can't be shown: ${((await answer.json().catch(() => ({}))) as { detail?: string }).detail ?? answer.status}`);
  return await answer.arrayBuffer();
}

// A single slice is shown alone, in the plane in which it lies.
function sliceType(nv: Niivue, flat: boolean): SLICE_TYPE {
  const shape = nv.volumes[0]?.dimsRAS ?? [];
  const thin = shape.slice(1, 4).indexOf(1);
  if (!flat && thin < 0) return SLICE_TYPE.MULTIPLANAR;
  return [SLICE_TYPE.SAGITTAL, SLICE_TYPE.CORONAL, SLICE_TYPE.AXIAL][thin < 0 ? 2 : thin] ?? SLICE_TYPE.AXIAL;
}
