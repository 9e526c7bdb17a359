// The page: a form, the picture that is drawn, and the gallery of the session.

import { Server, ServerError } from "./api.js";
import { describe, obstacles, readRecipe, settingsOf, shortName } from "./recipe.js";

const PREVIEWS = 6;
const LARGEST_FILE = 64 * 2 ** 20; // bytes, of a picture that is dropped
const at = (id) => document.getElementById(id);
const form = at("form"), fields = form.elements;
const server = new Server(askForKey);

let models = [], model = null; // as /v1/models describes them; the one that is chosen
let drawing = null; // { controller, id } while pictures are drawn
let shown = null; // the picture of the gallery that is shown
const start = { image: null, mask: null }; // { file, url } to start from

// The form

/** Offer what a model can do, with its own defaults. */
function useModel(name) {
  model = models.find((each) => each.id === name) ?? models[0];
  fields.model.value = model.id;
  const own = new Option(`${model.scheduler}, the model's own`, "");
  const others = model.schedulers.filter((each) => each !== shortName(model.scheduler));
  fields.scheduler.replaceChildren(own, ...others.map((each) => new Option(each)));
  fields.num_inference_steps.value = model.num_inference_steps;
  fields.guidance_scale.value = model.guidance ? model.guidance_scale : "";
  fields.guidance_scale.placeholder = model.guidance ? "" : "none";
  fields.guidance_scale.disabled = fields.negative_prompt.disabled = !model.guidance;
  at("negative-help").hidden = model.guidance;
  const [width, height] = model.size.split("x");
  at("about").textContent = `${model.id}, ${width} × ${height}`;
  at("source-help").textContent = model.edits
    ? "Drop, paste or choose one to start from. One that koala drew fills in its settings."
    : "Drop, paste or choose one that koala drew, and its settings are filled in. To start from pictures, "
      + "the model must be built with --encoder.";
  at("start-from").hidden = !model.edits;
  if (!model.edits) setStart("image", null);
  showEta();
}

function showEta() {
  const takes = /^(ddim|tcd)/.test(fields.scheduler.value || shortName(model.scheduler));
  fieldOf("eta").hidden = fields.eta.disabled = !takes;
}

/** Put settings into the form, the model's defaults for the rest; returns what it has no place for. */
function fillForm(settings) {
  const problems = [];
  form.reset();
  if (settings.model && !models.some((each) => each.id === settings.model)) {
    problems.push(`This server does not have the model ${settings.model}, so ${model.id} is chosen.`);
  }
  useModel(settings.model ?? model.id);
  for (const [name, value] of Object.entries(settings)) {
    const field = fields[name];
    if (name === "model" || !(field?.name === name)) continue;
    if (field.type === "checkbox") field.checked = value === field.value;
    else field.value = value === shortName(model.scheduler) && name === "scheduler" ? "" : value;
    if (field.selectedIndex === -1) {
      field.value = "";
      problems.push(`${model.id} has no sampler ${value}, so its own is chosen.`);
    }
  }
  showEta();
  showStart();
  return problems;
}

/** What the form asks for, by the API's names; fields that are empty or disabled have the server's defaults. */
function readForm() {
  return Object.fromEntries([...new FormData(form)].filter(([name, value]) => name === "prompt" || value.trim() !== ""));
}

const fieldOf = (name) => form.querySelector(`[data-field="${name}"]`);

// Errors

/** Say what went wrong, beside the field that is to blame. */
function showError(error) {
  const field = fieldOf({ mask: "image", mask_image: "image" }[error.param] ?? error.param);
  const lost = "The server cannot be reached. See whether it runs, then draw again.";
  const said = error instanceof TypeError ? lost : error.message;
  announce("");
  if (!field || field.hidden) {
    at("error").textContent = said;
    at("error").hidden = false;
    return;
  }
  const text = Object.assign(document.createElement("p"), { className: "error", id: "field-error", textContent: said });
  text.setAttribute("role", "alert");
  field.append(text);
  field.closest("details")?.setAttribute("open", "");
  const input = field.querySelector("input:not([type=file]), textarea, select");
  input?.setAttribute("aria-invalid", "true");
  input?.setAttribute("aria-errormessage", text.id);
  input?.focus();
}

