"use strict";
// Draws the figures that the page carries, compressed, in itself; pins points; keeps a live page up to date.

const $ = id => document.getElementById(id);
const phone = matchMedia("(max-width: 40rem)");
const dark = matchMedia("(prefers-color-scheme: dark)");
const CONFIG = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "zoomIn2d", "zoomOut2d", "autoScale2d"]};
const pins = new Map();
let data, training = null, printing = false;

async function unpack(id) {
  const packed = Uint8Array.from(atob($(id).textContent), letter => letter.charCodeAt(0));
  const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(plain).text();
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const [ink, grid, paper] = ["--ink", "--grid", "--paper"].map(name => style.getPropertyValue(name).trim());
  return printing ? {ink: "#000", grid: "#ccc", paper: "#fff"} : {ink, grid, paper};
}

// The layout in the colours of the page, and with narrow margins where the page is narrow.
function themed(layout) {
  const {ink, grid, paper} = colours();
  const small = phone.matches;
  const out = {...layout, paper_bgcolor: "rgba(0,0,0,0)", font: {...layout.font, color: ink, size: small ? 11 : 13},
    hoverlabel: {bgcolor: paper, bordercolor: grid, font: {color: ink}, align: "left", namelength: -1},
    modebar: {orientation: "v", bgcolor: "rgba(0,0,0,0)", color: grid, activecolor: ink}};
  for (const name of Object.keys(out).filter(name => /^[xy]axis\d*$/.test(name)))
    out[name] = {...out[name], gridcolor: grid, linecolor: grid, zerolinecolor: grid, title: {...out[name].title, font: {size: small ? 10 : 13}}};
  if (small) out.margin = {...layout.margin, l: Math.min(layout.margin.l, 48), r: Math.min(layout.margin.r, 8)};
  return out;
}

function marks(name) {
  const found = [], figure = data.figures[name];
  [...pins.values()].forEach((pin, number) => {
    for (const trace of figure.data)
      if (trace.meta === pin.table)
        trace.customdata.forEach((row, at) => {
          if (row === pin.row) found.push({x: trace.x[at], y: trace.y[at], xref: trace.xaxis || "x", yref: trace.yaxis || "y", text: String(number + 1),
            arrowcolor: colours().ink, arrowsize: .8, ax: 22, ay: -22, bgcolor: colours().paper, bordercolor: colours().ink, borderpad: 2, font: {color: colours().ink, size: 11}});
        });
  });
  return found;
}

function layoutOf(name) {
  const layout = themed(data.figures[name].layout);
  return {...layout, annotations: [...(layout.annotations || []), ...marks(name)]};
}

async function draw() {
  for (const box of document.querySelectorAll("[data-figure]")) {
    const name = box.dataset.figure, figure = data.figures[name];
    box.style.setProperty("--height", `${figure.layout.height}px`);
    if (phone.matches) for (const trace of figure.data) if (trace.marker && trace.marker.showscale) trace.marker = {...trace.marker, showscale: false};
    await Plotly.react(box, figure.data, layoutOf(name), CONFIG);
    if (!box.dataset.ready) {
      box.on("plotly_click", ({points}) => pinPoint(points[0]));
      box.dataset.ready = "yes";
    }
    await new Promise(done => setTimeout(done)); // let the page breathe between figures
  }
  document.body.dataset.drawn = "yes";
}

const restyle = () => document.querySelectorAll("[data-figure][data-ready]").forEach(box => Plotly.relayout(box, layoutOf(box.dataset.figure)));

function record(table, row) {
  return Object.fromEntries(data[table].columns.map((name, at) => [name, data[table].values[row][at]]));
}

// What a pinned row is, whatever its number: rows move as a live ledger grows.
function identity(table, row) {
  const {lambda, choice, finetune_lr, finetune_key} = record(table, row);
  return finetune_key || [lambda, choice, finetune_lr].join();
}

function pinPoint(point) {
  const table = point.data.meta, row = point.customdata;
  if ((table === "runs" || table === "recipes") && row !== null && row !== undefined) pin(table, row);
}

function pin(table, row) {
  const id = `${table}-${row}`;
  if (!pins.has(id)) pins.set(id, {table, row, what: identity(table, row)});
  showPins();
  $(`pin-${id}`).focus();
}

function unpin(id) {
  pins.delete(id);
  showPins();
}

const number = value => typeof value === "number" ? value.toFixed(4) : "-";

