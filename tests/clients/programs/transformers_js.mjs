// Transformers.js over onnxruntime-node. Standard input: {folder, task, dtype, texts, batch, mask, count}, where batch
// and mask are rows of numbers, padded on the left.
import { readFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import { env, pipeline, Tensor } from "@huggingface/transformers";

const request = JSON.parse(readFileSync(0, "utf-8"));
env.allowRemoteModels = false;
env.localModelPath = dirname(request.folder);
const pipe = await pipeline(request.task, basename(request.folder), {
  dtype: request.dtype,
  use_external_data_format: true, // which a browser needs; it looks for onnx/NAME.onnx_data
});

const numbers = (tensor) => tensor.tolist().map((row) => row.map(Number));
const tensor = (rows) =>
  new Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0].length]);

const answer = {};
if (request.task === "feature-extraction") {
  answer.vectors = (await pipe(request.texts, { pooling: "mean", normalize: true })).tolist();
} else {
  const settings = { max_new_tokens: request.count, min_new_tokens: request.count, do_sample: false };
  const inputs = { input_ids: tensor(request.batch), attention_mask: tensor(request.mask) };
  answer.made = numbers(await pipe.model.generate({ ...inputs, ...settings }))
    .map((row) => row.slice(-request.count));
  answer.prompts = request.texts.map((text) => numbers(pipe.tokenizer(text).input_ids)[0]);
  answer.texts = [];
  for (const text of request.texts) {
    const [made] = await pipe(text, settings); // which adds BOS where tokenizer_config.json says so
    answer.texts.push(made.generated_text);
  }
}
console.log(JSON.stringify(answer));