function clearErrors() {
  at("error").hidden = true;
  at("field-error")?.remove();
  for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
}

/** Ask for the key, in place of what the server refused; the last one was wrong, or there was none. */
function askForKey(wasWrong) {
  const keyForm = at("key-form");
  at("key-help").textContent = wasWrong ? "The server did not take that key. Enter another." : "It is kept until this tab is closed.";
  keyForm.hidden = false;
  at("key").focus();
  return new Promise((resolve) => {
    keyForm.onsubmit = (event) => {
      event.preventDefault();
      keyForm.hidden = true;
      resolve(at("key").value);
      at("key").value = "";
      fields.prompt.focus();
    };
  });
}

// Drawing

async function draw() {
  if (drawing || !model) return;
  const body = readForm(), controller = new AbortController();
  clearErrors();
  drawing = { controller, id: null };
  showDrawing(true);
  try {
    const files = model.edits && start.image ? await readStart() : {};
    const request = { ...body, ...files, previews: PREVIEWS };
    const { id } = await server.submit(request, controller.signal, (error, seconds) =>
      showProgress(null, `${error.message}. This page tries again in ${seconds} s.`, "There is no room yet; it is tried again."));
    drawing.id = id;
    if (controller.signal.aborted) await server.cancel(id);
    controller.signal.throwIfAborted();
    const lost = () => showProgress(null, "The connection is lost. It is made again …", "The connection is lost.");
    const job = await server.follow(id, controller.signal, showEvent, lost);
    await addPictures(job, body);
    if (job.error) throw new ServerError(job.error.message, job.error);
  } catch (error) {
    if (!controller.signal.aborted) showError(error);
  } finally {
    if (drawing?.controller === controller) drawing = null;
    showDrawing(false);
  }
}

/** Give the job up; pictures of it that are finished are kept. */
async function cancel() {
  if (!drawing) return;
  const { controller, id } = drawing, body = readForm();
  controller.abort();
  announce("Cancelled.");
  try {
    if (id) await addPictures(await server.cancel(id), body);
  } catch (error) {
    showError(error);
  }
}

function showDrawing(now) {
  const [hide, show] = now ? [at("draw"), at("cancel")] : [at("cancel"), at("draw")];
  const focused = document.activeElement === hide;
  hide.hidden = true;
  show.hidden = false;
  if (focused) show.focus();
  at("progress").hidden = !now;
  at("result").setAttribute("aria-busy", now);
  if (now) {
    showProgress(null, "Sent to the server …", "Sent to the server.");
    if (at("frame").getBoundingClientRect().top > innerHeight * 0.6) at("progress").scrollIntoView({ block: "end" });
  } else if (shown) {
    showPicture(shown);
  } else {
    at("picture").hidden = true;
    at("empty").hidden = false;
  }
}

/** A progress event, or a preview, of a job. */
function showEvent(kind, data) {
  if (kind === "preview") return showPreview(data);
  if (data.status === "queued") {
    const others = data.queue_position;
    const text = others ? `Waiting for ${count(others, "picture")} of others …` : "Next in the queue …";
    return showProgress(null, text, text);
  }
  const steps = data.steps ? `Step ${data.step} of ${data.steps}` : "Drawing begins …";
  showProgress(data.progress, steps, data.progress < 0.5 ? "Drawing." : "More than half is drawn.");
}

/** Set the bar (null: nobody knows) and the text under it; `aloud` is told once to those who listen. */
function showProgress(share, text, aloud) {
  if (share === null) at("bar").removeAttribute("value");
  else at("bar").value = share;
  at("progress-text").textContent = text;
  announce(aloud);
}

function announce(text) {
  if (at("live").textContent !== text) at("live").textContent = text;
}

