// The worklist: sorted, filtered, and only the rows that are seen are in the page.

import { element, figure, made, type Cell, type Row } from "./api";

const ROW = 30;
const GAP = 10;
const BEYOND = 8;
const NUMBERS = new Set(["score", "p_value", "q_value"]);
const OTHERS = "minmax(84px, 1fr)";
const WIDTHS: Record<string, string> = {
  scan: "minmax(104px, 2fr)", verdict: "56px", score: "62px", p_value: "44px", q_value: "50px",
  anomalous: "84px", label: "60px", notes: "minmax(120px, 2fr)", left_out: "minmax(120px, 2fr)",
};
const NAMES: Record<string, string> = { p_value: "p", q_value: "q", anomalous: "decision", left_out: "left out" };

type Test = (row: Row) => boolean;

export class Worklist {
  rows: Row[] = [];
  columns: string[] = [];
  shown: Row[] = [];
  chosen: string | null = null;
  private order = { column: "score", down: true };
  private head = made("div", "", "row head");
  private body = made("div", "", "rows");
  private filter = element<HTMLInputElement>("filter");

  constructor(private box: HTMLElement, private choose: (name: string) => void) {
    this.head.setAttribute("role", "row");
    box.append(this.head, this.body);
    box.addEventListener("scroll", () => this.paint());
    new ResizeObserver(() => this.paint()).observe(box);
    this.filter.addEventListener("input", () => this.refresh());
    this.body.addEventListener("click", (event) => {
      const name = (event.target as HTMLElement).closest<HTMLElement>("[data-scan]")?.dataset.scan;
      if (name !== undefined) this.choose(name);
    });
  }

  fill(columns: string[], rows: Row[]): void {
    this.rows = rows;
    this.columns = ["scan", "verdict", ...columns.filter((c) => c !== "scan")];
    if (!columns.includes("score")) this.order = { column: "scan", down: false };
    const tracks = this.columns.map((c) => WIDTHS[c] ?? OTHERS);
    const least = tracks.reduce((sum, track) => sum + Number(/\d+/.exec(track)?.[0] ?? 0) + GAP, GAP);
    this.box.style.setProperty("--tracks", tracks.join(" "));
    this.box.style.setProperty("--least", `${least}px`);
    this.box.setAttribute("aria-rowcount", String(rows.length + 1));
    this.heading();
    this.refresh();
  }

  private heading(): void {
    this.head.replaceChildren(...this.columns.map((column) => {
      const button = made("button", NAMES[column] ?? column.replaceAll("_", " "));
      const cell = made("div", "", NUMBERS.has(column) ? "num" : "");
      const here = this.order.column === column;
      cell.setAttribute("role", "columnheader");
      cell.setAttribute("aria-sort", here ? (this.order.down ? "descending" : "ascending") : "none");
      button.setAttribute("type", "button");
      button.addEventListener("click", () => {
        this.order = { column, down: here ? !this.order.down : NUMBERS.has(column) && column !== "p_value" };
        this.heading();
        this.refresh();
      });
      cell.append(button);
      return cell;
    }));
  }

  refresh(): void {
    const test = compiled(this.filter.value);
    const { column, down } = this.order;
    this.shown = this.rows.filter(test);
    this.shown.sort((a, b) => compare(a[column], b[column], down) || compare(a.scan, b.scan, false));
    this.body.style.height = `${this.shown.length * ROW}px`;
    const flagged = this.shown.filter((row) => row.anomalous === true).length;
    const all = this.shown.length === this.rows.length ? "" : ` of ${this.rows.length}`;
    element("count").textContent = `${this.shown.length}${all} scans, ${flagged} anomalous`;
    const read = this.rows.filter((row) => row.verdict !== null).length;
    element("progress").textContent = `${read} read`;
    this.paint();
  }

  // The neighbour of the chosen scan in the order shown; the first one where none is chosen.
  step(by: number): void {
    const at = this.shown.findIndex((row) => row.scan === this.chosen);
    const next = this.shown[at < 0 ? 0 : Math.min(Math.max(at + by, 0), this.shown.length - 1)];
    if (next) this.choose(String(next.scan));
  }

