// The camera's picture is the browser's own <video>; answers are laid over it on a canvas as they come. One frame is on
// its way at a time, always the newest. Gradio runs this once for each component, with `element`, `props` and `server`.

const {emotions, columns, checkpoints, detectors, smoothing} = props.settings;
const $ = (name) => element.querySelector(`.fer-${name}`);
const root = $("live"), stage = $("stage"), video = $("video"), overlay = $("overlay"), chart = $("chart");

const JPEG_QUALITY = 0.8;
const EASE = 40; // ms in which a box goes most of the way to where the last answer saw its face
const FADE = 300; // ms for which a face that is not in the last answer is still drawn, ever fainter
const HOLD = 1000; // ms for which the followed face may be out of sight
const MINUTE = 60_000, BIN = 250; // of the chart, ms
const TALK = 3000; // ms between two announcements to screen readers
const RETRY = 1000; // ms before the next frame after the server gave no answer
const LATE = 3000; // ms without an answer after which nothing is drawn any more: the picture has moved on
const MAX_ROWS = 500_000; // of the CSV file: the oldest tenth goes when there are more

const REASONS = {
  insecure: "Browsers give the camera to secure pages only, and this one came over plain http from another machine. " +
    "Open it on the machine that serves it, as http://127.0.0.1, or serve it with --ssl-certfile and --ssl-keyfile " +
    "and open the https address.",
  NotAllowedError: "The camera was refused. Allow it for this page, at the camera sign in the address bar or in the " +
    "browser's settings, and start again.",
  NotFoundError: "There is no camera. Connect one, or use the Image or Video tab.",
  NotReadableError: "The camera is in use by another program, or broken. Close the other program and start again.",
  ended: "The camera has stopped: it was unplugged, or another program took it. Start again when it is back.",
};

const bytes = crypto.getRandomValues(new Uint8Array(16));
const visitor = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

let run = 0; // which start of the camera this is; whatever belongs to an earlier one is dropped
let running = false;
let stream = null;
let began = 0; // when the session did, for the time column
let fresh = false, freshAt = 0; // is there a frame that was not sent yet, and since when
let wake = null; // ends the wait for such a frame
let onScreen = true;

// ---------------------------------------------------------------------------------------------- camera and answers

async function start() {
  stop();
  const mine = ++run;
  tell("Asking for the camera …");
  try {
    if (!navigator.mediaDevices?.getUserMedia) throw {name: "insecure"};
    const [width, height] = $("size").value.split("x").map(Number);
    const chosen = $("camera").value;
    // Not "exact": the one that was chosen may be unplugged, and another one in its place.
    const which = chosen ? {deviceId: {ideal: chosen}} : {facingMode: "user"};
    const asked = {audio: false, video: {width: {ideal: width}, height: {ideal: height}, ...which}};
    const given = await navigator.mediaDevices.getUserMedia(asked);
    if (mine !== run) return given.getTracks().forEach((track) => track.stop());
    stream = given;
    stream.getVideoTracks()[0].addEventListener("ended", () => mine === run && fail("ended"));
    if (stream.getVideoTracks()[0].getSettings().facingMode === "environment") $("mirror").checked = false;
    mirror();
    video.srcObject = stream;
    await video.play();
  } catch (error) {
    if (mine === run) fail(error.name, error.message);
    return;
  }
  running = true;
  stage.style.setProperty("--ratio", `${video.videoWidth} / ${video.videoHeight}`);
  const focused = document.activeElement === $("start");
  $("veil").hidden = true;
  $("stop").hidden = false;
  if (focused) $("stop").focus();
  $("snapshot").disabled = false;
  overlay.setAttribute("aria-label", "The camera's picture");
  listCameras();
  watchFrames(mine);
  loop(mine);
}

