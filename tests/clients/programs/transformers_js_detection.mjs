// Transformers.js over onnxruntime-node. Standard input: {folder, dims, data, masked}, pixels; output: the model's outputs.
import { readFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import { AutoModelForObjectDetection, Tensor, env } from "@huggingface/transformers";

const request = JSON.parse(readFileSync(0, "utf-8"));
env.allowRemoteModels = false;
env.localModelPath = dirname(request.folder);
const model = await AutoModelForObjectDetection.from_pretrained(basename(request.folder), {
  dtype: "fp32",
  use_external_data_format: true, // which a browser needs; it looks for onnx/NAME.onnx_data
});
const pixel_values = new Tensor("float32", Float32Array.from(request.data), request.dims);
const inputs = { pixel_values };
if (request.masked) {
  // as its DetrImageProcessor makes it
  const dims = [request.dims[0], 64, 64];
  inputs.pixel_mask = new Tensor("int64", new BigInt64Array(dims.reduce((a, b) => a * b)).fill(1n), dims);
}
const outputs = await model(inputs);
const found = Object.entries(outputs).map(([name, x]) => [name, { dims: x.dims, data: Array.from(x.data) }]);
console.log(JSON.stringify(Object.fromEntries(found)));
