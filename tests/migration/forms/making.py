"""Ways to make a pipeline, and what scripts read from it."""

from __future__ import annotations

from tests.migration.form import Form, like, same

ASKED = "as with the task (transformers asks the Hub)"
TASK_AND_MODEL = (
    *same(
        'pipeline("fill-mask", "bert")("a [MASK]")',
        'pipeline("fill-mask", model="bert")("a [MASK]")',
        'pipeline(task="fill-mask", model="bert")("a [MASK]")',
        'pipeline(model="bert", task="fill-mask")("a [MASK]")',
        'pipeline(model="whisper", task="automatic-speech-recognition")("yes.wav", num_beams=1)',
        'pipeline("sentiment-analysis", model="bert_seqcls")("a cat")',
        'pipeline("ner", model="bert_ner")("Ada lives in Paris")',
        """
    from pathlib import Path
    pipeline("text-classification", model=Path("bert_seqcls"))("a cat")
    """,
        """
    import os
    pipeline("text-classification", model=os.path.abspath("bert_seqcls"))("a cat")
    """,
        """
    pipe = pipeline("text-classification", "bert_seqcls", None, "bert_seqcls")
    pipe("a cat")
    """,
    ),
    *(
        form
        for task, model, call in (
            ("text-classification", "bert_seqcls", '("a cat")'),
            ("token-classification", "bert_ner", '("Ada lives in Paris")'),
            ("text-generation", "llama_b", '("the cat sat", do_sample=False, max_new_tokens=4)'),
            ("image-classification", "vit_cls", '("cat.png")'),
            ("automatic-speech-recognition", "wav2vec2_ctc", '("yes.wav")'),
        )
        for form in like(f'pipeline("{task}", "{model}"){call}', f'pipeline(model="{model}"){call}', note=ASKED)
    ),
)

TOKENIZERS = (
    *same(
        'pipeline("fill-mask", model="bert", tokenizer="bert")("a [MASK]")',
        """
        from transformers import AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained("bert")
        pipeline("fill-mask", model="bert", tokenizer=tokenizer)("a [MASK]")
        """,
        """
        from transformers import AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained("llama3_instruct")
        pipe = pipeline("text-generation", model="llama3_instruct", tokenizer=tokenizer)
        pipe([{"role": "user", "content": "Hi"}], do_sample=False, max_new_tokens=4)
        """,
        """
        from transformers import AutoImageProcessor
        processor = AutoImageProcessor.from_pretrained("vit_cls", use_fast=False)
        pipeline("image-classification", model="vit_cls", image_processor=processor)("cat.png")
        """,
        'pipeline("image-classification", model="vit_cls", image_processor="vit_cls")("cat.png")',
        """
        from transformers import AutoFeatureExtractor
        extractor = AutoFeatureExtractor.from_pretrained("wav2vec2_ctc")
        pipe = pipeline("automatic-speech-recognition", "wav2vec2_ctc", feature_extractor=extractor)
        pipe("yes.wav")
        """,
        """
        from transformers import AutoProcessor
        processor = AutoProcessor.from_pretrained("whisper")
        pipe = pipeline(
            "automatic-speech-recognition",
            model="whisper",
            tokenizer=processor.tokenizer,
            feature_extractor=processor.feature_extractor,
        )
        pipe("yes.wav", generate_kwargs={"max_new_tokens": 9})
        """,
        """
        from transformers import AutoConfig
        config = AutoConfig.from_pretrained("bert_seqcls")
        pipeline("text-classification", model="bert_seqcls", config=config)("a cat")
        """,
        'pipeline("text-classification", model="bert_seqcls", config="bert_seqcls")("a cat")',
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        model = AutoModelForSequenceClassification.from_pretrained("bert_seqcls")
        tokenizer = AutoTokenizer.from_pretrained("bert_seqcls")
        pipeline("text-classification", model=model, tokenizer=tokenizer)("a cat")
        """,
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer
        model = AutoModelForCausalLM.from_pretrained("llama_b")
        tokenizer = AutoTokenizer.from_pretrained("llama_b")
        pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, max_new_tokens=4, do_sample=False)
        pipe("the cat")
        """,
    ),
)

