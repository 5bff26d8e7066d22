// Tables that are sorted, filtered, walked through with the keyboard, and updated in place.

import { element, setAttribute, setText } from "./dom.js";

/**
 * A table. `columns` are `{ label, hint?, text(row), value?(row), tone?(row), numeric?, look? }`: `value` is what is sorted by.
 * `key(row)` is what makes a row the same row later. `open(row)` is what Enter and a click do, where there is something.
 */
export class Table {
  #columns;
  #key;
  #open;
  #limit;
  #empty;
  #sort;
  #data = [];
  #rows = new Map();
  #shown = [];
  #heads = [];
  #body = element("tbody");
  #filter = null;
  #count = element("span", { class: "count" });
  #nothing = element("p", { class: "nothing", hidden: true });

  constructor({ title, columns, key, open = null, sort, filter = false, limit = Infinity, empty }) {
    [this.#columns, this.#key, this.#open, this.#limit, this.#empty] = [columns, key, open, limit, empty];
    this.#sort = { column: columns[sort.column], descending: sort.descending ?? false };
    const header = element("header", {}, element("h2", {}, title, " ", this.#count));
    if (filter) {
      this.#filter = element("input", { type: "search", class: "filter", placeholder: "Filter", "aria-label": `Filter ${title.toLowerCase()}`, autocomplete: "off", spellcheck: "false", input: () => this.#render() });
      header.append(this.#filter);
    }
    const head = element("tr");
    for (const column of columns) {
      const button = element("button", { type: "button", click: () => this.#sortBy(column) }, column.label);
      const cell = element("th", { scope: "col", class: column.numeric ? "numeric" : null, title: column.hint }, button);
      this.#heads.push([column, cell]);
      head.append(cell);
    }
    const table = element("table", { "aria-label": title }, element("thead", {}, head), this.#body);
    const scroller = element("div", { class: "scroller" }, table);
    this.#body.addEventListener("keydown", (event) => this.#walk(event));
    this.#body.addEventListener("click", (event) => this.#activate(event.target.closest("tr")));
    this.#body.addEventListener("focusin", (event) => this.#reach(event.target.closest("tr")));
    this.node = element("section", { class: "card table" }, header, scroller, this.#nothing);
  }

  /** Shows these rows; `total` where there are more than these. */
  update(data, total = data.length) {
    this.#data = data;
    setText(this.#count, total === 0 ? "" : String(total));
    this.#render();
  }

  /** Moves the keyboard to the filter. */
  focusFilter() {
    this.#filter?.focus();
    return this.#filter !== null;
  }

  #render() {
    const wanted = (this.#filter?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    const text = (row) => this.#columns.map((column) => column.text(row)).join(" ").toLowerCase();
    const found = wanted.length === 0 ? this.#data : this.#data.filter((row) => wanted.every((word) => text(row).includes(word)));
    this.#shown = [...found].sort((a, b) => this.#compare(a, b)).slice(0, this.#limit);
    for (const [column, cell] of this.#heads) {
      const sorted = column === this.#sort.column ? (this.#sort.descending ? "descending" : "ascending") : null;
      setAttribute(cell, "aria-sort", sorted);
    }
    this.#place();
    this.#nothing.hidden = this.#shown.length > 0;
    setText(this.#nothing, this.#data.length === 0 ? this.#empty : "Nothing matches the filter.");
  }

  #compare(a, b) {
    const { column, descending } = this.#sort;
    const value = column.value ?? column.text;
    const [left, right] = [value(a), value(b)];
    const order = typeof left === "number" ? left - right : String(left).localeCompare(String(right), "en", { numeric: true });
    return (descending ? -order : order) || this.#key(a).toString().localeCompare(this.#key(b).toString());
  }

  // Rows keep their elements, and so the focus and the reader's place, for as long as they are there.
  #place() {
    const focused = this.#body.contains(document.activeElement) ? document.activeElement : null;
    const position = [...this.#body.children].indexOf(focused);
    const keep = new Set();
    let before = null;
    for (const row of this.#shown) {
      const key = String(this.#key(row));
      keep.add(key);
      const node = this.#rows.get(key) ?? this.#make(key);
      node.data = row;
      this.#fill(node, row);
      const next = before === null ? this.#body.firstElementChild : before.nextElementSibling;
      if (node !== next) this.#body.insertBefore(node, next);
      before = node;
    }
    for (const [key, node] of this.#rows) {
      if (keep.has(key)) continue;
      node.remove();
      this.#rows.delete(key);
    }
    const rows = [...this.#body.children];
    // A row that was moved has lost the focus; of one that is gone the next one gets it.
    if (focused !== null && document.activeElement !== focused) {
      (focused.isConnected ? focused : rows[Math.min(position, rows.length - 1)])?.focus({ preventScroll: true });
    }
    if (rows.length > 0 && !rows.some((row) => row.tabIndex === 0)) rows[0].tabIndex = 0;
  }

  #make(key) {
    const cells = this.#columns.map((column) => element("td", { class: column.numeric ? "numeric" : null }, element("span")));
    const node = element("tr", { tabindex: "-1", class: this.#open ? "opens" : null }, ...cells);
    this.#rows.set(key, node);
    return node;
  }

  #fill(node, row) {
    this.#columns.forEach((column, position) => {
      const span = node.children[position].firstElementChild;
      const text = column.text(row);
      setText(span, text);
      const tone = column.tone?.(row);
      setAttribute(span, "class", tone ? `pill ${tone}` : column.look);
      setAttribute(span, "title", text.length > 24 ? text : null);
    });
  }

  #sortBy(column) {
    const same = this.#sort.column === column;
    this.#sort = { column, descending: same ? !this.#sort.descending : Boolean(column.numeric) };
    this.#render();
  }

  #walk(event) {
    const row = event.target.closest("tr");
    const rows = [...this.#body.children];
    const to = { ArrowDown: rows.indexOf(row) + 1, ArrowUp: rows.indexOf(row) - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      rows[Math.min(Math.max(to, 0), rows.length - 1)]?.focus();
    } else if (event.key === "Enter") {
      this.#activate(row);
    }
  }

  // One row is in the order of the Tab key: the one that was last used.
  #reach(row) {
    for (const other of this.#body.children) other.tabIndex = other === row ? 0 : -1;
  }

  #activate(row) {
    if (row && this.#open && !getSelection().toString()) this.#open(row.data);
  }
}
