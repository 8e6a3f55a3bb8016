// Transformers.js over onnxruntime-node, and sharp for the picture. Standard input: {folder, task, picture, options}.
import { readFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import { env, pipeline } from "@huggingface/transformers";

const request = JSON.parse(readFileSync(0, "utf-8"));
env.allowRemoteModels = false;
env.localModelPath = dirname(request.folder);
const pipe = await pipeline(request.task, basename(request.folder), {
  dtype: "fp32",
  use_external_data_format: true, // which a browser needs; it looks for onnx/NAME.onnx_data
});
const answer = await pipe(request.picture, ...request.options);
console.log(JSON.stringify(answer.tolist ? answer.tolist() : answer));