function stop() {
  run += 1;
  running = false;
  stream?.getTracks().forEach((track) => track.stop());
  stream = video.srcObject = null;
  fresh = false;
  wake?.();
  clear();
  tell("Your camera's picture is analysed by the computer that serves this page, and forgotten within seconds.");
  $("pace").hidden = true;
  const focused = document.activeElement === $("stop");
  $("veil").hidden = false;
  $("stop").hidden = true;
  if (focused) $("start").focus();
  $("snapshot").disabled = true;
  overlay.setAttribute("aria-label", "The camera is off");
  clearTimeout(talking);
  talking = null;
  $("heard").textContent = "";
}

function fail(reason, detail) {
  stop();
  tell(REASONS[reason] ?? `The camera cannot be used: ${detail || reason}`, true);
}

function tell(message, wrong = false) {
  $("message").setAttribute("role", wrong ? "alert" : "status");
  $("message").textContent = message;
}

function awake() {
  return onScreen && !document.hidden;
}

function watchFrames(mine) {
  const arrived = (now, frame) => {
    if (mine !== run) return;
    fresh = true;
    freshAt = frame?.captureTime ?? now;
    wake?.();
    next();
  };
  const next = () => (video.requestVideoFrameCallback?.(arrived) ?? requestAnimationFrame(arrived));
  next();
}

// Resolves when there is a frame to send and somebody to see the answer.
async function newFrame(mine) {
  while (mine === run && !(fresh && awake())) await new Promise((resolve) => (wake = resolve));
  wake = null;
  fresh = false;
}

const pad = document.createElement("canvas");
const ink = pad.getContext("2d", {alpha: false, willReadFrequently: true});

function grab() {
  if (pad.width !== video.videoWidth || pad.height !== video.videoHeight) {
    [pad.width, pad.height] = [video.videoWidth, video.videoHeight];
    stage.style.setProperty("--ratio", `${pad.width} / ${pad.height}`);
  }
  ink.drawImage(video, 0, 0);
  return pad.toDataURL("image/jpeg", JPEG_QUALITY);
}

async function loop(mine) {
  while (true) {
    await newFrame(mine);
    if (mine !== run) return;
    if (!element.isConnected) return stop();
    const captured = freshAt, grabbed = performance.now();
    const image = grab();
    const encoded = performance.now();
    const late = setTimeout(() => mine === run && clear(), LATE);
    let answer;
    try {
      answer = await server.analyse({
        visitor,
        image,
        checkpoint: $("checkpoint").value,
        detector: $("detector").value,
        smoothing: Number($("smoothing").value),
      });
    } catch {
      answer = {error: "The server does not answer; trying again"};
    }
    clearTimeout(late);
    if (!answer.error) number(answer);
    if (mine !== run) return;
    if (answer.error) {
      clear();
      pace(answer.error);
      hear(answer.error);
      await new Promise((resolve) => setTimeout(resolve, RETRY));
    } else if (awake()) {
      take(answer, captured);
      const ms = {...answer.ms, encode: encoded - grabbed, trip: performance.now() - encoded};
      requestAnimationFrame(() => {
        ms.lag = performance.now() - captured; // painted now
        element.dispatchEvent(new CustomEvent("fer-answer", {bubbles: true, detail: {...answer, ms}}));
      });
    }
  }
}

async function listCameras() {
  const devices = await navigator.mediaDevices.enumerateDevices();
  const cameras = devices.filter((device) => device.kind === "videoinput");
  const current = stream?.getVideoTracks()[0].getSettings().deviceId;
  fill("camera", cameras.map((camera, i) => [camera.deviceId, camera.label || `Camera ${i + 1}`]), current);
  $("camera").parentElement.hidden = cameras.length < 2;
}

// --------------------------------------------------------------------------------------------------------- answers

const shown = new Map(); // by track: what is drawn
const rows = []; // of the CSV file
const lags = []; // [time, lag] of the last two seconds
let followed = null; // the face of the table and the chart: {track, seen, face}
let panelAt = 0;
let highest = 0, offset = 0; // the highest number a person got, and what it was when the server last began at 1

// The server forgets who sends nothing for some seconds; no two persons of the CSV file shall have one number.
function number({anew, faces}) {
  if (anew) offset = highest;
  for (const face of faces) highest = Math.max(highest, (face.track += offset));
}

