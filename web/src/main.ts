// The page: a worklist, the chosen scan, what readers say of it.

import { ask, element, figure, made, type Row, type Run, type ScanData } from "./api";
import { FAINT, FULL, NODES, opacityOf, share, told } from "./rarity";
import { Readings } from "./readings";
import { hasWebGL, type View, type ViewState } from "./view";
import { Worklist } from "./worklist";

const state: ViewState = { threshold: 0, opacity: 0.7, map: true, solid: false, restoration: false, radiological: true, rarity: false };
const threshold = element<HTMLInputElement>("threshold");
const opacity = element<HTMLInputElement>("opacity");
const list = new Worklist(element("table"), (name) => { location.hash = `scan=${encodeURIComponent(name)}`; });
const readings = new Readings((latest) => {
  for (const row of list.rows) row.verdict = latest.get(String(row.scan)) ?? null;
  list.refresh();
});
let scan: ScanData | null = null;
let view: Promise<View> | null = null;

async function start(): Promise<void> {
  const [run, table] = await Promise.all([
    ask<Run>("run"),
    ask<{ columns: string[]; rows: (string | number | boolean | null)[][] }>("worklist"),
    readings.load(),
  ]);
  document.title = `${run.title} · normscan`;
  element("title").textContent = [run.title, run.method].filter(Boolean).join(" · ");
  say("notes", run.notes);
  const rows = table.rows.map((cells) => Object.fromEntries(table.columns.map((c, i) => [c, cells[i] ?? null])) as Row);
  for (const row of rows) row.verdict = null;
  list.fill(table.columns, rows);
  readings.tell();
  performance.mark("worklist");
  if (!chosen() && run.chosen) location.hash = `scan=${encodeURIComponent(run.chosen)}`;
  else await open();
  readings.watch();
}

function chosen(): string | null {
  return new URLSearchParams(location.hash.slice(1)).get("scan");
}

async function open(): Promise<void> {
  const name = chosen();
  if (!name) return;
  list.mark(name);
  let data: ScanData;
  try {
    data = await ask<ScanData>("scan", { name });
  } catch (error) {
    say("problems", [String((error as Error).message)]);
    return;
  }
  if (chosen() !== name) return;
  scan = data;
  element("empty").hidden = true;
  element("scan").hidden = false;
  tell(data);
  readings.show(name);
  await draw();
  const peak = data.components[0];
  if (peak && chosen() === name) await goTo(0);
}

function tell(data: ScanData): void {
  const { row, finding } = data;
  element("name").textContent = data.name;
  const p = row.p_value === null || row.p_value === undefined ? "" : `, p ${figure(Number(row.p_value), 2)}`;
  element("told").textContent = row.score === null || row.score === undefined ? "" : `score ${figure(Number(row.score))}${p}: ${finding.decision ?? (row.anomalous === null ? "open" : row.anomalous ? "anomalous" : "within healthy range")}`;
  element("told").className = row.anomalous === true ? "flag" : "";
  const left = row.left_out ? [String(row.left_out)] : [];
  if (!data.volumes.map && !left.length) left.push("There is no map of this scan here. `normscan predict RUN SCAN... --format nifti,view` writes maps and scans.");
  else if (!data.volumes.scan && data.volumes.map) left.push("The scan itself was not kept, so its map stands alone. `normscan predict ... --format nifti,view --overwrite` keeps it.");
  say("problems", [...data.problems, ...left]);
  const why = [...(finding.why ?? []), ...(finding.preprocessing?.notes ?? []), ...(row.notes ? [String(row.notes)] : [])];
  element("why").replaceChildren(...(why.length ? why : ["Nothing was noted."]).map((text) => made("li", text)));
  list_components(data);
  element("tools").hidden = !data.volumes.map && !data.volumes.scan;
  element("toggle-restoration").hidden = !data.volumes.restoration;
  element("toggle-3d").hidden = (data.volumes.map ?? data.volumes.scan ?? []).length === 2;
  element("toggle-side").hidden = data.raster;
  element("toggle-rarity").hidden = !hasWebGL() || !data.range || !data.finding.pixel_shares?.length;
  element("legend").hidden = !data.range;
  if (data.range) {
    state.threshold = data.range.start;
    threshold.value = String(Math.round(1000 * (state.threshold - data.range.low) / (data.range.high - data.range.low)));
  }
  legend();
}

