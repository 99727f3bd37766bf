// Charts of the last minutes, as SVG that moves to the left. All functions depend on their arguments alone.
//
// An SVG is 300 units wide, one for each second, and 100 high; CSS sets its size and colours. Text stands beside the
// SVG, not in it, so that it is not stretched.

export const SPAN = 300; // seconds
const HEIGHT = 100;
const GAP = 3; // seconds without a value, after which a line is interrupted

const SVG = "http://www.w3.org/2000/svg";

/** An SVG with a path for each of these classes; `trace` sets their courses. */
export function canvas(...classes) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${SPAN} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  for (const name of classes) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    svg.append(path);
  }
  return svg;
}

/** Set the course of the path of this class. */
export function trace(svg, name, course) {
  svg.querySelector(`.${name}`).setAttribute("d", course);
}

/** The smallest of 1, 2, 5, 10, 20, … that is not below `value` or `least`. */
export function scale(value, least) {
  const wanted = Math.max(value, least);
  const power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= wanted * 0.999999);
}

/**
 * The value that this part of all did not exceed, of which `counts` says how many were up to each of `bounds` and in
 * the end how many there were; null if there were none. Within a bucket they are taken to lie evenly.
 */
export function quantile(bounds, counts, part) {
  const wanted = part * counts[counts.length - 1];
  if (wanted <= 0) return null;
  const bucket = counts.findIndex((number) => number >= wanted);
  const [low, fewer] = bucket ? [bounds[bucket - 1], counts[bucket - 1]] : [0, 0];
  const high = bounds[bucket] ?? low; // of what is beyond the last bound nothing else is known
  return low + ((high - low) * (wanted - fewer)) / (counts[bucket] - fewer);
}

/** The course of a line through `points` of [time, value or null], oldest first, seen at `now`. */
export function line(points, now, top) {
  return runs(points)
    .map((run) => "M" + run.map((point) => at(point, now, top)).join("L") + (run.length > 1 ? "" : "h0.01"))
    .join("");
}

/** The same, closed to the ground. */
export function area(points, now, top) {
  return runs(points)
    .map((run) => {
      const [first, last] = [run[0], run[run.length - 1]].map(([time]) => x(time, now));
      return `M${first} ${HEIGHT}L${run.map((point) => at(point, now, top)).join("L")}L${last} ${HEIGHT}Z`;
    })
    .join("");
}

/** Full-height blocks for the seconds in which `points` of [time, state] have this state. */
export function band(points, now, state) {
  let course = "";
  points.forEach(([time, is], index) => {
    const until = index + 1 < points.length ? points[index + 1][0] : now;
    if (is === state) course += `M${x(time, now)} 0H${x(Math.min(until, time + GAP), now)}V${HEIGHT}H${x(time, now)}Z`;
  });
  return course;
}

const x = (time, now) => Math.max(0, SPAN - (now - time)).toFixed(1);

const at = ([time, value], now, top) => `${x(time, now)} ${(HEIGHT * (1 - value / top)).toFixed(1)}`;

function runs(points) {
  const found = [];
  let before = -Infinity;
  for (const point of points) {
    if (point[1] === null) continue;
    if (point[0] - before > GAP) found.push([]);
    found[found.length - 1].push(point);
    before = point[0];
  }
  return found;
}
