// Transformers.js over onnxruntime-node. Standard input: {folder, dtype, samples, options}, samples at 16 kHz.
import { readFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import { env, pipeline } from "@huggingface/transformers";

const request = JSON.parse(readFileSync(0, "utf-8"));
env.allowRemoteModels = false;
env.localModelPath = dirname(request.folder);
const pipe = await pipeline("automatic-speech-recognition", basename(request.folder), {
  dtype: request.dtype,
  use_external_data_format: true, // which a browser needs; it looks for onnx/NAME.onnx_data
});
const samples = Float32Array.from(request.samples);
const { input_features } = await pipe.processor(samples);
const made = await pipe.model.generate({ inputs: input_features, ...request.options });
const answer = await pipe(samples, request.options);
console.log(JSON.stringify({ ids: made.tolist()[0].map(Number), answer }));