function clear() {
  shown.clear();
  followed = null;
  draw();
  showNow();
}

function take({faces, size: [width, height]}, captured) {
  const now = performance.now();
  for (const face of faces) {
    const [x, y, w, h] = face.box;
    const target = [x / width, y / height, w / width, h / height];
    const before = shown.get(face.track);
    shown.set(face.track, {...face, target, at: before?.at ?? target, side: before?.side, seen: now});
    record(face, captured);
  }
  follow(faces, now);
  addToChart(now);
  lags.push([now, now - captured]);
  while (lags[0][0] < now - 2000) lags.shift();
  if (now - panelAt > 200) {
    panelAt = now;
    showNow();
    const middle = lags.map(([, lag]) => lag).sort((a, b) => a - b)[lags.length >> 1];
    const span = Math.max(now - lags[0][0], 1) / 1000;
    pace(lags.length > 1 ? `${Math.round((lags.length - 1) / span)} answers/s · ${Math.round(middle)} ms behind` : "");
  }
  announce();
  animate();
}

function record(face, captured) {
  const name = emotions[face.emotion].name;
  const values = {
    time: Math.max(0, (captured - began) / 1000).toFixed(3),
    track: face.track,
    detection: face.score || "",
    emotion: name,
    confidence: face.probabilities[face.emotion],
  };
  ["x", "y", "width", "height"].forEach((key, i) => (values[key] = face.box[i]));
  emotions.forEach((emotion, i) => (values[emotion.name] = face.probabilities[i]));
  rows.push(columns.map((column) => values[column]).join(","));
  if (rows.length > MAX_ROWS) rows.splice(0, MAX_ROWS / 10);
  $("csv").disabled = false;
}

function follow(faces, now) {
  const same = faces.find((face) => face.track === followed?.track);
  if (same) followed = {track: same.track, seen: now, face: same};
  else if (!followed || now - followed.seen > HOLD) {
    const largest = faces.reduce((a, b) => (a && a.box[2] * a.box[3] >= b.box[2] * b.box[3] ? a : b), null);
    followed = largest && {track: largest.track, seen: now, face: largest};
  }
}

function showNow() {
  const face = followed?.face;
  const name = face && emotions[face.emotion].name;
  $("who").textContent = face ? `Person ${face.track}: ${name}` : "Nobody in view";
  element.querySelectorAll(".fer-now tr").forEach((row, i) => {
    const share = face ? face.probabilities[i] : 0;
    row.classList.toggle("fer-best", face?.emotion === i);
    row.querySelector(".fer-fill").style.transform = `scaleX(${share})`;
    row.lastElementChild.textContent = face ? percent(share) : "–";
  });
}

function pace(text) {
  $("pace").textContent = text;
  $("pace").hidden = !text;
}

let talking = null;
let talkedAt = -Infinity;

function hear(text) {
  if (text === $("heard").textContent) return;
  talkedAt = performance.now();
  $("heard").textContent = text;
}

// A screen reader hears which expression each person shows: changes only, and not every one.
function announce() {
  if (talking !== null) return;
  talking = setTimeout(() => {
    talking = null;
    const visible = [...shown.values()].filter((face) => performance.now() - face.seen < HOLD);
    visible.sort((a, b) => a.track - b.track);
    const names = visible.map((face) => `Person ${face.track}: ${emotions[face.emotion].name}`);
    const text = names.join(" · ") || "Nobody in view";
    hear(text);
    overlay.setAttribute("aria-label", `The camera's picture. ${text}`);
  }, Math.max(0, talkedAt + TALK - performance.now()));
}

// --------------------------------------------------------------------------------------------------------- overlay

const still = matchMedia("(prefers-reduced-motion: reduce)");
const context = overlay.getContext("2d");
let frame = null, framedAt = 0;

function animate() {
  if (frame === null) {
    framedAt = performance.now();
    frame = requestAnimationFrame(step);
  }
}

