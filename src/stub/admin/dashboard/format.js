// Numbers for people.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** 1536 -> "1.5 KiB". */
export function bytes(count) {
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit + 1 < UNITS.length) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 || Number.isInteger(value) ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

/** Bytes per second. */
export const throughput = (rate) => `${bytes(rate)}/s`;

/** 12.34 -> "12.3", 1234 -> "1,234", 0.05 -> "0.05". */
export function number(value) {
  if (value === 0) return "0";
  if (value < 1) return value.toFixed(2);
  if (value < 100 && !Number.isInteger(value)) return value.toFixed(1);
  return Math.round(value).toLocaleString("en");
}

/** Milliseconds; "–" for what is not known. */
export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0 ms";
  if (value >= 1000) return `${(value / 1000).toFixed(1)} s`;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

/** A part of one; "–" for what is not known. */
export const percent = (part) => (part === null || part === undefined ? "–" : `${(part * 100).toFixed(part < 0.1 ? 1 : 0)} %`);

/** 192000 ms -> "3 m 12 s". */
export function duration(value) {
  const seconds = Math.max(0, value / 1000);
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const pairs = [[86400, "d", 3600, "h"], [3600, "h", 60, "m"], [60, "m", 1, "s"]];
  const [large, largeUnit, small, smallUnit] = pairs.find(([size]) => seconds >= size);
  return `${Math.floor(seconds / large)} ${largeUnit} ${Math.floor((seconds % large) / small)} ${smallUnit}`;
}

/** The time of day. */
export const clock = (time) => new Date(time).toLocaleTimeString("en-GB");

/** A moment: the time of day, with the date unless it is today. */
export function moment(time) {
  const date = new Date(time);
  const today = date.toDateString() === new Date().toDateString();
  return today ? clock(time) : `${date.toLocaleDateString("en-CA")} ${clock(time)}`;
}

/** How long ago a moment was. */
export const since = (time) => duration(Date.now() - new Date(time).getTime());
