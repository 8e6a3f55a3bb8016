// Transformers.js over onnxruntime-node. Standard input: {folder, dims, data}, pixels of persons; output: the heatmaps.
import { readFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import { AutoModelForPoseEstimation, Tensor, env } from "@huggingface/transformers";

const request = JSON.parse(readFileSync(0, "utf-8"));
env.allowRemoteModels = false;
env.localModelPath = dirname(request.folder);
const name = basename(request.folder);
const model = await AutoModelForPoseEstimation.from_pretrained(name, {
  dtype: "fp32",
  use_external_data_format: true, // which a browser needs; it looks for onnx/NAME.onnx_data
});
const pixel_values = new Tensor("float32", Float32Array.from(request.data), request.dims);
const { heatmaps } = await model({ pixel_values });
console.log(JSON.stringify({ dims: heatmaps.dims, data: Array.from(heatmaps.data) }));
