
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const view = document.getElementById("view");
  const tokens = data.tokens_per_chunk;
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const percent = (x) => (x * 100).toFixed(x < 0.1 ? 2 : 1) + " %";
  const micro = (us) => us < 1000 ? us.toFixed(0) + " \u00b5s" : (us / 1000).toFixed(2) + " ms";

  // Which chunks a set has, as a lookup table.
  for (const sequence of data.sequences)
    for (const span of sequence.spans) {
      span.has = new Uint8Array(sequence.chunks);
      span.count = 0;
      for (const [first, count] of span.resident) {
        span.has.fill(1, first, first + count);
        span.count += count;
      }
      span.order = span.scores.map((s, c) => [s === null ? -Infinity : s, c]).sort((a, b) => b[0] - a[0]);
      span.rank = new Map(span.order.map(([, c], i) => [c, i + 1]));
    }

  const usable = data.sequences.map((s, i) => i).filter((i) => data.sequences[i].spans.length > 0);
  const choose = make("select", { "aria-label": "sequence" }, ...usable.map((i) => {
    const s = data.sequences[i];
    return make("option", { value: i }, `${s.name || s.index} (${s.spans.length} sets)`);
  }));
  const shading = make("select", { "aria-label": "shading" },
    make("option", { value: "mass" }, "attention paid"), make("option", { value: "score" }, "the indexer's score"));
  const summary = make("span");
  const scale = make("span", { class: "scale" });
  const scaleText = make("span");
  const canvas = make("canvas", { tabindex: "0", role: "img",
    "aria-label": "Resident chunks over time; arrow keys move from cell to cell" });
  const facts = make("div", { "aria-live": "polite" }), text = make("div", { class: "text" });
  view.append(
    make("div", { class: "bar" }, make("label", {}, "sequence ", choose), make("label", {}, "shaded by ", shading), summary,
      make("span", {}, scale, scaleText)),
    make("div", { class: "map" }, canvas),
    make("div", { class: "facts" }, facts, make("div", {}, text)),
    make("p", { class: "note" }, "A column is the time that one resident set was in force, a row a chunk of the context. " +
      "Filled cells were resident, darker ones were looked at more; what is left empty lay in slower memory. " +
      "Point at a cell, or click to hold it; arrow keys move." + (data.cut ? " The trace's last line was not whole and is left out." : "")));

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (part) => {
    const [a, b] = dark.matches ? [[44, 62, 84], [120, 200, 255]] : [[208, 224, 240], [8, 48, 107]];
    return `rgb(${a.map((x, i) => Math.round(x + (b[i] - x) * part)).join(",")})`;
  };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  let sequence, cursor = null, held = false;
  const box = { left: 58, right: 8, top: 40, bottom: 34 };

  // How dark a cell is, 0 to 1; attention is spread over orders of magnitude.
  const part = (span, chunk) => {
    if (shading.value === "score") {
      const rank = span.rank.get(chunk);
      return rank === undefined ? 0.35 : 1 - (rank - 1) / Math.max(span.order.length, 1);
    }
    if (!span.measured) return 0.5;
    const mass = span.mass[chunk] || 0;
    return mass <= 0 ? 0 : Math.min(Math.max(1 + Math.log10(mass) / 3, 0), 1);
  };

  const geometry = () => {
    const width = canvas.clientWidth, inner = width - box.left - box.right;
    const height = Math.min(Math.max(sequence.chunks * 4, 220), 620);
    return { width, inner, height, column: inner / sequence.spans.length, row: height / sequence.chunks };
  };

  const draw = () => {
    const g = geometry(), ratio = devicePixelRatio || 1;
    canvas.style.height = g.height + box.top + box.bottom + "px";
    canvas.width = Math.round(g.width * ratio);
    canvas.height = Math.round((g.height + box.top + box.bottom) * ratio);
    const to = canvas.getContext("2d");
    to.scale(ratio, ratio);
    to.fillStyle = css("--empty");
    to.fillRect(box.left, box.top, g.inner, g.height);
    const gap = g.column > 6 ? 1 : 0;
    const rows = Math.min(sequence.chunks, Math.round(g.height * ratio));
    sequence.spans.forEach((span, i) => {
      const x = box.left + i * g.column;
      for (let r = 0; r < rows; ++r) {
        // Where chunks are thinner than a pixel, a row shows the darkest of its chunks.
        const first = Math.floor(r * sequence.chunks / rows), end = Math.max(Math.floor((r + 1) * sequence.chunks / rows), first + 1);
        let most = -1;
        for (let c = first; c < end; ++c) if (span.has[c]) most = Math.max(most, part(span, c));
        if (most < 0) continue;
        to.fillStyle = colour(most);
        to.fillRect(x, box.top + r * g.height / rows, Math.max(g.column - gap, 0.5), g.height / rows + 0.3);
      }
    });
    // The share that is resident, above.
    const most = Math.max(...sequence.spans.map((s) => s.count / sequence.chunks), 0.01);
    to.strokeStyle = css("--mark");
    to.beginPath();
    sequence.spans.forEach((span, i) => {
      const y = box.top - 6 - 24 * (span.count / sequence.chunks) / most;
      to.lineTo(box.left + i * g.column, y);
      to.lineTo(box.left + (i + 1) * g.column, y);
    });
    to.stroke();
    to.fillStyle = css("--soft");
    to.font = "11px system-ui, sans-serif";
    to.textAlign = "right";
    to.fillText(percent(most), box.left - 6, box.top - 22);
    for (let i = 0; i <= 4; ++i)
      to.fillText(Math.round(sequence.chunks * i / 4) * tokens, box.left - 6, box.top + g.height * i / 4 + (i === 0 ? 8 : i === 4 ? 0 : 4));
    to.textAlign = "left";
    const every = Math.ceil(sequence.spans.length * 60 / Math.max(g.inner, 60));
    for (let i = 0; i < sequence.spans.length; i += every)
      to.fillText(sequence.spans[i].first, box.left + i * g.column, box.top + g.height + 14);
    to.fillText("token from which the set served", box.left, box.top + g.height + 29);
    if (cursor) {
      to.strokeStyle = css("--mark");
      to.lineWidth = 2;
      to.strokeRect(box.left + cursor.span * g.column - 1, box.top + cursor.chunk * g.row - 1, g.column + 2, Math.max(g.row, 1) + 2);
    }
  };

  const list = (title, pairs) => make("div", {}, make("h2", {}, title),
    make("dl", {}, ...pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))])));

  const tell = () => {
    facts.replaceChildren();
    text.replaceChildren();
    if (!cursor) {
      facts.append(list("Point at a cell", []));
      return;
    }
    const span = sequence.spans[cursor.span], c = cursor.chunk, resident = span.has[c];
    const cell = [["tokens", `${c * tokens} to ${(c + 1) * tokens - 1}`], ["resident", resident ? "yes" : "no"]];
    if (span.measured && resident)
      cell.push(["attention", `${percent(span.mass[c] || 0)}, largest of layers and heads, mean of ${span.measured} queries`]);
    if (span.rank.has(c)) cell.push(["score", `${span.scores[c] ?? "not a number"}, ${span.rank.get(c)} of ${span.order.length}`]);
    const set = [["chosen at", `token ${span.position} (${span.reason.replace("_", " ")})`],
      ["served", `tokens ${span.first} to ${span.end - 1}`],
      ["resident", `${span.count} of ${sequence.chunks} chunks, ${percent(span.count / sequence.chunks)}`],
      ["recalled", `${span.recalled}${span.unreadable ? `, ${span.unreadable} unreadable` : ""}`],
      ["took", `${micro(span.score_us)} to score, ${micro(span.recall_us)} to recall`]];
    if (span.staleness) set.push(["late by", `${span.staleness} steps`]);
    if (span.stage !== "normal") set.push(["fallback", span.stage]);
    facts.append(list(`Chunk ${c}`, cell), document.createElement("br"), list(`Set ${cursor.span + 1} of ${sequence.spans.length}`, set));
    const said = sequence.texts[c];
    text.append(said === undefined ? "The trace has no text of this chunk." : said);
    if (span.text) text.append(make("h2", { style: "margin-top:0.8rem" }, "Generated meanwhile"), span.text);
  };

  const move = (span, chunk) => {
    cursor = { span: Math.min(Math.max(span, 0), sequence.spans.length - 1), chunk: Math.min(Math.max(chunk, 0), sequence.chunks - 1) };
    draw();
    tell();
  };
  const at = (event) => {
    const g = geometry(), r = canvas.getBoundingClientRect();
    const x = event.clientX - r.left - box.left, y = event.clientY - r.top - box.top;
    if (x < 0 || y < 0 || x >= g.inner || y >= g.height) return null;
    return [Math.floor(x / g.column), Math.floor(y / g.row)];
  };
  canvas.addEventListener("mousemove", (event) => {
    const cell = at(event);
    if (cell && !held) move(...cell);
  });
  canvas.addEventListener("click", (event) => {
    const cell = at(event);
    held = cell !== null && !held;
    if (cell) move(...cell);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Escape") held = false;
    if (!step) return;
    event.preventDefault();
    const from = cursor || { span: 0, chunk: 0 };
    move(from.span + step[0], from.chunk + step[1]);
  });

  const show = () => {
    sequence = data.sequences[Number(choose.value)];
    cursor = null;
    held = false;
    const share = sequence.spans.reduce((sum, s) => sum + s.count, 0) / sequence.spans.length / sequence.chunks;
    const measured = sequence.spans.some((s) => s.measured);
    summary.replaceChildren(make("b", {}, percent(share)), ` of ${sequence.chunks} chunks resident, `, make("b", {}, sequence.spans.length),
      " sets", sequence.given_up ? `, ${sequence.given_up} given up` : "");
    if (!measured) shading.value = "score";
    shading.options[0].disabled = !measured;
    scale.style.background = `linear-gradient(90deg, ${colour(0)}, ${colour(1)})`;
    scaleText.textContent = shading.value === "mass" ? "0.1 to 100 % of the attention" : "last to first";
    draw();
    tell();
  };
  choose.addEventListener("change", show);
  shading.addEventListener("change", () => { scaleText.textContent = shading.value === "mass" ? "0.1 to 100 % of the attention" : "last to first"; draw(); });
  dark.addEventListener("change", show);
  addEventListener("resize", draw);
  const longest = usable.reduce((a, b) => data.sequences[b].spans.length > data.sequences[a].spans.length ? b : a, usable[0]);
  choose.value = longest;
  show();
})();
