// Verdicts: given, saved at once, watched for those of other tabs and readers, held against each other.

import { ask, element, figure, made, type Agreement, type Entry, type Word } from "./api";

const PAUSE = 4000;
const SAID: Record<Word, string> = { agree: "right", disagree: "wrong", unsure: "unsure" };

export class Readings {
  private entries: Entry[] = [];
  private scan = "";
  private reader = element<HTMLInputElement>("reader");
  private note = element<HTMLInputElement>("note");

  constructor(private changed: (latest: Map<string, string>) => void) {
    this.reader.value = localStorage.getItem("reader") ?? "";
    this.reader.addEventListener("input", () => localStorage.setItem("reader", this.reader.value));
    this.reader.addEventListener("change", () => { this.tell(); this.show(this.scan); });
    for (const button of document.querySelectorAll<HTMLButtonElement>("[data-verdict]")) {
      button.addEventListener("click", () => void this.give(button.dataset.verdict as Word));
    }
    element("verdict").addEventListener("submit", (event) => {
      event.preventDefault();
      const mine = this.mine();
      if (mine) void this.give(mine.verdict);
      else this.say("Say right, wrong or unsure; the note goes with it.", true);
    });
    this.note.addEventListener("keydown", (event) => { if (event.key === "Escape") this.note.blur(); });
    element("agreement").addEventListener("click", () => void this.compare());
  }

  async load(): Promise<void> {
    const told = await ask<{ entries: Entry[]; unreadable: number }>("verdicts");
    this.entries = told.entries;
  }

  // Verdicts of other tabs and viewers appear within seconds.
  watch(): void {
    const look = async (): Promise<void> => {
      if (document.hidden) return;
      const before = this.entries.length;
      await this.load().catch(() => undefined);
      if (this.entries.length !== before) { this.tell(); this.show(this.scan, false); }
    };
    setInterval(() => void look(), PAUSE);
    document.addEventListener("visibilitychange", () => void look());
  }

  // The worklist shows the reader's own verdict, or that of any reader where no name is given.
  tell(): void {
    const name = this.name();
    const latest = new Map<string, string>();
    for (const entry of this.entries) if (!name || entry.reader === name) latest.set(entry.scan, entry.verdict);
    this.changed(latest);
  }

  show(scan: string, fresh = true): void {
    this.scan = scan;
    const mine = this.mine();
    if (fresh) {
      this.note.value = mine?.note ?? "";
      this.say(mine ? "saved" : "");
    }
    for (const button of document.querySelectorAll<HTMLButtonElement>("[data-verdict]")) {
      button.setAttribute("aria-pressed", String(button.dataset.verdict === mine?.verdict));
    }
    const of = this.entries.filter((entry) => entry.scan === scan).reverse();
    element("readings-head").hidden = of.length === 0;
    element("readings").replaceChildren(...of.slice(0, 50).map((entry) =>
      made("li", `${entry.reader}: ${SAID[entry.verdict]}${entry.note ? `, “${entry.note}”` : ""} · ${new Date(entry.time).toLocaleString()}`)));
  }

  async give(verdict: Word): Promise<void> {
    if (!this.scan) return;
    if (!this.name()) {
      this.say("Say who reads first: your sign, at the top.", true);
      this.reader.focus();
      return;
    }
    const scan = this.scan;
    try {
      const entry = await ask<Entry>("verdicts", {}, { reader: this.name(), scan, verdict, note: this.note.value });
      this.entries.push(entry);
      this.tell();
      if (this.scan === scan) this.show(scan);
    } catch (error) {
      this.say(`Not saved: ${String((error as Error).message)}`, true);
    }
  }

  private name(): string {
    return this.reader.value.split(/\s+/).filter(Boolean).join(" ");
  }

  private mine(): Entry | undefined {
    return this.entries.filter((entry) => entry.scan === this.scan && entry.reader === this.name()).at(-1);
  }

  private say(text: string, wrong = false): void {
    element("saved").textContent = text;
    element("saved").className = wrong ? "wrong" : "";
  }

  private async compare(): Promise<void> {
    const body = element("dialog-body");
    element<HTMLDialogElement>("dialog").showModal();
    try {
      const pairs = await ask<Agreement[]>("agreement");
      const table = made("table");
      const head = made("tr");
      head.append(...["", "scans", "equal", "Cohen's kappa", "95 % interval"].map((text) => made("th", text)));
      table.append(head);
      for (const pair of pairs) {
        const line = made("tr");
        const ends = pair.low === null ? "–" : `${figure(pair.low, 2)} to ${figure(pair.high, 2)}`;
        line.append(made("th", `${pair.first} and ${pair.second}`), made("td", String(pair.scans)), made("td", `${Math.round(100 * pair.equal)} %`), made("td", figure(pair.kappa, 2)), made("td", ends));
        table.append(line);
      }
      const said = "Of the last verdict of each reader; unsure ones are left out. Readers saw what the detector had decided, which draws them to it.";
      body.replaceChildren(made("h2", "Agreement"), ...(pairs.length ? [table, made("p", said, "quiet")] : [made("p", "There are no verdicts yet.")]));
    } catch (error) {
      body.replaceChildren(made("p", String((error as Error).message)));
    }
  }
}