function facts(table, row) {
  const of = record(table, row);
  const list = [["lambda", of.lambda], ["fine-tuned at", of.finetune_lr]];
  if (table === "runs") list.push(["seed", of.seed]); else list.push(["seeds", of.seeds]);
  if (data.choices.length > 1) list.push(["choice", Object.entries(data.choices[of.choice]).map(([name, value]) => `${name} ${JSON.stringify(value)}`).join(", ")]);
  for (const loss of ["L_im", "L_ret", "L_ft", "L_pre"]) list.push([loss, number(of[loss])]);
  for (const key of ["pretrain_key", "posttrain_key", "finetune_key"]) if (of[key]) list.push([key.replace("_key", ""), of[key]]);
  return list;
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function showPins() {
  $("pins").replaceChildren(...[...pins].map(([id, {table, row}], place) => {
    const card = element("section", null, {class: "pin", id: `pin-${id}`, tabindex: "-1", "aria-label": `pinned recipe ${place + 1}`});
    const head = element("header", null), close = element("button", "close", {"aria-label": `unpin recipe ${place + 1}`});
    close.onclick = () => unpin(id);
    head.append(element("span", `${place + 1}. ${table === "runs" ? "One run" : "Mean over seeds"}`), close);
    const list = element("dl", null);
    for (const [name, value] of facts(table, row)) list.append(element("dt", name), element("dd", value, /train|tune$/.test(name) ? {class: "key"} : {}));
    card.append(head, list);
    return card;
  }));
  restyle();
}

// Training curves: unpacked when they are first asked for.
async function showTraining() {
  if (!$("training").open) return;
  training = training || JSON.parse(await unpack("packed-training"));
  const level = $("training-lambda").value, seed = $("training-seed").value;
  const chosen = training.stages.filter(stage => (level === "all" || String(stage.lambda) === level) && (seed === "all" || String(stage.seed) === seed));
  for (const kind of ["pretrain", "posttrain", "finetune"]) {
    const traces = chosen.filter(stage => stage.kind === kind).map(stage => ({
      x: stage.x, y: stage.y, mode: "lines", name: stage.name, line: {width: 1.5, color: stage.colour}, opacity: .8, showlegend: false,
      hovertemplate: `${stage.name}<br>%{x:,} tokens<br>loss %{y:.4f}<extra>${stage.key}</extra>`}));
    const axis = {gridcolor: "", automargin: true, zeroline: false, title: {text: "tokens", standoff: 8}};
    const layout = {height: 300, margin: {l: 48, r: 8, t: 30, b: 44}, plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", font: data.font, xaxis: axis,
      yaxis: {...axis, title: {text: ""}}, title: {text: `${training.titles[kind]}: ${traces.length} stages`, font: {size: 14}, x: 0, xref: "paper"}};
    await Plotly.react($(`training-${kind}`), traces, themed(layout), CONFIG);
  }
}

function wire() {
  document.querySelectorAll("button[data-pin]").forEach(button => { button.onclick = () => pin("runs", Number(button.dataset.pin)); });
  if ($("training")) {
    $("training").ontoggle = showTraining;
    $("training-lambda").onchange = $("training-seed").onchange = showTraining;
  }
}

function findPins() {
  const before = [...pins.values()];
  pins.clear();
  for (const {table, what} of before) {
    const row = data[table].values.findIndex((_, at) => identity(table, at) === what);
    if (row >= 0) pins.set(`${table}-${row}`, {table, row, what});
  }
  if (before.length) showPins();
}

async function load() {
  data = JSON.parse(await unpack("packed-data"));
  training = null;
  findPins();
  wire();
  await draw();
  if ($("training")) await showTraining();
}

// A live page: look every two seconds; where the ledger has changed, take the new page's content and keep what is open.
async function follow() {
  try {
    const state = await (await fetch("state.json", {cache: "no-store"})).json();
    $("live").innerHTML = state.html;
    if (state.version !== document.body.dataset.version) {
      const fresh = new DOMParser().parseFromString(await (await fetch("./", {cache: "no-store"})).text(), "text/html");
      const open = [...document.querySelectorAll("details[open][id]")].map(box => box.id);
      for (const part of ["nav", "main"]) document.querySelector(part).replaceWith(fresh.querySelector(part));
      for (const id of ["packed-data", "packed-training"]) if (fresh.getElementById(id)) $(id).textContent = fresh.getElementById(id).textContent;
      $("live").innerHTML = state.html;
      document.body.dataset.version = fresh.body.dataset.version;
      open.forEach(id => { if ($(id)) $(id).open = true; });
      await load();
    }
  } catch (error) {
    $("live").textContent = `The dashboard does not answer: ${error.message}. What stands below is what was known last.`;
  }
  setTimeout(follow, 2000);
}

async function start() {
  const script = document.createElement("script");
  script.textContent = await unpack("packed-plotly");
  document.head.append(script);
  await load();
  dark.addEventListener("change", restyle);
  phone.addEventListener("change", restyle);
  addEventListener("beforeprint", () => { printing = true; restyle(); });
  addEventListener("afterprint", () => { printing = false; restyle(); });
  if (document.body.dataset.version) follow();
}

document.addEventListener("keydown", event => { if (event.key === "Escape" && pins.size) unpin([...pins.keys()].at(-1)); });
start().catch(error => {
  $("broken").hidden = false;
  $("broken").textContent = `The figures cannot be drawn: ${error.message}. A browser of 2023 or later is needed; the tables below are complete.`;
  throw error;
});