function list_components(data: ScanData): void {
  const parts = data.components;
  if (!parts.length) {
    element("components").replaceChildren(made("p", "None above the pixel threshold.", "quiet"));
    return;
  }
  const table = made("table");
  const region = parts.some((part) => part.region !== undefined);
  const sized = parts.some((part) => part.volume_mm3 !== undefined) ? "mm³" : parts.some((part) => part.area_mm2 !== undefined) ? "mm²" : "voxels";
  const head = made("tr");
  head.append(...["", "peak", sized, "place", ...(region ? ["region"] : [])].map((text) => made("th", text)));
  table.append(head);
  parts.slice(0, 100).forEach((part, i) => {
    const line = made("tr");
    const button = made("button", String(i + 1));
    button.setAttribute("type", "button");
    button.setAttribute("aria-label", `Go to component ${i + 1}`);
    const size = part.volume_mm3 ?? part.area_mm2 ?? part.voxels;
    const first = made("td");
    first.append(button);
    line.append(first, made("td", figure(part.peak)), made("td", figure(size, 3)), made("td", (part.at ?? part.peak_index).map((v) => figure(v, 3)).join(", ")));
    if (region) line.append(made("td", part.region ?? "–"));
    line.addEventListener("click", () => void goTo(i));
    table.append(line);
  });
  const more = parts.length > 100 ? [made("p", `and ${parts.length - 100} more, fainter ones`, "quiet")] : [];
  element("components").replaceChildren(table, ...more);
}

async function draw(): Promise<void> {
  if (!scan) return;
  const stage = element("stage");
  if (!scan.volumes.scan && !scan.volumes.map) {
    view = null;
    stage.replaceChildren();
    if (scan.picture) {
      const picture = document.createElement("img");
      picture.src = `/api/picture.png?name=${encodeURIComponent(scan.name)}`;
      picture.alt = `Anomaly map over ${scan.name}`;
      stage.append(picture);
    }
    return;
  }
  view ??= hasWebGL()
    ? import("./volumes").then((module) => new module.Volumes(stage, (text) => { element("place").textContent = text; }))
    : import("./planes").then((module) => new module.Planes(stage, (text) => { element("place").textContent = text; }));
  if (!hasWebGL()) note("This browser has no WebGL 2, so planes are shown as pictures.");
  const name = scan.name;
  stage.setAttribute("aria-busy", "true");
  try {
    await (await view).show(scan, { ...state });
  } catch (error) {
    if (scan.name === name) note(String((error as Error).message));
  }
  if (scan.name === name) {
    stage.removeAttribute("aria-busy");
    stage.dataset.shown = name;
  }
}

async function adjust(): Promise<void> {
  legend();
  if (scan && view) (await view).adjust(scan, { ...state });
}

async function goTo(number: number): Promise<void> {
  const part = scan?.components[number];
  if (!part || !view) return;
  (await view).goTo(part.at ?? part.peak_index, part.peak_index);
  document.querySelectorAll("#components tr").forEach((line, i) => line.classList.toggle("here", i === number + 1));
}

function legend(): void {
  const range = scan?.range;
  element("threshold-value").textContent = range ? figure(state.threshold, 3) : "";
  element("opacity-value").textContent = `${Math.round(100 * state.opacity)} %`;
  element("low").textContent = range ? figure(state.threshold, 3) : "";
  element("high").textContent = range ? figure(range.high, 3) : "";
  const shares = scan?.finding.pixel_shares ?? [];
  const faded = state.rarity && shares.length > 0 && range ? range : null;
  element("rarity").hidden = !faded;
  element("ramp").style.maskImage = faded
    ? `linear-gradient(90deg, ${Array.from({ length: NODES }, (_, i) => `rgb(0 0 0 / ${opacityOf(state.threshold + (i / (NODES - 1)) * (faded.high - state.threshold), shares).toFixed(3)})`).join(", ")})`
    : "";
  if (faded) element("rarity").textContent = `${told(share(state.threshold, shares))} to ${told(share(faded.high, shares))} among healthy pixels: clear at ${FAINT}, full at ${FULL}`;
}