function showPreview({ index, number, b64_json, output_format }) {
  drawing.watched ??= index;
  if (drawing.watched !== index) return;
  if (number === PREVIEWS - 1) drawing.watched = null; // the next that comes is of another picture
  at("picture").src = `data:image/${output_format};base64,${b64_json}`;
  showFrame(`Preview of ${fields.prompt.value}`, true);
}

function showFrame(alt, isPreview) {
  const [width, height] = model.size.split("x");
  Object.assign(at("picture"), { alt, width, height, hidden: false });
  at("picture").classList.toggle("preview", isPreview);
  at("empty").hidden = true;
}

// Pictures

/** Fetch a job's pictures, add them to the gallery, and show the first of them. */
async function addPictures(job, body) {
  const added = [];
  for (const { url } of job.data) {
    const file = await (await server.request(url.slice(url.indexOf("/v1/") + 1))).blob();
    const read = readRecipe(await file.arrayBuffer());
    const settings = { ...body, model: job.model, seed: read.recipe.seed };
    delete settings.n;
    added.push({ file, url: URL.createObjectURL(file), ...read, settings, job });
  }
  for (const picture of added) addToGallery(picture);
  if (added.length) {
    showPicture(added[0]);
    announce(`${added.length > 1 ? `${added.length} pictures are` : "The picture is"} drawn.`);
  }
}

function addToGallery(picture) {
  const image = Object.assign(new Image(), { src: picture.url, alt: "" });
  picture.button = Object.assign(document.createElement("button"), { type: "button" });
  picture.button.setAttribute("aria-label", `Show ${picture.recipe.prompt || "a picture"}, seed ${picture.recipe.seed}`);
  picture.button.append(image);
  picture.button.addEventListener("click", () => showPicture(picture));
  const item = document.createElement("li");
  item.append(picture.button);
  at("pictures").prepend(item);
  at("gallery").hidden = false;
}

/** Show a picture of the gallery with its recipe. */
function showPicture(picture) {
  shown = picture;
  at("picture").src = picture.url;
  showFrame(picture.recipe.prompt || "A picture without a prompt", false);
  for (const button of at("pictures").querySelectorAll("button")) button.removeAttribute("aria-current");
  picture.button.setAttribute("aria-current", "true");
  const { recipe, parameters, settings, job } = picture, pictures = job.data.length;
  at("took").textContent = `${pictures > 1 ? `${pictures} pictures in ` : ""}${job.seconds.toFixed(1)} s`;
  Object.assign(at("download"), { href: picture.url, download: `koala-${recipe.seed}.png` });
  const linked = recipe.image == null;
  at("link").href = `#${new URLSearchParams(settings)}`;
  at("link").hidden = at("copy-link").hidden = !linked;
  at("link-help").hidden = linked;
  at("recipe").replaceChildren(...describe(picture, settings.model).flatMap(([name, value]) => [
    Object.assign(document.createElement("dt"), { textContent: name }),
    Object.assign(document.createElement("dd"), { textContent: value }),
  ]));
  at("parameters").textContent = parameters;
  at("details").hidden = false;
}

/** Copy text and say so on the button; a page without TLS has no clipboard, and selects the text instead. */
async function copy(text, button) {
  const before = button.dataset.label ??= button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text });
    button.after(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = before), 2000);
}

/** Fill the form and draw from the link that the page was opened with. */
function drawFromLink() {
  const settings = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (settings.prompt === undefined || drawing) return;
  const problems = fillForm(settings);
  if (problems.length) notify("The link asks for what this server does not have.", problems);
  else draw();
}

// Pictures that come from outside

/** A recipe fills the form; any other picture is one to start from, where the model can. */
async function takePicture(file) {
  if (!file || !model) return;
  clearErrors();
  if (!file.type.startsWith("image/")) return notify(`${file.name} is not a picture. Choose a PNG, JPEG or WebP file.`);
  if (file.size > LARGEST_FILE) return notify(`${file.name} is larger than 64 MB. Choose a smaller one.`);
  const read = readRecipe(await file.arrayBuffer());
  if (read) {
    const problems = fillForm(settingsOf(read, models));
    const reasons = obstacles(read, model).map((reason) => `It will not be the same picture: ${reason}.`);
    notify(`The settings of ${file.name} are in the form.`, [...problems, ...reasons], model.edits && file);
  } else if (model.edits) {
    setStart("image", file);
    notify(`Pictures start from ${file.name}.`);
  } else {
    notify(`${file.name} carries no recipe, and ${model.id} cannot start from a picture: `
      + "build it with `koala build --encoder`.");
  }
}

