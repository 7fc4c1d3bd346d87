// What the server says, and how it is asked.

export type Cell = string | number | boolean | null;
export type Row = Record<string, Cell>;
export type Word = "agree" | "disagree" | "unsure";

export interface Run {
  title: string;
  method: string | null;
  chosen: string | null;
  notes: string[];
  version: string;
}

export interface Component {
  voxels: number;
  peak: number;
  peak_index: number[];
  at?: number[];
  volume_mm3?: number;
  area_mm2?: number;
  region?: string | null;
}

export interface ScanData {
  name: string;
  row: Row;
  finding: { decision?: string; why?: string[]; pixel_threshold?: number | null; pixel_shares?: [number, number][]; preprocessing?: { notes?: string[] } };
  components: Component[];
  volumes: Partial<Record<Kind, number[]>>;
  range: { low: number; high: number; start: number } | null;
  raster: boolean;
  picture: boolean;
  problems: string[];
}

export type Kind = "scan" | "map" | "restoration";

export interface Entry {
  id: string;
  time: string;
  reader: string;
  scan: string;
  verdict: Word;
  note: string;
  flagged: boolean | null;
}

export interface Agreement {
  first: string;
  second: string;
  scans: number;
  equal: number;
  kappa: number | null;
  low: number | null;
  high: number | null;
}

export async function ask<T>(path: string, query: Record<string, string> = {}, body?: unknown): Promise<T> {
  const answer = await fetch(address(path, query), body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  }).catch(() => { throw new Error("The viewer doesn't answer: was it ended? Start `normscan view` again."); });
  if (!answer.ok) throw new Error(await reason(answer));
  return (await answer.json()) as T;
}

async function reason(answer: Response): Promise<string> {
  if (answer.status === 403) return "This page belongs to a viewer that was ended. Start `normscan view` again.";
  const told: unknown = await answer.json().catch(() => null);
  const detail = told && typeof told === "object" && "detail" in told ? told.detail : null;
  return typeof detail === "string" ? detail : `The viewer answers ${answer.status}.`;
}

export function address(path: string, query: Record<string, string | number | boolean> = {}): string {
  const text = new URLSearchParams(Object.entries(query).map(([k, v]): [string, string] => [k, String(v)])).toString();
  return `/api/${path}${text ? `?${text}` : ""}`;
}

export function figure(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return String(Number(value.toPrecision(digits)));
}

export function element<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

// Text alone goes into the page: names and notes may hold anything.
export function made(tag: string, text = "", className = ""): HTMLElement {
  const node = document.createElement(tag);
  node.textContent = text;
  if (className) node.className = className;
  return node;
}