function say(id: string, texts: string[]): void {
  element(id).replaceChildren(...texts.map((text) => made("p", text)));
}

function note(text: string): void {
  const box = element("problems");
  if (![...box.children].some((child) => child.textContent === text)) box.append(made("p", text));
}

function slide(share: number): void {
  const range = scan?.range;
  if (!range) return;
  threshold.value = String(Math.min(1000, Math.max(0, share)));
  state.threshold = range.low + (Number(threshold.value) / 1000) * (range.high - range.low);
  void adjust();
}

threshold.addEventListener("input", () => slide(Number(threshold.value)));
opacity.addEventListener("input", () => { state.opacity = Number(opacity.value) / 100; void adjust(); });

function toggle(id: string, key: "map" | "solid" | "restoration" | "radiological" | "rarity"): void {
  state[key] = !state[key];
  element(id).setAttribute("aria-pressed", String(state[key]));
  void (key === "restoration" ? draw() : adjust());
}

const toggles = { m: ["toggle-map", "map"], v: ["toggle-3d", "solid"], r: ["toggle-restoration", "restoration"], f: ["toggle-side", "radiological"], p: ["toggle-rarity", "rarity"] } as const;
for (const [id, key] of Object.values(toggles)) element(id).addEventListener("click", () => toggle(id, key));
window.addEventListener("hashchange", () => void open());
element("help").addEventListener("click", help);
element("filter").addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === "Escape") element("table").focus(); });

const KEYS: [string, string][] = [
  ["j k, ↓ ↑", "next, previous scan"], ["a d u", "right, wrong, unsure"], ["n", "note"], ["1 … 9", "go to a component"],
  ["[ ]", "lower, raise the threshold"], ["- +", "lower, raise the opacity"], ["m v r f p", "map, 3D, restoration, convention, opacity by p"], ["/", "filter"], ["?", "keys"],
];

function help(): void {
  const table = made("table");
  for (const [key, text] of KEYS) {
    const line = made("tr");
    line.append(made("th", key), made("td", text));
    table.append(line);
  }
  const filter = made("p", "The filter takes words, all of which must fit: text, site:A, score>3, p<0.05, anomalous, normal, read, unread, lesioned, healthy.", "quiet");
  element("dialog-body").replaceChildren(made("h2", "Keys"), table, filter);
  element<HTMLDialogElement>("dialog").showModal();
}

document.addEventListener("keydown", (event) => {
  const field = event.target instanceof HTMLInputElement && event.target.type !== "range";
  if (field || event.ctrlKey || event.metaKey || event.altKey || element<HTMLDialogElement>("dialog").open) return;
  const actions: Record<string, () => void> = {
    j: () => list.step(1), ArrowDown: () => list.step(1), k: () => list.step(-1), ArrowUp: () => list.step(-1),
    a: () => void readings.give("agree"), d: () => void readings.give("disagree"), u: () => void readings.give("unsure"),
    n: () => element("note").focus(), "/": () => element("filter").focus(), "?": help,
    "[": () => slide(Number(threshold.value) - 20), "]": () => slide(Number(threshold.value) + 20),
    "-": () => fade(-5), "+": () => fade(5), "=": () => fade(5),
  };
  for (const [key, [id, name]] of Object.entries(toggles)) actions[key] = () => { if (!element(id).hidden) toggle(id, name); };
  const digit = Number(event.key);
  const action = digit >= 1 ? (): void => void goTo(digit - 1) : actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

function fade(by: number): void {
  opacity.value = String(Number(opacity.value) + by);
  state.opacity = Number(opacity.value) / 100;
  void adjust();
}

start().catch((error: unknown) => say("notes", [String((error as Error).message)]));