DEVICES = same(
    'pipeline("text-classification", model="bert_seqcls", device=-1)("a cat")',
    'pipeline("text-classification", model="bert_seqcls", device="cpu")("a cat")',
    """
    import torch
    pipeline("text-classification", model="bert_seqcls", device=torch.device("cpu"))("a cat")
    """,
    """
    import torch
    device = 0 if torch.cuda.is_available() else -1
    pipeline("text-classification", model="bert_seqcls", device=device)("a cat")
    """,
    """
    import torch
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline("text-classification", model="bert_seqcls", device=device)("a cat")
    """,
    'pipeline("text-classification", model="bert_seqcls", device=0)("a cat")',
    'pipeline("text-classification", model="bert_seqcls", device_map="auto")("a cat")',
    'pipeline("text-classification", model="bert_seqcls", device_map="cpu")("a cat")',
    """
    import torch
    pipeline("text-classification", model="bert_seqcls", dtype=torch.float32)("a cat")
    """,
    """
    import torch
    pipeline("text-classification", model="bert_seqcls", torch_dtype=torch.float32)("a cat")
    """,
    'pipeline("text-classification", model="bert_seqcls", dtype="float32")("a cat")',
    'pipeline("text-classification", model="bert_seqcls", dtype="auto")("a cat")',
    'pipeline("text-classification", model="bert_seqcls", torch_dtype="auto")("a cat")',
    """
    import torch
    pipe = pipeline("text-generation", model="llama_b", dtype=torch.bfloat16)
    len(pipe("the cat", do_sample=False, max_new_tokens=3, return_full_text=False))
    """,
    """
    import torch
    pipe = pipeline("text-classification", model="bert_seqcls", dtype=torch.bfloat16)
    str(pipe.model.dtype)
    """,
    """
    import torch
    pipe = pipeline("text-classification", model="bert_seqcls", model_kwargs={"dtype": torch.float32})
    pipe("a cat")
    """,
)

OTHER_PARAMETERS = (
    *same(
        'pipeline("text-classification", model="bert_seqcls", batch_size=8)(["a cat", "a dog", "it"])',
        'pipeline("text-classification", model="bert_seqcls", num_workers=0)(["a cat", "a dog"])',
        'pipeline("text-classification", model="bert_seqcls", framework="pt")("a cat")',
        'pipeline("text-classification", model="bert_seqcls", use_fast=True)("a cat")',
        'pipeline("text-classification", model="bert_seqcls", trust_remote_code=False)("a cat")',
        'pipeline("text-classification", model="bert_seqcls", revision="main")("a cat")',
        'pipeline("text-classification", model="bert_seqcls", token=None)("a cat")',
        'pipeline("text-classification", model="bert_seqcls", top_k=None)("a cat")',
        'pipeline("text-classification", model="bert_seqcls", top_k=2)(["a cat", "a dog"])',
        'pipeline("text-classification", model="bert_seqcls", function_to_apply="sigmoid")("a cat")',
        'pipeline("ner", model="bert_ner", aggregation_strategy="simple")("Ada lives in Paris")',
        'pipeline("fill-mask", model="bert", top_k=2)("a [MASK]")',
        'pipeline("feature-extraction", model="bert", return_tensors=True)("a cat")',
        'pipeline("text-generation", "llama_b", max_new_tokens=3, do_sample=False)("the cat")',
        'pipeline("text-generation", "llama_b", max_length=9, do_sample=False)("the cat")',
        """
        pipe = pipeline("text-generation", "llama_b", return_full_text=False, do_sample=False, max_new_tokens=3)
        pipe("the cat")
        """,
        'pipeline("automatic-speech-recognition", "wav2vec2_ctc", chunk_length_s=0.3)("yes.wav")',
        """
        pipe = pipeline("automatic-speech-recognition", "whisper", generate_kwargs={"max_new_tokens": 9})
        pipe("yes.wav")
        """,
        'pipeline("text-classification", model="bert_seqcls", model_kwargs={"low_cpu_mem_usage": True})("a cat")',
        """
        model_kwargs = {"attn_implementation": "eager"}
        pipeline("text-classification", model="bert_seqcls", model_kwargs=model_kwargs)("a cat")
        """,
    ),
    Form(
        'pipeline("text-classification", model="bert_seqcls", trust_remote_code=True)("a cat")',
        refused="isoform runs no code from a repository; leave it out",
        says="trust_remote_code",
    ),
    Form(
        """
        pipe = pipeline("text-generation", "llama_b", assistant_model="llama_b")
        pipe("the cat", do_sample=False, max_new_tokens=3)
        """,
    ),
    Form(
        'pipeline("translation_en_to_fr", model="llama_b")("the cat")',
        refused="the model has no encoder; one for translation is needed",
        says="has no task 'text2text-generation'",
    ),
)