function step(now) {
  const kept = still.matches ? 0 : Math.exp(-Math.max(now - framedAt, 0) / EASE);
  framedAt = now;
  let moving = false;
  for (const [track, face] of shown) {
    face.at = face.at.map((value, i) => face.target[i] + kept * (value - face.target[i]));
    moving ||= face.at.some((value, i) => Math.abs(value - face.target[i]) > 0.0005);
    const missed = lags.length && face.seen < lags.at(-1)[0];
    face.alpha = missed ? 1 - (now - face.seen) / FADE : 1;
    if (face.alpha <= 0) shown.delete(track);
    moving ||= missed;
  }
  draw();
  frame = moving && running ? requestAnimationFrame(step) : null;
}

function draw() {
  const {clientWidth: width, clientHeight: height} = overlay;
  const ratio = devicePixelRatio || 1;
  const size = [Math.round(width * ratio), Math.round(height * ratio)];
  if (overlay.width !== size[0] || overlay.height !== size[1]) [overlay.width, overlay.height] = size;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  paint(context, width, height);
}

// Boxes, labels and bars in a picture of that size; also of the snapshot.
function paint(ctx, width, height) {
  const unit = Math.min(Math.max(width / 640, 0.8), 2);
  const mirrored = $("mirror").checked;
  const faces = [...shown.values()].map((face) => {
    const [x, y, w, h] = face.at;
    return {...face, box: [(mirrored ? 1 - x - w : x) * width, y * height, w * width, h * height], from: face};
  });
  ctx.lineJoin = "round";
  ctx.textBaseline = "middle";
  for (const face of faces) {
    ctx.globalAlpha = face.alpha ?? 1;
    for (const [thickness, color] of [[5, "rgb(0 0 0 / .45)"], [2.5, css(emotions[face.emotion].color)]]) {
      ctx.lineWidth = thickness * unit;
      ctx.strokeStyle = color;
      ctx.beginPath();
      ctx.roundRect(...face.box, 8 * unit);
      ctx.stroke();
    }
  }
  const taken = faces.map((face) => face.box);
  if ($("bars").checked) for (const face of faces) paintBars(ctx, face, taken, width, height, unit);
  for (const face of faces) paintLabel(ctx, face, faces.length > 1, width, unit);
  ctx.globalAlpha = 1;
}

function paintLabel(ctx, face, numbered, width, unit) {
  const {name, color} = emotions[face.emotion];
  const text = `${numbered ? `${face.track} · ` : ""}${name} ${percent(face.probabilities[face.emotion])}`;
  ctx.globalAlpha = face.alpha ?? 1;
  ctx.font = `600 ${14 * unit}px system-ui, sans-serif`;
  const [x, y] = face.box;
  const tall = 24 * unit, wide = ctx.measureText(text).width + 16 * unit;
  const left = Math.max(0, Math.min(x, width - wide)), top = Math.max(0, y - tall - 4 * unit);
  ctx.fillStyle = css(color);
  ctx.beginPath();
  ctx.roundRect(left, top, wide, tall, 6 * unit);
  ctx.fill();
  ctx.fillStyle = inkOn(color);
  ctx.fillText(text, left + 8 * unit, top + tall / 2 + unit / 2);
}

// Right or left of the face, where they cover nothing else; the side is kept while it can be.
function paintBars(ctx, face, taken, width, height, unit) {
  const [x, y, w] = face.box;
  const row = 15 * unit, gap = 8 * unit, wide = 132 * unit, tall = row * emotions.length + 10 * unit;
  const top = Math.max(0, Math.min(y, height - tall));
  const places = {right: [x + w + gap, top, wide, tall], left: [x - gap - wide, top, wide, tall]};
  const free = (box) => box[0] >= 0 && box[0] + wide <= width && !taken.some((other) => overlap(box, other));
  const side = [face.side, "right", "left"].find((name) => name && free(places[name]));
  face.from.side = side;
  if (!side) return;
  taken.push(places[side]);
  const [left] = places[side];
  ctx.globalAlpha = face.alpha ?? 1;
  ctx.fillStyle = "rgb(0 0 0 / .6)";
  ctx.beginPath();
  ctx.roundRect(left, top, wide, tall, 8 * unit);
  ctx.fill();
  emotions.forEach(({name, color}, i) => {
    const middle = top + 5 * unit + row * (i + 0.5);
    ctx.font = `${i === face.emotion ? 600 : 400} ${11 * unit}px system-ui, sans-serif`;
    ctx.fillStyle = "white";
    ctx.fillText(name, left + 8 * unit, middle);
    const length = (wide - 72 * unit) * face.probabilities[i];
    ctx.fillStyle = css(color);
    ctx.beginPath();
    ctx.roundRect(left + 62 * unit, middle - 3.5 * unit, Math.max(length, unit), 7 * unit, 3 * unit);
    ctx.fill();
  });
}

