// Training: a file that is dropped or chosen is uploaded and checked, and a job trains an adapter on it.

import { byId, make, say } from "./element.js";
import { get, send } from "./server.js";
import * as curves from "./train_curves.js";
import { acceptDrop } from "./upload.js";
import { counted } from "./words.js";

const METHODS = { supervised: "answers to learn", dpo: "answers to prefer" };
let file = null; // what was uploaded and no job has taken yet

// compare(A, B): shows two adapters in the duel.
export function start(compare) {
  acceptDrop(byId("train"), byId("train-file"), () => byId("train-name").focus());
  byId("train-file").addEventListener("change", upload);
  byId("train-form").addEventListener("submit", (event) => {
    event.preventDefault();
    create();
  });
  curves.start(compare);
}

// maxEpochs: null where this server trains nothing.
export function allow(maxEpochs) {
  if (maxEpochs) byId("train-epochs").max = String(maxEpochs);
}

export const restart = curves.restart;

export function forget() {
  file = null;
  byId("train-form").reset();
  byId("train-file").value = "";
  show(null, []);
  for (const id of ["train-file-status", "train-status"]) say(byId(id), "");
  curves.forget();
}

async function upload() {
  const [chosen] = byId("train-file").files;
  if (file) remove(file.id);
  file = null;
  show(null, []);
  say(byId("train-file-status"), chosen ? `Checking ${chosen.name} …` : "");
  if (!chosen) return;
  const body = new FormData();
  body.append("purpose", "fine-tune");
  body.append("file", chosen);
  try {
    const { id } = await send("POST", "v1/files", body);
    const understood = await get(`v1/files/${id}/examples`);
    if (byId("train-file").files[0] !== chosen) return remove(id); // another was chosen meanwhile
    file = { id, method: understood.method };
    const form = `${understood.columns.join(" and ")}, ${METHODS[understood.method]}`;
    say(byId("train-file-status"), `${chosen.name}: ${counted(understood.num_rows, "row")} of ${form}.`);
    show(understood.data[0], []);
  } catch (error) {
    const problems = error.message.replace(/^file: /, "").split(/; (?=row \d|and \d)/);
    say(byId("train-file-status"), problems.length > 1 ? `${chosen.name} was not taken:` : error.message);
    show(null, problems.length > 1 ? problems : []);
  }
}

// What nobody trains on would count against the tenant's bytes.
async function remove(id) {
  try {
    await send("DELETE", `v1/files/${id}`);
  } catch {
    // it stays, and can be removed by the API
  }
}

async function create() {
  if (!file) return say(byId("train-status"), "Choose a file first.");
  const suffix = byId("train-name").value.trim() || undefined;
  const epochs = byId("train-epochs").valueAsNumber || "auto";
  const method = { type: file.method, [file.method]: { hyperparameters: { n_epochs: epochs } } };
  try {
    await send("POST", "v1/fine_tuning/jobs", { model: "base", training_file: file.id, suffix, method });
  } catch (error) {
    return say(byId("train-status"), error.message);
  }
  file = null;
  byId("train-form").reset();
  byId("train-file").value = "";
  show(null, []);
  say(byId("train-file-status"), "");
  say(byId("train-status"), "The job is in line.");
  curves.restart();
}

// --- what was understood ---

function show(first, problems) {
  byId("train-first").hidden = !first;
  byId("train-first").replaceChildren(...(first ? parts(first) : []));
  byId("train-problems").hidden = !problems.length;
  byId("train-problems").replaceChildren(...problems.map((textContent) => make("li", { textContent })));
}

function parts({ row, prompt, answer, rejected }) {
  const last = rejected ? [["preferred", answer, "answer"], ["not preferred", rejected, "answer"]] : [["answer", answer, "answer"]];
  const said = prompt.map(({ role, content }) => [role || "prompt", content, "said"]);
  return [make("p", { className: "muted hint", textContent: `Row ${row}` }),
    ...[...said, ...last].flatMap(([name, text, className]) => [
      make("p", { className: "muted hint", textContent: name }), make("p", { className, dir: "auto", textContent: text })])];
}
