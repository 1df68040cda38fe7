// The canvas of supports and query. Gradio provides `element`, `props`, `server` and `watch`; `props.value` is what the
// server gets: {pictures: [{token, width, height, strokes: [{tool, size, points}]}]}, in pixels of the picture.
const MOST_BYTES = 30e6, MOST_HEIGHT = 420, TOOLS = ["scribble", "box", "outline", "brush", "eraser"];
const MASK = "#ff8c00", SCRIBBLE = "#ffd400", BOX = "#00e0ff";
const HINTS = {
  scribble: "Draw a line on the object.",
  box: "Drag a box around the object.",
  outline: "Draw around the object: the inside is its mask, all else is background.",
  brush: "Paint all of the object: the rest is background.",
  eraser: "Take away from the mask.",
};
const root = element.querySelector(".du-canvas");
const canvas = root.querySelector("canvas"), stage = root.querySelector(".du-stage");
const empty = root.querySelector(".du-empty"), note = root.querySelector(".du-note");
const strip = root.querySelector(".du-strip"), file = root.querySelector("input[type=file]");
const pen = root.querySelector(".du-pen input"), canDraw = root.dataset.draw === "true";
let pictures = [], current = -1, tool = TOOLS[0], stroke = null, cursor = null, byKeys = false, busy = 0;

const shown = () => pictures[current];
const tenth = (value) => Math.round(value * 10) / 10;
const say = (text, bad = false) => { note.textContent = text; note.classList.toggle("du-bad", bad); };
const penSize = (picture) => Math.max(2, Math.round(Math.min(picture.width, picture.height) * pen.value / 100));

function commit() {
  const plain = pictures.map(({ token, width, height, strokes }) => ({ token, width, height, strokes }));
  props.value = JSON.parse(JSON.stringify({ pictures: plain }));
}

// ---- drawing

function path(ctx, points, scale) {
  ctx.beginPath();
  points.forEach(([x, y], i) => (i ? ctx.lineTo(x * scale, y * scale) : ctx.moveTo(x * scale, y * scale)));
  if (points.length === 1) ctx.lineTo(points[0][0] * scale, points[0][1] * scale);
}

function line(ctx, points, scale, width, colour) {
  path(ctx, points, scale);
  Object.assign(ctx, { lineWidth: width, strokeStyle: colour, lineCap: "round", lineJoin: "round" });
  ctx.stroke();
}

function maskLayer(strokes, width, height, scale) {
  const layer = Object.assign(document.createElement("canvas"), { width, height });
  const ctx = layer.getContext("2d");
  for (const { tool, size, points } of strokes) {
    ctx.globalCompositeOperation = tool === "eraser" ? "destination-out" : "source-over";
    if (tool !== "outline") { line(ctx, points, scale, size * scale, MASK); continue; }
    path(ctx, points, scale);
    ctx.fillStyle = MASK;
    ctx.fill("evenodd");
  }
  return layer;
}

