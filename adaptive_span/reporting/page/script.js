// Draws the charts with Plotly, and colours the text. Texts of a run go in as text, never as HTML.
"use strict";
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let onPaper = false;
  const isDark = () => dark.matches && !onPaper;
  const widthOf = (place) => (onPaper ? 640 : place.clientWidth); // pixels; of a sheet with its margins
  // Plotly reads a few tags in names. So none is left in them.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
  const count = (value) => value.toLocaleString("en-US", { maximumFractionDigits: 1 });

  // Told apart also by the colour-blind (after Okabe and Ito), and by their dashes from the ninth line on.
  const PALETTES = {
    light: ["#0072b2", "#d55e00", "#008a68", "#b8559a", "#8a6d00", "#3d4650", "#5b54c4", "#a3262a"],
    dark: ["#5fb5f0", "#f0a13c", "#3ecba0", "#ec9ccb", "#f0e05a", "#d5dae0", "#aaa6ff", "#ff8f85"],
  };
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
  const line = (index) => {
    const palette = PALETTES[isDark() ? "dark" : "light"];
    return { color: palette[index % palette.length], dash: DASHES[Math.floor(index / palette.length) % DASHES.length] };
  };

  const layout = (more) => ({
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("muted") },
    margin: { l: 58, r: 12, t: 14, b: 46 },
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("muted"), font: { color: colour("ink") }, namelength: -1 },
    hovermode: "closest",
    hoverdistance: -1,
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    showlegend: false,
    ...more,
  });
  const axis = (title, more) => ({
    title: { text: title, standoff: 8 },
    gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false, automargin: true, fixedrange: false, ...more,
  });
  const steps = (last) => axis("step", { rangemode: "tozero", separatethousands: true, tickformat: ",", range: [0, last], nticks: 8 });
  const CONFIG = { displayModeBar: false, responsive: true };
  const draw = (place, traces, look) => Plotly.react(place, traces, onPaper ? { ...look, width: widthOf(place) } : look, CONFIG);

  // Powers of two between two lengths, as places and words of a logarithmic axis of tokens.
  const powers = (low, high) => {
    const found = [];
    for (let power = Math.ceil(Math.log2(low) - 1e-9); 2 ** power <= high * 1.0001; power++) found.push(2 ** power);
    return found;
  };

  function drawLoss(place) {
    const unit = place.dataset.label, chosen = runs.filter((run) => run.unit === place.dataset.unit), traces = [];
    const seen = [], lasts = [1], pointed = chosen.length === 1;
    for (const [index, run] of chosen.entries()) {
      const style = line(index), train = pointed ? { ...style, color: colour("muted") } : style;
      for (const split of ["train", "valid"]) {
        const points = run[split];
        if (!points.length || (split === "train" && place.dataset.crowded === "true" && run.valid.length)) continue;
        // What the first steps lose would press all others flat: a chart of many points opens without them.
        const rest = points.filter(([step]) => points.length < 12 || step > 0.08 * run.total).map(([, loss]) => loss);
        seen.push(...rest);
        lasts.push(points[points.length - 1][0]);
        const alone = split === "train" && !run.valid.length;
        traces.push({
          x: points.map(([step]) => step), y: points.map(([, loss]) => loss), mode: "lines",
          name: plain(pointed ? split : short(run.label, innerWidth < 600 ? 30 : 60)), legendgroup: pointed ? split : String(index),
          showlegend: pointed || alone || split === "valid",
          line: { ...(split === "train" ? train : style), width: split === "train" ? 1 : 2.2 },
          opacity: split === "train" && !pointed ? 0.4 : 1,
          hovertemplate: `${split} %{y:.4f} ${unit}<br>step %{x:,}`,
        });
      }
    }
    const low = Math.min(...seen), high = Math.max(...seen), gap = 0.04 * (high - low) + 1e-3;
    const look = { xaxis: steps(Math.max(...lasts)), yaxis: axis(unit, { range: [low - gap, high + gap], nticks: 7, separatethousands: true }), showlegend: true };
    if (!seen.length) look.annotations = [{ text: "no losses logged yet", showarrow: false, x: 0.5, y: 0.5, xref: "paper", yref: "paper" }];
    const rows = Math.ceil(chosen.length / Math.max(1, Math.floor(widthOf(place) / 330)));
    const height = (innerWidth < 600 ? 300 : 400) + 20 * Math.min(rows, 14);
    const legend = { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, itemclick: "toggle" };
    return draw(place, traces, layout({ ...look, height, legend }));
  }

  let run = runs[0], moment = 0, layer = -1, timer = null;
  const scale = () => ({ low: Math.min(run.floor, run.maximum), high: run.maximum });

  function drawHeat() {
    const [step, spans] = run.moments[run.frames[moment]], place = get("heat");
    const { low, high } = scale(), heads = spans[0].length, width = widthOf(place) - 130;
    const cell = Math.max(16, Math.min(spans.length > 8 ? 30 : 52, width / heads));
    const text = spans.map((layer) => layer.map((span) => count(Math.round(span))));
    const ticks = powers(low, high);
    const every = Math.ceil(ticks.length / 7), shown = ticks.filter((_, index) => (ticks.length - 1 - index) % every === 0);
    const trace = {
      type: "heatmap", z: spans.map((layer) => layer.map((span) => Math.log2(span))), customdata: spans, text,
      zmin: Math.log2(low), zmax: Math.max(Math.log2(high), Math.log2(low) + 0.01), colorscale: "Viridis", xgap: 2, ygap: 2,
      texttemplate: width / heads >= 32 ? "%{text}" : "", textfont: { size: 11 },
      hovertemplate: "layer %{y}, head %{x}<br>%{customdata:,.1f} tokens<extra></extra>",
      colorbar: {
        title: { text: "tokens", side: "right" }, thickness: 12, outlinewidth: 0, ypad: 0, xpad: 6,
        tickvals: shown.map(Math.log2), ticktext: shown.map(count),
      },
    };
    const ticked = (title, length) => axis(title, { showgrid: false, tickmode: "linear", dtick: Math.ceil(length / 16), tick0: 0, fixedrange: true, showline: false });
    const height = Math.max(innerWidth < 600 ? 240 : 330, spans.length * cell + 70);
    get("step").textContent = `${count(step)} of ${count(run.total)}`;
    get("moment").setAttribute("aria-valuetext", `step ${step}`);
    if (get("span-table").open) tabulateSpans();
    return draw(place, [trace], layout({ height, hoverdistance: 20, xaxis: ticked("head", heads), yaxis: ticked("layer", spans.length), margin: { l: 48, r: 8, t: 8, b: 44 } }));
  }

  function tabulateSpans() {
    const [, spans] = run.moments[run.frames[moment]];
    const header = ["layer", ...spans[0].map((_, head) => `head ${head}`)];
    fillTable(get("span-table").querySelector("table"), header, spans.map((heads, index) => [index, ...heads.map(count)]));
  }

  function fillTable(table, header, rows) {
    const make = (name, text, more) => Object.assign(document.createElement(name), { textContent: text, ...more });
    const head = document.createElement("thead"), body = document.createElement("tbody");
    head.append(document.createElement("tr"));
    head.firstChild.append(...header.map((text, index) => make("th", text, { scope: "col", className: index ? "n" : "" })));
    for (const [first, ...rest] of rows) {
      const made = document.createElement("tr");
      made.append(make("th", first, { scope: "row" }), ...rest.map((text) => make("td", text, { className: "n" })));
      body.append(made);
    }
    table.replaceChildren(head, body);
  }

  function drawEvolution() {
    const place = get("evolution"), { low, high } = scale(), x = run.moments.map(([step]) => step);
    const layers = run.moments[0][1].length, traces = [], last = run.moments[run.moments.length - 1][1];
    const shades = isDark() ? [0.25, 1] : [0, 0.82];
    for (let each = 0; each < layers; each++) {
      if (layer >= 0 && each !== layer) continue;
      for (let head = 0; head < last[each].length; head++) {
        const shade = viridis(shades[0] + ((shades[1] - shades[0]) * each) / Math.max(1, layers - 1));
        traces.push({
          x, y: run.moments.map(([, spans]) => spans[each][head]), mode: "lines", name: `layer ${each}, head ${head}`,
          line: layer < 0 ? { color: shade, width: 1.4 } : { ...line(head), width: 1.8 },
          hovertemplate: "%{y:,.1f} tokens<br>step %{x:,}", showlegend: layer >= 0,
        });
      }
    }
    // The furthest heads are named at the end of their lines, a little lower where two names would touch.
    const ends = traces.map((trace) => [trace.name.replace(/layer (\d+), head (\d+)/, "L$1 H$2"), trace.y[trace.y.length - 1]]);
    const annotations = [], apart = 0.05 * Math.log10((1.3 * high) / (low / 1.3));
    let above = Infinity;
    for (const [name, span] of ends.sort((a, b) => b[1] - a[1]).slice(0, 8)) {
      const end = Math.log10(span), y = Math.min(end, above - apart);
      if (span < 1.3 * low || end - y > 2 * apart) continue;
      above = y;
      annotations.push({ text: name, x: x[x.length - 1], y, xanchor: "left", yanchor: "middle", xshift: 4, showarrow: false, font: { size: 11 } });
    }
    const bound = (y, dash) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: colour("muted"), width: 1, dash } });
    const named = (y, text, yanchor) => ({ text, xref: "paper", x: 0, y: Math.log10(y), xanchor: "left", yanchor, showarrow: false, font: { size: 11 } });
    annotations.push(named(high, `maximum ${count(high)}`, "bottom"), named(low, `floor ${count(low)}`, "top"));
    const now = { type: "line", yref: "paper", y0: 0, y1: 1, x0: 0, x1: 0, line: { color: colour("accent"), width: 1 } };
    const ticks = powers(low, high);
    const y = axis("span in tokens", { type: "log", range: [Math.log10(low / 1.3), Math.log10(high * 1.3)], tickvals: ticks, ticktext: ticks.map(count) });
    const look = {
      xaxis: steps(Math.max(run.total, x[x.length - 1])), yaxis: y, annotations, shapes: [bound(low, "dot"), bound(high, "dot"), now],
      height: Math.max(330, innerWidth < 600 ? 330 : get("heat").clientHeight) + (layer < 0 ? 0 : 50), margin: { l: 58, r: 50, t: 14, b: 46 },
      showlegend: layer >= 0, legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0 },
    };
    return draw(place, traces, layout(look));
  }

  const markMoment = () => {
    const step = run.moments[run.frames[moment]][0];
    return Plotly.relayout(get("evolution"), { "shapes[2].x0": step, "shapes[2].x1": step });
  };

  function viridis(place) {
    const known = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
    const at = Math.min(place * 4, 3.999), below = Math.floor(at), part = at - below;
    return `rgb(${known[below].map((value, index) => Math.round(value + part * (known[below + 1][index] - value))).join()})`;
  }

  // A text by loss: each piece is a word, or a character of one or more bytes.
  const bounds = () => (run.text.level === "byte" ? [0.5, 1, 2, 4, 8] : [1, 2, 4, 8, 12]); // bits
  const level = (bits) => bounds().filter((bound) => bits >= bound).length;
  const NAMES = { "\n": "line end", "\t": "tab", " ": "space" };
  let pieces = [], here = -1;

  function showText() {
    const text = run.text, words = text && text.level === "word";
    // A piece, several of them, its parts, what the mean is taken over, and how many stand before one in the table.
    const [one, many, parts, each, before] = {
      byte: ["character", "characters", "the character's bytes", "byte", 30],
      word: ["word", "words", "the word", "word", 6], subword: ["subword", "subwords", "the subword", "subword", 10],
    }[text ? text.level : "byte"];
    get("no-text").hidden = Boolean(text);
    get("with-text").hidden = !text;
    get("about-text").textContent = text
      ? `The first ${many} of ${text.split} by the weights of step ${count(text.step)}. The darker the ground and the thicker the line below, the more bits ${parts} cost: what the model did not expect. Point at the text, or use the arrow keys in it.`
      : "";
    if (!text) return;
    pieces = text.pieces.map(([piece, ...nats]) => ({ piece, bits: nats.map((nat) => nat / Math.LN2) }));
    const nodes = [];
    for (const [index, { piece, bits }] of pieces.entries()) {
      const made = document.createElement("span");
      made.className = bits.length ? `t l${level(mean(bits))}` : "t";
      made.dataset.index = index;
      made.textContent = piece === "\n" ? "⏎\n" : piece === "<eos>" ? "⏎\n" : piece;
      nodes.push(made);
      if (words && piece !== "<eos>") nodes.push(" ");
    }
    get("pieces").replaceChildren(...nodes);
    const lows = [0, ...bounds()];
    get("legend").replaceChildren(...lows.map((low, index) => {
      const item = document.createElement("li"), sample = document.createElement("span");
      sample.className = `t l${index}`;
      sample.textContent = "abc";
      item.append(sample, index === 5 ? `${low} bits and more` : `${low} to ${lows[index + 1]}${index ? "" : " bits"}`);
      return item;
    }));
    const worst = pieces.map((near, index) => ({ ...near, index })).filter((near) => near.bits.length);
    worst.sort((a, b) => mean(b.bits) - mean(a.bits));
    const around = (from, to) => pieces.slice(Math.max(0, from), to).map((near) => near.piece).join(words ? " " : "");
    fillTable(get("surprises"), [one, "bits", "probability", "text before it"],
      worst.slice(0, 20).map(({ piece, bits, index }) => [name(piece), mean(bits).toFixed(2), chance(mean(bits)), around(index - before, index)]));
    here = -1;
    get("reading").textContent = `Together ${(mean(pieces.flatMap((each) => each.bits))).toFixed(3)} bits per ${each}.`;
  }

  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
  const name = (piece) => NAMES[piece] || piece;
  const chance = (bits) => {
    const percent = 100 * 2 ** -bits;
    return percent >= 0.01 ? `${percent.toPrecision(3)} %` : "under 0.01 %";
  };

  function point(index) {
    if (index < 0 || index >= pieces.length) return;
    const nodes = get("pieces").querySelectorAll(".t");
    if (here >= 0) nodes[here].classList.remove("here");
    nodes[(here = index)].classList.add("here");
    const { piece, bits } = pieces[index], strong = document.createElement("b");
    strong.textContent = name(piece);
    const parts = bits.length > 1 ? `, its ${run.text.level === "subword" ? "subwords" : "bytes"} ${bits.map((bit) => bit.toFixed(2)).join(" + ")}` : "";
    get("reading").replaceChildren(strong, bits.length ? ` cost ${mean(bits).toFixed(2)} bits (probability ${chance(mean(bits))})${parts}` : " is where the text begins: it is not scored");
  }

  get("pieces").addEventListener("mouseover", (event) => {
    if (event.target.dataset.index !== undefined) point(Number(event.target.dataset.index));
  });
  get("pieces").addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowDown: 10, ArrowLeft: -1, ArrowUp: -10 }[event.key];
    if (!way || !pieces.length) return;
    event.preventDefault();
    point(Math.max(0, Math.min(pieces.length - 1, here + way)));
    get("pieces").querySelectorAll(".t")[here].scrollIntoView({ block: "nearest" });
  });

  function play() {
    if (timer) return stop();
    const slider = get("moment");
    if (moment >= run.frames.length - 1) moment = -1;
    get("play").textContent = "❚❚";
    get("play").setAttribute("aria-label", "Pause");
    timer = setInterval(() => {
      if (moment >= run.frames.length - 1) return stop();
      slider.value = ++moment;
      drawHeat();
      markMoment();
    }, 160);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    get("play").textContent = "▶";
    get("play").setAttribute("aria-label", "Play the training");
  }

  function showSpans() {
    const known = run.moments.length > 0;
    get("no-spans").hidden = known;
    get("with-spans").hidden = !known;
    const moved = run.moments.length > 1;
    get("no-time").hidden = !known || moved;
    get("slider").hidden = get("over-time").hidden = !moved;
    if (!known) return Promise.resolve();
    if (!moved) return drawHeat();
    return Promise.all([drawHeat(), drawEvolution().then(markMoment)]);
  }

  function choose(index) {
    stop();
    run = runs[index];
    layer = -1;
    moment = Math.max(0, run.frames.length - 1);
    get("moment").max = moment;
    get("moment").value = moment;
    const layers = run.moments.length ? run.moments[0][1].length : 0;
    get("layer").replaceChildren(new Option("all, coloured from the first to the last", -1));
    for (let each = 0; each < layers; each++) get("layer").add(new Option(`layer ${each}`, each));
    showText();
    return showSpans();
  }

  const losses = () => Promise.all([...document.querySelectorAll("[data-chart=loss]")].map(drawLoss));
  const redraw = () => Promise.all([losses(), showSpans()]);

  get("moment").addEventListener("input", (event) => {
    stop();
    moment = Number(event.target.value);
    drawHeat();
    markMoment();
  });
  get("layer").addEventListener("change", (event) => {
    layer = Number(event.target.value);
    drawEvolution().then(markMoment);
  });
  get("play").addEventListener("click", play);
  get("span-table").addEventListener("toggle", () => run.moments.length && tabulateSpans());
  if (get("run")) get("run").addEventListener("change", (event) => choose(Number(event.target.value)));
  dark.addEventListener("change", redraw);
  for (const [event, paper] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(event, () => {
      onPaper = paper;
      if (runs.length === 1) document.querySelectorAll("#settings details").forEach((each) => { each.open = paper; });
      redraw();
    });
  }
  Promise.all([choose(0), losses()]).then(() => document.documentElement.classList.add("drawn"));
})();
