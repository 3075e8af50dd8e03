// What a report does when a reader touches it: a read-out at the pointer, runs that go and come by the legend, and everything
// open on paper. Without it the page is whole. It fetches nothing, and writes nothing but text.
"use strict";
const SVG = "http://www.w3.org/2000/svg";
const hidden = new Set();
const numbers = (text) => (text ? text.split(",").map(Number) : []);

for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const of = button.dataset.of;
    hidden.has(of) ? hidden.delete(of) : hidden.add(of);
    button.setAttribute("aria-pressed", String(!hidden.has(of)));
    for (const each of document.querySelectorAll(`.chart [data-of="${of}"], .lasts [data-of="${of}"]`)) {
      each.classList.toggle("off", hidden.has(of));
    }
  });
}

// A line's numbers, read when they are first asked for; steps are written as the distance from the one before.
const read = new WeakMap();
function lineOf(group) {
  if (!read.has(group)) {
    let step = 0;
    read.set(group, {
      steps: numbers(group.dataset.s).map((more) => (step += more)),
      values: numbers(group.dataset.v),
      low: numbers(group.dataset.l),
      high: numbers(group.dataset.h),
    });
  }
  return read.get(group);
}

function nearest(steps, wanted) {
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < wanted) low = middle + 1; else high = middle;
  }
  return low > 0 && wanted - steps[low - 1] <= steps[low] - wanted ? low - 1 : low;
}

const readout = document.createElement("div");
readout.className = "readout off";
document.body.append(readout);
const number = (value) => String(Number(value.toPrecision(6)));
const element = (name, className, text) => {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
};

function show(svg, event) {
  const box = svg.getBoundingClientRect();
  const [left, top, width, height] = svg.dataset.box.split(" ").map(Number);
  const [from, to] = svg.dataset.x.split(" ").map(Number);
  const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
  const wanted = from + ((x - left) / width) * (to - from);
  const lines = [...svg.querySelectorAll(".l")].filter((each) => !hidden.has(each.dataset.of));
  const found = lines.map((group) => {
    const line = lineOf(group), at = nearest(line.steps, wanted);
    return { group, line, at, step: line.steps[at], value: line.values[at] };
  });
  if (!found.length) return hide(svg);
  const step = found.reduce((best, each) => (Math.abs(each.step - wanted) < Math.abs(best.step - wanted) ? each : best)).step;
  readout.replaceChildren(element("b", "", `step ${step.toLocaleString("en")}`));
  for (const { group, line, step: mine, at, value } of found) {
    const legend = document.querySelector(`.legend [data-of="${group.dataset.of}"]`);
    const row = document.createElement("div");
    const label = [legend.textContent, group.dataset.label].filter(Boolean).join(" · ");
    row.append(element("i", `swatch c${group.dataset.of % 8}`, ""), element("span", "", label));
    let said = Number.isFinite(value) ? number(value) : "–";
    if (Number.isFinite(line.low[at])) said += ` (${number(line.low[at])} – ${number(line.high[at])})`;
    if (mine !== step) said += ` at ${mine.toLocaleString("en")}`;
    row.append(element("b", "", said));
    readout.append(row);
  }
  let cursor = svg.querySelector(".cursor");
  if (!cursor) {
    cursor = document.createElementNS(SVG, "path");
    cursor.setAttribute("class", "cursor");
    svg.append(cursor);
  }
  cursor.setAttribute("d", `M${left + ((step - from) / (to - from)) * width} ${top}v${height}`);
  cursor.classList.remove("off");
  readout.classList.remove("off");
  const own = readout.getBoundingClientRect();
  const right = event.clientX + 16 + own.width > innerWidth;
  readout.style.left = `${right ? Math.max(4, event.clientX - own.width - 16) : event.clientX + 16}px`;
  readout.style.top = `${Math.min(event.clientY + 12, innerHeight - own.height - 8)}px`;
}

function hide(svg) {
  readout.classList.add("off");
  svg.querySelector(".cursor")?.classList.add("off");
}

for (const svg of document.querySelectorAll(".chart")) {
  svg.addEventListener("pointermove", (event) => show(svg, event));
  svg.addEventListener("pointerleave", () => hide(svg));
}

const opened = [];
addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details:not([open])")) {
    each.open = true;
    opened.push(each);
  }
});
addEventListener("afterprint", () => {
  for (const each of opened.splice(0)) each.open = false;
});