function redraw() {
  const picture = shown();
  canvas.hidden = !picture;
  empty.hidden = Boolean(picture);
  if (!picture || !picture.image.complete || !stage.clientWidth) return;
  const fit = Math.min(stage.clientWidth / picture.width, MOST_HEIGHT / picture.height);
  const dots = window.devicePixelRatio || 1, scale = fit * dots;
  const width = Math.max(1, Math.round(picture.width * scale)), height = Math.max(1, Math.round(picture.height * scale));
  Object.assign(canvas, { width, height });
  Object.assign(canvas.style, { width: `${width / dots}px`, height: `${height / dots}px` });
  const ctx = canvas.getContext("2d");
  ctx.drawImage(picture.image, 0, 0, width, height);
  const strokes = stroke ? [...picture.strokes, stroke] : picture.strokes;
  ctx.globalAlpha = 0.5;
  ctx.drawImage(maskLayer(strokes.filter((each) => TOOLS.indexOf(each.tool) > 1), width, height, scale), 0, 0);
  ctx.globalAlpha = 1;
  for (const { tool, size, points } of strokes) {
    if (tool === "scribble") {
      const wide = Math.max(4 * dots, size * scale);
      line(ctx, points, scale, wide + 2 * dots, "#000");
      line(ctx, points, scale, wide, SCRIBBLE);
    } else if (tool === "box") {
      const [[ax, ay], [bx, by]] = points.map(([x, y]) => [x * scale, y * scale]);
      for (const [wide, colour] of [[4, "#000"], [2, BOX]]) {
        Object.assign(ctx, { lineWidth: wide * dots, strokeStyle: colour });
        ctx.strokeRect(ax, ay, bx - ax, by - ay);
      }
    }
  }
  if (stroke && stroke.tool === "outline") line(ctx, stroke.points, scale, 2 * dots, "#fff");
  if (byKeys && cursor && document.activeElement === canvas) {
    for (const [wide, colour] of [[4, "#000"], [2, "#fff"]]) {
      const [x, y] = [cursor[0] * scale, cursor[1] * scale], arm = 12 * dots;
      line(ctx, [[x - arm, y], [x + arm, y]], 1, wide * dots, colour);
      line(ctx, [[x, y - arm], [x, y + arm]], 1, wide * dots, colour);
    }
  }
}

function begin(point) {
  const size = penSize(shown());
  stroke = { tool, size, points: tool === "box" ? [point, point] : [point] };
  redraw();
}

function extend(point) {
  if (stroke.tool === "box") stroke.points = [stroke.points[0], point];
  else stroke.points.push(point);
  redraw();
}

function finish() {
  const done = stroke;
  stroke = null;
  if (!done) return;
  const [[ax, ay], [bx, by]] = [done.points[0], done.points[done.points.length - 1]];
  const small = done.tool === "box" ? Math.min(Math.abs(bx - ax), Math.abs(by - ay)) < 2 : false;
  if (small || (done.tool === "outline" && done.points.length < 3)) say(HINTS[done.tool]);
  else { shown().strokes.push(done); commit(); say(drawn()); }
  redraw();
}

function drawn() {
  const counts = TOOLS.map((name) => [name, shown().strokes.filter((each) => each.tool === name).length]);
  const words = counts.filter(([, count]) => count).map(([name, count]) => `${count} × ${name}`);
  return words.length ? `Drawn: ${words.join(", ")}.` : HINTS[tool];
}

function undo() {
  if (shown()?.strokes.pop()) { commit(); say(drawn()); redraw(); }
}

function clear() {
  if (shown()) { shown().strokes = []; stroke = null; commit(); say(HINTS[tool]); redraw(); }
}

function choose(name) {
  tool = name;
  root.querySelectorAll("[data-tool]").forEach((each) => each.setAttribute("aria-pressed", each.dataset.tool === name));
  if (canDraw && shown()) say(HINTS[name]);
}

// ---- pictures

function select(index) {
  current = Math.min(index, pictures.length - 1);
  stroke = cursor = null;
  const several = canDraw && pictures.length > 1;
  strip.replaceChildren(...pictures.map((picture, i) => thumbnail(picture, i, several)), ...(shown() ? [adder()] : []));
  say(shown() ? [shown().note, canDraw ? drawn() : ""].filter(Boolean).join(". ") : "");
  redraw();
}

function button(text, action, attributes = {}) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text, onclick: action });
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  return made;
}

function adder() {
  return button(canDraw ? "Add a support" : "Replace", () => file.click(), { class: "du-add" });
}

function thumbnail(picture, index, several) {
  const holder = Object.assign(document.createElement("span"), { className: "du-thumb" });
  const name = canDraw ? `support ${index + 1}` : "the query";
  if (several) {
    const pick = button("", () => select(index), { "aria-label": `Show ${name}`, "aria-pressed": index === current });
    pick.style.backgroundImage = `url(${picture.image.src})`;
    holder.append(pick);
  }
  const remove = () => { pictures.splice(index, 1); commit(); select(Math.max(0, current - (index <= current))); };
  holder.append(button(several ? "×" : "Remove", remove, { "aria-label": `Remove ${name}`, class: "du-remove" }));
  return holder;
}

