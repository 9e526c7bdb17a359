// Recipes: what PNG files of koala-trt carry, and what it says of a picture.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const LONGEST_TEXT = 2 ** 20; // bytes

/** The recipe in a PNG file as { recipe, parameters }, null if it carries none that can be read. */
export function readRecipe(buffer) {
  const { koala, parameters = "" } = readTexts(buffer);
  try {
    const recipe = JSON.parse(koala);
    if (typeof recipe.prompt !== "string") return null;
    // JavaScript's numbers would round a large seed. Inside of strings, quotes are escaped.
    recipe.seed = /"seed": (-?\d+)/.exec(koala)?.[1] ?? null;
    return { recipe, parameters };
  } catch {
    return null;
  }
}

/** Uncompressed iTXt chunks of a PNG file by keyword; a file that is cut short or none gives what can be read. */
function readTexts(buffer) {
  const bytes = new Uint8Array(buffer), view = new DataView(buffer), texts = {};
  if (!SIGNATURE.every((byte, place) => bytes[place] === byte)) return texts;
  for (let start = SIGNATURE.length; start + 12 <= bytes.length; ) {
    const length = view.getUint32(start), end = start + 8 + length;
    const kind = String.fromCharCode(...bytes.subarray(start + 4, start + 8));
    if (kind === "IEND" || end + 4 > bytes.length) break;
    if (kind === "iTXt" && length <= LONGEST_TEXT) readText(bytes.subarray(start + 8, end), texts);
    start = end + 4; // after the checksum
  }
  return texts;
}

/** Keyword, 0, whether compressed, method, language, 0, translated keyword, 0, text. */
function readText(chunk, texts) {
  const keyword = chunk.indexOf(0), language = chunk.indexOf(0, keyword + 3), translated = chunk.indexOf(0, language + 1);
  if (keyword < 0 || language < 0 || translated < 0 || chunk[keyword + 1] !== 0) return;
  texts[new TextDecoder("latin1").decode(chunk.subarray(0, keyword))] = new TextDecoder().decode(chunk.subarray(translated + 1));
}

/** The settings of the form that a recipe stands for. */
export function settingsOf({ recipe, parameters }, models) {
  const settings = {
    model: models.find((model) => model.bundle === recipe.bundle)?.id,
    prompt: recipe.prompt,
    negative_prompt: recipe.negative_prompt,
    scheduler: shortName(sampler(parameters)),
    num_inference_steps: recipe.num_inference_steps,
    guidance_scale: recipe.guidance_scale,
    seed: recipe.seed,
    eta: recipe.eta,
    weighted: recipe.weighted || null,
  };
  return Object.fromEntries(Object.entries(settings).filter(([, value]) => value != null).map(([name, value]) => [name, String(value)]));
}

/** Why this page's settings do not draw a recipe's picture again; nothing if they do. */
export function obstacles({ recipe }, model) {
  const others = {
    "a second prompt": (recipe.prompt_2 ?? recipe.prompt) !== recipe.prompt,
    "a second negative prompt": (recipe.negative_prompt_2 ?? recipe.negative_prompt) !== recipe.negative_prompt,
    "an empty negative prompt": recipe.negative_prompt === "",
    "rescaled guidance": Boolean(recipe.guidance_rescale),
    "an early end": recipe.denoising_end != null,
  };
  const missing = Object.keys(others).filter((name) => others[name]);
  const reasons = {
    "another model drew it": recipe.bundle !== model.bundle,
    "it began with another picture, which it does not carry": recipe.image != null,
    "it has no seed": recipe.seed === null,
    "it was drawn from embeddings": recipe.embeddings === true,
    [`its noise was drawn together with that of ${recipe.count - 1} others`]: recipe.seed_alone === false && recipe.count > 1,
    [`it has ${missing.join(", ")}, for which this page has no field`]: missing.length > 0,
  };
  return Object.keys(reasons).filter((reason) => reasons[reason]);
}

/** What people read of a recipe, as [name, value]. */
export function describe({ recipe, parameters }, model) {
  return [
    ["Prompt", recipe.prompt],
    ["Negative prompt", recipe.negative_prompt],
    ["Seed", recipe.seed],
    ["Steps", recipe.num_inference_steps],
    ["Guidance", recipe.guidance_scale > 1 ? recipe.guidance_scale : "none"],
    ["Sampler", sampler(parameters)],
    ["Strength", recipe.strength],
    ["Size", `${recipe.width} × ${recipe.height}`],
    ["Model", model],
    ["Drawn with", `koala-trt ${recipe.version}, ${recipe.target}`],
  ].filter(([, value]) => value != null && value !== "");
}

/** A sampler's short name, as the server lists it: "DPM++ 2M Karras" is dpmpp_2m_karras. */
export function shortName(label) {
  return label.toLowerCase().replace("dpm++", "dpmpp").split(/\s+/).join("_");
}

function sampler(parameters) {
  return /, Sampler: ([^,]+)/.exec(parameters.split("\n").at(-1))?.[1] ?? "";
}