/** Say something about a picture that came, and offer to start from `file`. */
function notify(text, list = [], file = null) {
  const parts = [Object.assign(document.createElement("p"), { textContent: text })];
  if (list.length) parts.push(document.createElement("ul"));
  parts[1]?.append(...list.map((each) => Object.assign(document.createElement("li"), { textContent: each })));
  if (file) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Start from it instead" });
    button.addEventListener("click", () => {
      setStart("image", file);
      notify(`Pictures start from ${file.name}.`);
      fields.strength.focus();
    });
    parts.push(button);
  }
  at("notice").replaceChildren(...parts);
}

/** Set the picture to start from, or its mask, or remove it with null. */
function setStart(kind, file) {
  if (start[kind]) URL.revokeObjectURL(start[kind].url);
  start[kind] = file && { file, url: URL.createObjectURL(file) };
  if (kind === "image" && !file && start.mask) setStart("mask", null);
  showStart();
}

function showStart() {
  const { image, mask } = start;
  at("source").hidden = fields.strength.disabled = !image;
  if (image) at("source-picture").src = image.url;
  at("mask-picture").hidden = at("drop-mask").hidden = !mask;
  if (mask) at("mask-picture").src = mask.url;
  at("strength-value").textContent = fields.strength.value;
}

/** The picture to start from, and its mask, as the API takes them. */
async function readStart() {
  const read = {};
  for (const kind of ["image", "mask"]) if (start[kind]) read[kind] = await dataUrl(start[kind].file);
  return read;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ServerError(`${file.name} cannot be read. Choose it again.`, { param: "image" }));
    reader.readAsDataURL(file);
  });
}

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

// What people do

form.addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
at("cancel").addEventListener("click", cancel);
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    draw();
  } else if (event.key === "Escape") {
    cancel();
  }
});
fields.model.addEventListener("change", () => useModel(fields.model.value));
fields.scheduler.addEventListener("change", showEta);
fields.strength.addEventListener("input", showStart);
at("copy-link").addEventListener("click", () => copy(at("link").href, at("copy-link")));
at("copy-parameters").addEventListener("click", () => copy(shown.parameters, at("copy-parameters")));
at("keep-seed").addEventListener("click", () => {
  fields.seed.value = shown.recipe.seed;
  announce(`Seed ${shown.recipe.seed} is in the form.`);
});
at("use-settings").addEventListener("click", () => {
  fillForm(shown.settings);
  announce("The settings are in the form.");
});
at("start-from").addEventListener("click", () => setStart("image", shown.file));
at("drop-source").addEventListener("click", () => {
  setStart("image", null);
  at("notice").replaceChildren();
  at("file").focus();
});
at("drop-mask").addEventListener("click", () => {
  setStart("mask", null);
  at("mask-file").focus();
});
for (const [id, take] of [["file", takePicture], ["mask-file", (file) => setStart("mask", file)]]) {
  at(id).addEventListener("change", () => {
    if (at(id).files[0]) take(at(id).files[0]);
    at(id).value = ""; // the same file may be chosen again
  });
}
addEventListener("paste", (event) => takePicture(event.clipboardData.files[0]));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  takePicture(event.dataTransfer.files[0]);
});
addEventListener("hashchange", drawFromLink);

async function begin() {
  at("settings").open = matchMedia("(min-width: 60rem)").matches;
  try {
    models = await server.models();
  } catch (error) {
    return showError(error);
  }
  fields.model.replaceChildren(...models.map(({ id }) => new Option(id)));
  fieldOf("model").hidden = models.length < 2;
  useModel(models[0].id);
  at("draw").disabled = false;
  drawFromLink();
}

begin();
