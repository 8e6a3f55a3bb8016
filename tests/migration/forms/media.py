"""Ways to call the pipelines that look at pictures and listen to sound."""

from __future__ import annotations

from tests.migration.form import like, same

PICTURES = same(
    'pipeline("image-classification", "vit_cls")("cat.png")',
    'pipeline("image-classification", "vit_cls")(["cat.png", "dog.jpg"])',
    'pipeline("image-classification", "vit_cls")(inputs="cat.png")',
    """
    from PIL import Image
    pipeline("image-classification", "vit_cls")(Image.open("cat.png"))
    """,
    """
    from PIL import Image
    images = [Image.open(name).convert("RGB") for name in ("cat.png", "dog.jpg")]
    pipeline("image-classification", "vit_cls")(images, batch_size=2)
    """,
    """
    from PIL import Image
    image = Image.open("cat.png")
    pipeline("image-classification", "vit_cls")([image, image])
    """,
    """
    import base64
    data = base64.b64encode(open("cat.png", "rb").read()).decode()
    pipeline("image-classification", "vit_cls")(data)
    """,
    'pipeline("image-classification", "vit_cls")("cat.png", top_k=2)',
    'pipeline("image-classification", "vit_cls")("cat.png", top_k=None)',
    'pipeline("image-classification", "vit_cls")("cat.png", function_to_apply="sigmoid")',
    'pipeline("image-classification", "vit_cls")("cat.png", timeout=5)',
    """
    import glob
    list(pipeline("image-classification", "vit_cls")(name for name in sorted(glob.glob("*.png"))))
    """,
    'pipeline("image-feature-extraction", "dinov2")("cat.png")',
    'pipeline("image-feature-extraction", "dinov2")(["cat.png", "dog.jpg"])',
    'pipeline("image-feature-extraction", "dinov2")("cat.png", pool=True)',
    'pipeline("image-feature-extraction", "dinov2")("cat.png", return_tensors=True)',
)

PICTURES_AND_TEXTS = (
    *same(
        'pipeline("zero-shot-image-classification", "clip")("cat.png", candidate_labels=["a cat", "a dog"])',
        'pipeline("zero-shot-image-classification", "clip")("cat.png", ["a cat", "a dog"])',
        'pipeline("zero-shot-image-classification", "clip")(image="cat.png", candidate_labels=["a cat", "a dog"])',
        """
        pipe = pipeline("zero-shot-image-classification", "clip")
        pipe(["cat.png", "dog.jpg"], candidate_labels=["a cat", "a dog"])
        """,
        """
        pipe = pipeline("zero-shot-image-classification", "clip")
        pipe("cat.png", candidate_labels=["cat", "dog"], hypothesis_template="A picture of a {}.")
        """,
        """
        from PIL import Image
        pipe = pipeline("zero-shot-image-classification", "siglip")
        pipe(Image.open("cat.png"), candidate_labels=["2 cats", "a plane", "a remote"])
        """,
    ),
    *like(
        'pipeline("visual-question-answering", "blip_vqa")({"image": "cat.png", "question": "how many?"})',
        'pipeline("visual-question-answering", "blip_vqa")(image="cat.png", question="how many?")',
        'pipeline("vqa", "blip_vqa")("cat.png", "how many?")',
        'pipeline("vqa", model="blip_vqa")([{"image": "cat.png", "question": "how many?"}])[0]',
        """
        from PIL import Image
        pipeline("vqa", model="blip_vqa")(Image.open("cat.png"), "how many?", top_k=1)
        """,
        note="as in transformers 4",
    ),
    *like(
        'pipeline("image-to-text", "blip_caption")("cat.png")',
        'pipeline("image-to-text", "blip_caption")(["cat.png", "dog.jpg"])[0]',
        'pipeline("image-to-text", "blip_caption")(inputs="cat.png", max_new_tokens=20)',
        'pipeline("image-to-text", "blip_caption")("cat.png", generate_kwargs={"max_new_tokens": 20})',
        note="as in transformers 4",
    ),
)