function overlap(a, b) {
  return a[0] < b[0] + b[2] && b[0] < a[0] + a[2] && a[1] < b[1] + b[3] && b[1] < a[1] + a[3];
}

// ----------------------------------------------------------------------------------------------------------- chart

const bins = []; // {start, sums, count}: means over a quarter of a second

function addToChart(now) {
  if (followed?.seen !== now) return;
  let bin = bins.at(-1);
  if (!bin || bin.track !== followed.track || now - bin.start >= BIN) {
    if (bin) drawChart();
    bin = {start: now, track: followed.track, sums: emotions.map(() => 0), count: 0};
    bins.push(bin);
    while (bins[0].start < now - MINUTE - BIN) bins.shift();
  }
  followed.face.probabilities.forEach((share, i) => (bin.sums[i] += share));
  bin.count += 1;
}

function drawChart() {
  const {clientWidth: width, clientHeight: height} = chart;
  if (!width) return;
  const ratio = devicePixelRatio || 1, look = getComputedStyle(chart);
  [chart.width, chart.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  const ctx = chart.getContext("2d");
  ctx.scale(ratio, ratio);
  const right = width - 66, bottom = height - 20, now = bins.at(-1)?.start ?? performance.now();
  const across = (time) => right - ((now - time) / MINUTE) * right;
  ctx.strokeStyle = look.borderColor;
  ctx.strokeRect(0.5, 0.5, right - 1, bottom - 1);
  for (const [from, to] of stretches()) {
    const part = bins.slice(from, to);
    let below = part.map(() => 0);
    emotions.forEach(({color}, i) => {
      const above = part.map((bin, j) => below[j] + bin.sums[i] / bin.count);
      ctx.beginPath();
      part.forEach((bin, j) => ctx.lineTo(across(bin.start), bottom * (1 - above[j])));
      for (let j = part.length; j--; ) ctx.lineTo(across(part[j].start), bottom * (1 - below[j]));
      ctx.closePath();
      ctx.fillStyle = css(color);
      ctx.fill();
      ctx.strokeStyle = look.backgroundColor;
      ctx.lineWidth = 0.5;
      ctx.stroke();
      below = above;
    });
  }
  ctx.font = `12px ${look.fontFamily}`;
  ctx.fillStyle = look.color;
  ctx.textBaseline = "middle";
  const last = bins.at(-1);
  let below = 0;
  if (last) emotions.forEach(({name}, i) => {
    const share = last.sums[i] / last.count;
    if (share > 0.09) ctx.fillText(name, right + 8, bottom * (1 - below - share / 2));
    below += share;
  });
  ctx.fillText("60 s ago", 0, height - 8);
  ctx.textAlign = "center";
  ctx.fillText("30 s", across(now - MINUTE / 2), height - 8);
  ctx.textAlign = "right";
  ctx.fillText("now", right, height - 8);
  describeChart();
}

// Ranges of bins of one person without a gap.
function stretches() {
  const starts = bins.flatMap((bin, i) => {
    const before = bins[i - 1];
    return before && before.track === bin.track && bin.start - before.start < HOLD ? [] : [i];
  });
  return starts.map((from, i) => [from, starts[i + 1] ?? bins.length]);
}

function describeChart() {
  const totals = emotions.map((_, i) => bins.reduce((sum, bin) => sum + bin.sums[i] / bin.count, 0));
  const most = emotions.map(({name}, i) => [totals[i] / bins.length, name]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  const text = most.map(([share, name]) => `${name} ${percent(share)}`).join(", ");
  chart.setAttribute("aria-label", bins.length ? `Mean of the last minute: ${text}` : "No face has been seen yet");
}

// -------------------------------------------------------------------------------------------------- tools and start

function percent(share) {
  return `${Math.round(100 * share)} %`;
}

function css([red, green, blue]) {
  return `rgb(${red} ${green} ${blue})`;
}

function inkOn([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue > 110 ? "black" : "white";
}

function download(blob, extension) {
  const link = document.createElement("a");
  const now = new Date(Date.now() - new Date().getTimezoneOffset() * 60_000).toISOString();
  link.download = `fer-${now.slice(0, 19).replaceAll(":", "-")}.${extension}`;
  link.href = URL.createObjectURL(blob);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function saveRows() {
  download(new Blob([[columns.join(","), ...rows, ""].join("\r\n")], {type: "text/csv"}), "csv");
}

function snapshot() {
  const canvas = document.createElement("canvas");
  const [width, height] = ([canvas.width, canvas.height] = [video.videoWidth, video.videoHeight]);
  const ctx = canvas.getContext("2d");
  if ($("mirror").checked) ctx.setTransform(-1, 0, 0, 1, width, 0);
  ctx.drawImage(video, 0, 0);
  ctx.resetTransform();
  paint(ctx, width, height);
  canvas.toBlob((blob) => download(blob, "png"));
}

function fill(name, options, selected) {
  $(name).replaceChildren(...options.map(([value, text]) => new Option(text, value, false, value === selected)));
}

function mirror() {
  root.classList.toggle("fer-mirrored", $("mirror").checked);
  draw();
}

function showSmoothing() {
  const value = Number($("smoothing").value);
  $("smoothing-value").textContent = value ? `${value.toFixed(2)} s` : "off";
}

fill("checkpoint", checkpoints.map((name) => [name, name]));
fill("detector", detectors.map((name) => [name, name]));
for (const {name, color} of emotions) {
  const row = $("now").tBodies[0].insertRow();
  const bar = '<div class="fer-bar" aria-hidden="true"><div class="fer-fill"></div></div>';
  row.innerHTML = `<th scope="row"></th><td>${bar}</td><td></td>`;
  row.firstElementChild.textContent = name;
  row.querySelector(".fer-fill").style.background = css(color);
}
$("smoothing").max = Math.max(2, smoothing);
$("smoothing").value = smoothing;
showSmoothing();
mirror();
$("bars").checked = matchMedia("(min-width: 50rem)").matches; // on a small picture they would hide the neighbours

$("start").addEventListener("click", () => {
  began = performance.now();
  rows.length = bins.length = 0;
  $("csv").disabled = true;
  start();
});
$("stop").addEventListener("click", stop);
$("snapshot").addEventListener("click", snapshot);
$("csv").addEventListener("click", saveRows);
$("mirror").addEventListener("change", mirror);
$("bars").addEventListener("change", draw);
$("smoothing").addEventListener("input", showSmoothing);
for (const name of ["checkpoint", "detector"]) {
  $(name).addEventListener("change", () => running && pace(`Loading ${$(name).value} …`));
}
for (const name of ["size", "camera"]) $(name).addEventListener("change", () => running && start());

// Another tab of the browser, or another of the page's: nobody sees the answers, so no frame is sent.
function look() {
  fresh = false; // what was seen before is old
  wake?.();
}

document.addEventListener("visibilitychange", look);
new ResizeObserver(() => {
  const before = onScreen;
  onScreen = stage.clientWidth > 0;
  if (!onScreen) return;
  draw();
  drawChart();
  if (!before) look();
}).observe(stage);
addEventListener("pagehide", stop);
stop();