  mark(name: string): void {
    this.chosen = name;
    const at = this.shown.findIndex((row) => row.scan === name);
    const room = this.box.clientHeight - ROW;
    if (at >= 0 && at * ROW < this.box.scrollTop) this.box.scrollTop = at * ROW;
    if (at >= 0 && (at + 1) * ROW > this.box.scrollTop + room) this.box.scrollTop = (at + 1) * ROW - room;
    this.paint();
  }

  private paint(): void {
    // A list that has become shorter is still scrolled as it was until the browser lays it out.
    const top = Math.max(0, Math.min(this.box.scrollTop, this.shown.length * ROW - this.box.clientHeight));
    const first = Math.max(0, Math.floor(top / ROW) - BEYOND);
    const last = Math.ceil((top + this.box.clientHeight) / ROW) + BEYOND;
    this.body.replaceChildren(...this.shown.slice(first, last).map((row, i) => this.line(row, first + i)));
  }

  private line(row: Row, at: number): HTMLElement {
    const line = made("div", "", "row");
    line.setAttribute("role", "row");
    line.setAttribute("aria-rowindex", String(at + 2));
    line.setAttribute("aria-selected", String(row.scan === this.chosen));
    line.dataset.scan = String(row.scan);
    line.style.top = `${at * ROW}px`;
    line.append(...this.columns.map((column) => {
      const cell = made("div", shownAs(column, row), `cell ${classOf(column, row[column] ?? null)}`);
      cell.setAttribute("role", "gridcell");
      if (cell.textContent) cell.title = cell.textContent;
      return cell;
    }));
    return line;
  }
}

function shownAs(column: string, row: Row): string {
  const value = row[column] ?? null;
  if (column === "anomalous") return value === null ? (row.left_out ? "left out" : "open") : value ? "anomalous" : "normal";
  if (column === "verdict") return value === null ? "" : ({ agree: "right", disagree: "wrong", unsure: "unsure" } as Record<string, string>)[String(value)] ?? "";
  if (column === "label") return value === null ? "" : value ? "lesioned" : "healthy";
  if (value === null) return "";
  return typeof value === "number" ? figure(value) : String(value);
}

function classOf(column: string, value: Cell): string {
  if (column === "anomalous") return value === true ? "flag" : value === false ? "clear" : "open";
  if (column === "verdict" && value !== null) return `said ${String(value)}`;
  return NUMBERS.has(column) ? "num" : "";
}

// Nothing known stands last in either order.
function compare(a: Cell | undefined, b: Cell | undefined, down: boolean): number {
  const [x, y] = [a ?? null, b ?? null];
  if (x === null || y === null) return x === y ? 0 : x === null ? 1 : -1;
  const sign = down ? -1 : 1;
  if (typeof x === "string" || typeof y === "string") {
    return sign * String(x).localeCompare(String(y), undefined, { numeric: true });
  }
  return sign * (Number(x) - Number(y));
}

// Words, all of which must fit: text anywhere, column:text, column>number, flagged, normal, unread, read.
export function compiled(text: string): Test {
  const tests = text.trim().split(/\s+/).filter(Boolean).map(test);
  return (row) => tests.every((each) => each(row));
}

const WORDS: Record<string, Test> = {
  anomalous: (row) => row.anomalous === true,
  normal: (row) => row.anomalous === false,
  unread: (row) => row.verdict === null,
  read: (row) => row.verdict !== null,
  lesioned: (row) => row.label === true,
  healthy: (row) => row.label === false,
};

function test(word: string): Test {
  const known = WORDS[word.toLowerCase()];
  if (known) return known;
  const told = /^(\w+)([:<>])(.*)$/.exec(word);
  if (!told || !told[3]) {
    const wanted = (told?.[1] ?? word).toLowerCase();
    return (row) => Object.values(row).some((value) => typeof value === "string" && value.toLowerCase().includes(wanted));
  }
  const [, name, sign, value] = told as unknown as [string, string, string, string];
  const column = ({ p: "p_value", q: "q_value" } as Record<string, string>)[name] ?? name;
  if (sign === ":") return (row) => shownAs(column, row).toLowerCase().includes(value.toLowerCase());
  const limit = Number(value);
  return (row) => {
    const cell = row[column] ?? null;
    return cell !== null && (sign === ">" ? Number(cell) > limit : Number(cell) < limit);
  };
}
