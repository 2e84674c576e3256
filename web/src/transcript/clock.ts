/** Times for people: `1:05`, `1:02:03`. */

/** Format seconds as m:ss or h:mm:ss. */
export function formatClock(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  const pad = (value: number) => String(value).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${pad(minutes)}:${pad(whole % 60)}` : `${minutes}:${pad(whole % 60)}`;
}

/** Format seconds with hundredths, as a field that can be edited. */
export function formatExact(seconds: number): string {
  const hundredths = Math.round(Math.max(0, seconds) * 100);
  return `${formatClock(Math.floor(hundredths / 100))}.${String(hundredths % 100).padStart(2, "0")}`;
}

/** Parse `1:02:03.4`, `2:03` or `123.4`, with a point or a comma; undefined if it is no time. */
export function parseClock(text: string): number | undefined {
  const parts = text.trim().replace(",", ".").split(":");
  if (parts.length > 3 || !parts.every((part) => /^\d+(\.\d+)?$/.test(part))) return undefined;
  return parts.reduce((sum, part) => sum * 60 + Number(part), 0);
}
