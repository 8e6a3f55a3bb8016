// Transformers.js over onnxruntime-node. Standard input: {folder, kind, texts, batch, mask, options}, where batch and
// mask are rows of numbers; with options, the tokens of generate, else logits.
import { readFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import * as library from "@huggingface/transformers";

const { env, AutoTokenizer, Tensor } = library;
const request = JSON.parse(readFileSync(0, "utf-8"));
env.allowRemoteModels = false;
env.localModelPath = dirname(request.folder);
const name = basename(request.folder);
const model = await library[request.kind].from_pretrained(name, {
  dtype: "fp32",
  use_external_data_format: true, // which a browser needs; it looks for onnx/NAME.onnx_data
});
const tensor = (rows) =>
  new Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0].length]);
const inputs = { input_ids: tensor(request.batch), attention_mask: tensor(request.mask) };

const answer = {};
if (request.options) {
  answer.made = (await model.generate({ ...inputs, ...request.options })).tolist().map((row) => row.map(Number));
} else {
  answer.logits = (await model(inputs)).logits.tolist();
}
const tokenizer = await AutoTokenizer.from_pretrained(name);
answer.ids = request.texts.map((text) => tokenizer(text).input_ids.tolist()[0].map(Number));
console.log(JSON.stringify(answer));
