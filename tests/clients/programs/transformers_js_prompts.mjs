// Transformers.js segments what is at some points. Standard input: {folder, picture, points, labels}, one list per object.
import { readFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import { AutoProcessor, env, RawImage, SamModel } from "@huggingface/transformers";

const request = JSON.parse(readFileSync(0, "utf-8"));
env.allowRemoteModels = false;
env.localModelPath = dirname(request.folder);
const name = basename(request.folder);
const model = await SamModel.from_pretrained(name, { dtype: "fp32", use_external_data_format: true });
const processor = await AutoProcessor.from_pretrained(name);
const inputs = await processor(await RawImage.read(request.picture), {
  input_points: [request.points],
  input_labels: [request.labels],
});
const { iou_scores, pred_masks } = await model(inputs);
const masks = await processor.post_process_masks(pred_masks, inputs.original_sizes, inputs.reshaped_input_sizes);
console.log(
  JSON.stringify({
    scores: iou_scores.tolist()[0],
    low_res_masks: pred_masks.tolist()[0],
    masks: masks[0].tolist(),
  }),
);
