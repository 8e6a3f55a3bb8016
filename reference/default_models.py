"""The checkpoint that a pipeline takes when it is made without a model: transformers' choice, with its revision."""

from __future__ import annotations

from collections.abc import Mapping

DEFAULT_MODELS: Mapping[str, tuple[str, str]] = {
    "audio-classification": ("superb/wav2vec2-base-superb-ks", "372e048"),
    "automatic-speech-recognition": ("facebook/wav2vec2-base-960h", "22aad52"),
    "depth-estimation": ("Intel/dpt-large", "bc15f29"),
    "document-question-answering": ("impira/layoutlm-document-qa", "beed3c4"),
    "feature-extraction": ("distilbert/distilbert-base-cased", "6ea8117"),
    "fill-mask": ("distilbert/distilroberta-base", "fb53ab8"),
    "image-classification": ("google/vit-base-patch16-224", "3f49326"),
    "image-feature-extraction": ("google/vit-base-patch16-224", "3f49326"),
    "image-segmentation": ("facebook/detr-resnet-50-panoptic", "d53b52a"),
    "keypoint-matching": ("magic-leap-community/superglue_outdoor", "f4041f8"),
    "mask-generation": ("facebook/sam-vit-huge", "87aecf0"),
    "object-detection": ("facebook/detr-resnet-50", "1d5f47b"),
    "question-answering": ("distilbert/distilbert-base-cased-distilled-squad", "564e9b5"),
    "summarization": ("sshleifer/distilbart-cnn-12-6", "a4f8f3e"),
    "table-question-answering": ("google/tapas-base-finetuned-wtq", "e3dde19"),
    "text-classification": ("distilbert/distilbert-base-uncased-finetuned-sst-2-english", "714eb0f"),
    "text-generation": ("HuggingFaceTB/SmolLM3-3B", "a07cc9a"),
    "text2text-generation": ("google-t5/t5-base", "a9723ea"),
    "token-classification": ("dbmdz/bert-large-cased-finetuned-conll03-english", "4c53496"),
    "translation": ("google-t5/t5-base", "a9723ea"),
    "video-classification": ("MCG-NJU/videomae-base-finetuned-kinetics", "488eb9a"),
    "visual-question-answering": ("dandelin/vilt-b32-finetuned-vqa", "d0a1f6a"),
    "zero-shot-classification": ("facebook/bart-large-mnli", "d7645e1"),
    "zero-shot-image-classification": ("openai/clip-vit-base-patch32", "3d74acf"),
}
"""Task -> (Hub id, revision), of transformers 5.23; of 4.57 for the tasks that 5 dropped."""