function show(found) {
  const image = new Image();
  const picture = { strokes: [], ...found, image };
  image.onload = redraw;
  image.src = found.preview;
  return picture;
}

function asBase64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.split(",")[1] ?? "");
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

async function add(files) {
  for (const each of canDraw ? files : files.slice(0, 1)) {
    if (each.size > MOST_BYTES) { say(`${each.name}: files of at most 30 MB are taken; save it smaller`, true); continue; }
    say(`Reading ${each.name} …`);
    root.setAttribute("aria-busy", ++busy > 0);
    let answer;
    try {
      answer = await server.upload({ name: each.name, data: await asBase64(each) });
    } catch { answer = { error: `${each.name}: the server did not answer; is it still running?` }; }
    root.setAttribute("aria-busy", --busy > 0);
    if (answer.error) { say(answer.error, true); continue; }
    pictures = canDraw ? [...pictures, show(answer)] : [show(answer)];
    commit();
    select(pictures.length - 1);
  }
  file.value = "";
}

// ---- events

function place(event) {
  const frame = canvas.getBoundingClientRect(), { width, height } = shown();
  const x = ((event.clientX - frame.left) / frame.width) * width, y = ((event.clientY - frame.top) / frame.height) * height;
  return [tenth(Math.min(Math.max(x, 0), width)), tenth(Math.min(Math.max(y, 0), height))];
}

function keys(event) {
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  const { width, height } = shown();
  if (move) {
    const step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.min(width, height) / 40));
    cursor ??= [tenth(width / 2), tenth(height / 2)];
    cursor = [0, 1].map((i) => Math.min(Math.max(cursor[i] + step * move[i], 0), [width, height][i]));
    if (stroke) extend(cursor);
  } else if (event.key === " " || event.key === "Enter") {
    cursor ??= [tenth(width / 2), tenth(height / 2)];
    if (stroke) finish();
    else { begin(cursor); say("The pen is down: move with the arrow keys, Space lifts it."); }
  } else if (event.key === "Escape") stroke = null;
  else if (event.key === "Delete") clear();
  else if (event.key === "Backspace" || (event.key === "z" && (event.ctrlKey || event.metaKey))) undo();
  else if (TOOLS[event.key - 1]) choose(TOOLS[event.key - 1]);
  else return;
  event.preventDefault();
  byKeys = true;
  redraw();
}

if (canDraw) {
  canvas.onpointerdown = (event) => {
    if (event.button) return;
    event.preventDefault();
    byKeys = false;
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    begin(place(event));
  };
  canvas.onpointermove = (event) => { if (stroke && !byKeys) extend(place(event)); };
  canvas.onpointerup = () => { if (!byKeys) finish(); };
  canvas.onpointercancel = () => { stroke = null; redraw(); };
  canvas.onkeydown = keys;
  canvas.onfocus = canvas.onblur = redraw;
  root.querySelectorAll("[data-tool]").forEach((each) => { each.onclick = () => choose(each.dataset.tool); });
  root.querySelector("[data-do=undo]").onclick = undo;
  root.querySelector("[data-do=clear]").onclick = clear;
}
empty.onclick = () => file.click();
file.multiple = canDraw;
file.onchange = () => add([...file.files]);
root.ondragover = (event) => { event.preventDefault(); root.classList.add("du-over"); };
root.ondragleave = root.ondragend = () => root.classList.remove("du-over");
root.ondrop = (event) => { event.preventDefault(); root.classList.remove("du-over"); add([...event.dataTransfer.files]); };
new ResizeObserver(redraw).observe(stage);
watch("value", () => {  // set by the server, as by an example
  pictures = (props.value?.pictures ?? []).filter((each) => each.preview).map(show);
  commit();
  select(0);
});
choose(tool);