SOUND = same(
    'pipeline("audio-classification", "wav2vec2")("yes.wav")',
    'pipeline("audio-classification", "wav2vec2")(["yes.wav", "no.flac"])',
    'pipeline("audio-classification", "wav2vec2")("yes.wav", top_k=1)',
    'pipeline("audio-classification", "wav2vec2")("yes.wav", top_k=2)',
    'pipeline("audio-classification", "wav2vec2")(inputs="yes.wav", function_to_apply="sigmoid")',
    """
    import soundfile
    samples, rate = soundfile.read("yes.wav", dtype="float32")
    pipeline("audio-classification", "wav2vec2")(samples)
    """,
    """
    import soundfile
    samples, rate = soundfile.read("yes.wav", dtype="float32")
    pipeline("audio-classification", "wav2vec2")({"array": samples, "sampling_rate": rate})
    """,
    'pipeline("audio-classification", "wav2vec2")(open("yes.wav", "rb").read())',
)

SPEECH = same(
    'pipeline("automatic-speech-recognition", "wav2vec2_ctc")("yes.wav")',
    'pipeline("automatic-speech-recognition", "wav2vec2_ctc")("yes.wav")["text"]',
    'pipeline("automatic-speech-recognition", "wav2vec2_ctc")(["yes.wav", "no.flac"])',
    'pipeline("automatic-speech-recognition", "wav2vec2_ctc")(inputs="yes.wav")',
    'pipeline("automatic-speech-recognition", "wav2vec2_ctc")("yes.wav", return_timestamps="char")',
    'pipeline("automatic-speech-recognition", "wav2vec2_ctc")("yes.wav", return_timestamps="word")',
    'pipeline("automatic-speech-recognition", "wav2vec2_ctc")("yes.wav", chunk_length_s=0.2, stride_length_s=0.05)',
    """
    import soundfile
    samples, rate = soundfile.read("yes.wav", dtype="float32")
    pipeline("automatic-speech-recognition", "wav2vec2_ctc")({"raw": samples, "sampling_rate": rate})
    """,
    """
    import soundfile
    samples, rate = soundfile.read("yes.wav", dtype="float32")
    sample = {"array": samples, "sampling_rate": rate, "path": "yes.wav"}
    pipeline("automatic-speech-recognition", "wav2vec2_ctc")(sample)
    """,
    """
    import numpy as np
    pipeline("automatic-speech-recognition", "wav2vec2_ctc")(np.zeros(8000, dtype=np.float32))
    """,
    """
    import soundfile, torch
    samples, rate = soundfile.read("yes.wav", dtype="float32")
    pipeline("automatic-speech-recognition", "wav2vec2_ctc")(torch.from_numpy(samples))
    """,
    'pipeline("automatic-speech-recognition", "wav2vec2_ctc")(open("yes.wav", "rb").read())',
    """
    import soundfile
    def data():
        for name in ("yes.wav", "no.flac"):
            samples, rate = soundfile.read(name, dtype="float32")
            yield {"array": samples, "sampling_rate": rate}
    [out["text"] for out in pipeline("automatic-speech-recognition", "wav2vec2_ctc")(data())]
    """,
    'pipeline("automatic-speech-recognition", "whisper")("yes.wav", max_new_tokens=9)',
    'pipeline("automatic-speech-recognition", "whisper")("yes.wav", generate_kwargs={"max_new_tokens": 9})',
    'pipeline("automatic-speech-recognition", "whisper")("yes.wav", max_new_tokens=9, num_beams=1)',
    """
    pipe = pipeline("automatic-speech-recognition", "whisper")
    pipe("yes.wav", return_timestamps=True, generate_kwargs={"num_beams": 1, "max_new_tokens": 9})
    """,
    """
    pipe = pipeline("automatic-speech-recognition", "whisper")
    pipe("yes.wav", return_timestamps=True, max_new_tokens=9)["chunks"]
    """,
    """
    pipe = pipeline("automatic-speech-recognition", "whisper")
    pipe("yes.wav", return_language=True, max_new_tokens=9)
    """,
    """
    pipe = pipeline("automatic-speech-recognition", "whisper")
    pipe("yes.wav", generate_kwargs={"language": "english", "task": "translate", "max_new_tokens": 9})
    """,
    """
    pipe = pipeline("automatic-speech-recognition", "whisper", chunk_length_s=30, batch_size=2)
    pipe(["yes.wav", "no.flac"], max_new_tokens=9)
    """,
    'pipeline("automatic-speech-recognition", "moonshine")("yes.wav", max_new_tokens=9)',
)