ATTRIBUTES = same(
    'pipeline("text-classification", model="bert_seqcls").task',
    'pipeline("sentiment-analysis", model="bert_seqcls").task',
    'str(pipeline("text-classification", model="bert_seqcls", device=-1).device)',
    'str(pipeline("text-classification", model="bert_seqcls").model.device)',
    'str(pipeline("text-classification", model="bert_seqcls").model.dtype)',
    'pipeline("text-classification", model="bert_seqcls").model.config.id2label',
    'pipeline("text-classification", model="bert_seqcls").model.config.label2id',
    'pipeline("text-classification", model="bert_seqcls").model.config.num_labels',
    'pipeline("text-generation", model="llama_b").model.config.vocab_size',
    'pipeline("text-generation", model="llama_b").model.config.model_type',
    'pipeline("text-generation", model="llama_b").model.config.eos_token_id',
    'pipeline("text-generation", model="llama_b").model.generation_config.eos_token_id',
    'pipeline("text-generation", model="llama_b").tokenizer.eos_token_id',
    'pipeline("text-generation", model="llama_b").tokenizer.eos_token',
    'pipeline("fill-mask", model="bert").tokenizer.mask_token',
    'pipeline("fill-mask", model="bert").tokenizer.mask_token_id',
    'pipeline("fill-mask", model="bert").tokenizer("a cat")["input_ids"]',
    'pipeline("fill-mask", model="bert").tokenizer("a cat", return_tensors="pt").input_ids',
    'pipeline("fill-mask", model="bert").tokenizer.encode("a cat")',
    'pipeline("fill-mask", model="bert").tokenizer.tokenize("a cat sat")',
    'pipeline("fill-mask", model="bert").tokenizer.decode([5, 6, 7])',
    'pipeline("fill-mask", model="bert").tokenizer.batch_decode([[5, 6], [7]])',
    'pipeline("fill-mask", model="bert").tokenizer.convert_ids_to_tokens([5, 6])',
    'pipeline("fill-mask", model="bert").tokenizer.convert_tokens_to_ids("[MASK]")',
    'pipeline("fill-mask", model="bert").tokenizer.vocab_size',
    'len(pipeline("fill-mask", model="bert").tokenizer)',
    """
    pipe = pipeline("text-generation", model="llama3_instruct")
    messages = [{"role": "user", "content": "Hi"}]
    pipe.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    """,
    """
    pipe = pipeline("text-generation", model="llama3_instruct")
    prompt = pipe.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    pipe(prompt, max_new_tokens=3, do_sample=False, add_special_tokens=False)
    """,
    """
    pipe = pipeline("text-generation", model="llama_b")
    pipe("the cat", max_new_tokens=3, do_sample=False, pad_token_id=pipe.tokenizer.eos_token_id)
    """,
    """
    pipe = pipeline("text-generation", model="llama_b", device=-1)
    pipe.tokenizer.pad_token_id = pipe.model.config.eos_token_id
    pipe(["the cat", "a dog ran"], batch_size=2, max_new_tokens=3, do_sample=False)
    """,
    """
    pipe = pipeline("text-generation", model="llama3_instruct")
    terminators = [pipe.tokenizer.eos_token_id, pipe.tokenizer.convert_tokens_to_ids("<|eot_id|>")]
    pipe("the cat", max_new_tokens=3, do_sample=False, eos_token_id=[t for t in terminators if t is not None])
    """,
    'pipeline("automatic-speech-recognition", "wav2vec2_ctc").feature_extractor.sampling_rate',
    'pipeline("text-classification", model="bert_seqcls").predict(["a cat", "a dog"])',
    'pipeline("text-classification", model="bert_seqcls").transform(["a cat", "a dog"])',
    """
    import os
    pipeline("text-classification", model="bert_seqcls").save_pretrained("saved_" + str(id(pipeline)))
    again = pipeline("text-classification", model="saved_" + str(id(pipeline)))
    again("a cat")
    """,
)
