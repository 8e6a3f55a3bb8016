"""Ways to generate text."""

from __future__ import annotations

from tests.migration.form import Form, same

TEXT = same(
    'pipeline("text-generation", "llama_b")("the cat sat", do_sample=False, max_new_tokens=5)',
    'pipeline("text-generation", "llama_b")(text_inputs="the cat sat", do_sample=False, max_new_tokens=5)',
    'pipeline("text-generation", "llama_b")(["the cat", "a dog"], do_sample=False, max_new_tokens=5)',
    'pipeline("text-generation", "llama_b")("the cat", do_sample=False, max_new_tokens=5)[0]["generated_text"]',
    'pipeline("text-generation", "llama_b")("the cat", do_sample=False, max_length=12)',
    'pipeline("text-generation", "llama_b")("the cat", do_sample=False, max_new_tokens=5, return_full_text=False)',
    'pipeline("text-generation", "llama_b")("the cat", do_sample=False, max_new_tokens=5, return_text=True)',
    'pipeline("text-generation", "llama_b")("the cat", do_sample=False, max_new_tokens=5, return_tensors=True)',
    'pipeline("text-generation", "llama_b")("", do_sample=False, max_new_tokens=5)',
    'pipeline("text-generation", "llama_b")("cat", do_sample=False, max_new_tokens=5, prefix="the ")',
    'pipeline("text-generation", "llama_b")("the cat", do_sample=False, max_length=15, prefix="Hello, ")',
    'pipeline("text-generation", "llama_b")("the cat", do_sample=False, max_new_tokens=9, stop_sequence="a")',
    """
    pipe = pipeline("text-generation", "llama_b")
    pipe("the cat", do_sample=False, max_new_tokens=9, stop_strings=["a", "e"], tokenizer=pipe.tokenizer)
    """,
    'pipeline("text-generation", "llama_b")("the cat " * 9, do_sample=False, max_new_tokens=3, truncation=True)',
    """
    pipe = pipeline("text-generation", "llama_b")
    pipe("the cat " * 9, do_sample=False, max_new_tokens=3, truncation=True, max_length=8)
    """,
    """
    pipe = pipeline("text-generation", "llama_b")
    options = {"truncation": True, "max_length": 8}
    pipe("the cat " * 9, do_sample=False, max_new_tokens=3, tokenizer_encode_kwargs=options)
    """,
    """
    pipe = pipeline("text-generation", "llama_b")
    pipe("the cat", do_sample=False, max_new_tokens=3, handle_long_generation="hole")
    """,
    """
    pipe = pipeline("text-generation", "llama_b")
    pipe("the cat", do_sample=False, max_new_tokens=5, clean_up_tokenization_spaces=False)
    """,
    'pipeline("text-generation", "llama_b")("the cat", do_sample=False, max_new_tokens=5, add_special_tokens=True)',
    'pipeline("text-generation", "llama_b")("the cat", do_sample=False, max_new_tokens=5, skip_special_tokens=False)',
    'pipeline("text-generation", "llama_b")(["the cat", "a dog"], do_sample=False, max_new_tokens=3, num_workers=0)',
)

SETTINGS = (
    *same(
        'pipeline("text-generation", "llama_b")("the cat", num_beams=3, do_sample=False, max_new_tokens=5)',
        """
        pipe = pipeline("text-generation", "llama_b")
        pipe("the cat", num_beams=3, num_return_sequences=2, do_sample=False, max_new_tokens=5)
        """,
        """
        pipe = pipeline("text-generation", "llama_b")
        pipe("the cat", num_beams=2, early_stopping=True, length_penalty=0.5, do_sample=False, max_new_tokens=5)
        """,
        'pipeline("text-generation", "llama_b")("the cat", repetition_penalty=1.3, do_sample=False, max_new_tokens=9)',
        'pipeline("text-generation", "llama_b")("a a a", no_repeat_ngram_size=2, do_sample=False, max_new_tokens=9)',
        'pipeline("text-generation", "llama_b")("the cat", bad_words_ids=[[5]], do_sample=False, max_new_tokens=5)',
        'pipeline("text-generation", "llama_b")("the cat", min_new_tokens=4, do_sample=False, max_new_tokens=5)',
        'pipeline("text-generation", "llama_b")("the cat", suppress_tokens=[5, 6], do_sample=False, max_new_tokens=5)',
        'pipeline("text-generation", "llama_b")("the cat", eos_token_id=-1, do_sample=False, max_new_tokens=9)',
        'pipeline("text-generation", "llama_b")("the cat", pad_token_id=0, do_sample=False, max_new_tokens=5)',
        'pipeline("text-generation", "llama_b")("the cat", use_cache=True, do_sample=False, max_new_tokens=5)',
        'pipeline("text-generation", "llama_b")("the cat", max_time=60.0, do_sample=False, max_new_tokens=5)',
        'pipeline("text-generation", "llama_b")("the cat", do_sample=True, top_k=1, max_new_tokens=5)',
        """
        pipe = pipeline("text-generation", "llama_b")
        outs = pipe("the cat", do_sample=True, temperature=0.7, top_p=0.9, num_return_sequences=3, max_new_tokens=2)
        [sorted(out) for out in outs]
        """,
        """
        from transformers import GenerationConfig
        config = GenerationConfig(max_new_tokens=5, do_sample=False)
        pipeline("text-generation", "llama_b")("the cat", generation_config=config)
        """,
        """
        from transformers import GenerationConfig
        config = GenerationConfig.from_pretrained("llama_b", max_new_tokens=5, do_sample=False)
        pipeline("text-generation", "llama_b", generation_config=config)("the cat")
        """,
        """
        from transformers import GenerationConfig
        config = GenerationConfig(max_new_tokens=5, num_beams=2, do_sample=False)
        pipe = pipeline("text-generation", "llama_b", max_new_tokens=2)
        pipe("the cat", generation_config=config)
        """,
        """
        pipe = pipeline("text-generation", "llama_b")
        settings = {"max_new_tokens": 5, "do_sample": False, "repetition_penalty": 1.2}
        pipe("the cat", **settings)
        """,
    ),
    Form(
        """
        options = {"do_sample": False, "max_new_tokens": 3, "return_dict_in_generate": True, "output_scores": True}
        pipeline("text-generation", "llama_b")("the cat", **options)
        """,
        refused="answers carry no scores of all tokens",
        says="output_scores",
    ),
    Form(
        'pipeline("text-generation", "llama_b")("the cat", penalty_alpha=0.6, top_k=4, max_new_tokens=3)',
        refused="contrastive search is code from the Hub in transformers 5",
        says="penalty_alpha",
    ),
    Form(
        'pipeline("text-generation", "llama_b")("the cat", guidance_scale=1.5, do_sample=False, max_new_tokens=3)',
    ),
)

CHAT = same(
    """
    chat = [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "Hello there"},
    ]
    pipe = pipeline(task="text-generation", model="llama3_instruct")
    pipe(chat, max_new_tokens=5, do_sample=False)[0]["generated_text"][-1]["content"]
    """,
    """
    messages = [{"role": "user", "content": "Hello there"}]
    pipeline("text-generation", "llama3_instruct")(messages, do_sample=False, max_new_tokens=5)
    """,
    """
    chats = [[{"role": "user", "content": "Hello"}], [{"role": "user", "content": "Good bye"}]]
    pipeline("text-generation", "llama3_instruct")(chats, do_sample=False, max_new_tokens=5)
    """,
    """
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "The answer is"}]
    pipeline("text-generation", "llama3_instruct")(messages, do_sample=False, max_new_tokens=5)
    """,
    """
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "The answer is"}]
    pipe = pipeline("text-generation", "llama3_instruct")
    pipe(messages, do_sample=False, max_new_tokens=5, continue_final_message=False)
    """,
    """
    messages = [{"role": "user", "content": "Hello"}]
    pipe = pipeline("text-generation", "llama3_instruct")
    pipe(messages, do_sample=False, max_new_tokens=5, return_full_text=False)[0]["generated_text"]
    """,
    """
    pipe = pipeline("text-generation", "llama3_instruct", do_sample=False, max_new_tokens=4)
    chat = [{"role": "user", "content": "Hello"}]
    chat = pipe(chat)[0]["generated_text"]
    chat.append({"role": "user", "content": "Go on"})
    pipe(chat)[0]["generated_text"]
    """,
    """
    chats = [[{"role": "user", "content": f"Hello {i}"}] for i in range(3)]
    pipe = pipeline("text-generation", "llama3_instruct", do_sample=False, max_new_tokens=3)
    [out[0]["generated_text"][-1] for out in pipe(chat for chat in chats)]
    """,
    """
    pipe = pipeline("text-generation", "llama3_instruct", do_sample=False, max_new_tokens=3)
    messages = ({"role": "user", "content": text} for text in ["Hello"])
    pipe(messages)
    """,
    """
    chat = [{"role": "user", "content": "Hello"}]
    pipe = pipeline("text-generation", "llama3_instruct", do_sample=False, max_new_tokens=3)
    pipe(text_inputs=chat)
    """,
)

PROCESSORS = same(
    """
    from transformers import LogitsProcessor, LogitsProcessorList
    class NoTwice(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores[:, input_ids[0]] = -float("inf")
            return scores
    pipe = pipeline("text-generation", "llama_b", do_sample=False, max_new_tokens=5)
    pipe("the cat", logits_processor=LogitsProcessorList([NoTwice()]))
    """,
    """
    from transformers import LogitsProcessorList, MinLengthLogitsProcessor
    processors = LogitsProcessorList([MinLengthLogitsProcessor(15, eos_token_id=2)])
    pipe = pipeline("text-generation", "llama_b", do_sample=False, max_new_tokens=9)
    pipe("the cat", logits_processor=processors)
    """,
    """
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper
    pipe = pipeline("text-generation", "llama_b", do_sample=False, max_new_tokens=5)
    pipe("the cat", logits_processor=[TemperatureLogitsWarper(0.5), TopKLogitsWarper(3)])
    """,
    """
    pipe = pipeline("text-generation", "llama_b", do_sample=False, max_new_tokens=5)
    pipe("the cat", logits_processor=[lambda input_ids, scores: -scores])
    """,
    """
    pipe = pipeline("text-generation", "llama_b", do_sample=False, max_new_tokens=5)
    pipe("the cat", prefix_allowed_tokens_fn=lambda batch_id, input_ids: [5, 7, 11])
    """,
    """
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList
    class Enough(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([len(row) > 9 for row in input_ids])
    pipe = pipeline("text-generation", "llama_b", do_sample=False, max_new_tokens=30)
    pipe("the cat", stopping_criteria=StoppingCriteriaList([Enough()]))
    """,
    """
    from transformers import MaxLengthCriteria
    pipe = pipeline("text-generation", "llama_b", do_sample=False)
    pipe("the cat", stopping_criteria=[MaxLengthCriteria(max_length=9)])
    """,
    """
    from transformers import StopStringCriteria
    pipe = pipeline("text-generation", "llama_b", do_sample=False, max_new_tokens=20)
    pipe("the cat", stop_strings=["e", "t"], tokenizer=pipe.tokenizer)
    """,
)

STREAMERS = same(
    """
    import contextlib, io
    from transformers import AutoTokenizer, TextStreamer
    streamer = TextStreamer(AutoTokenizer.from_pretrained("llama_b"))
    pipe = pipeline("text-generation", "llama_b", do_sample=False, max_new_tokens=5)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        pipe("the cat", streamer=streamer)
    printed.getvalue()
    """,
    """
    import contextlib, io
    from transformers import TextStreamer
    pipe = pipeline("text-generation", "llama_b", do_sample=False, max_new_tokens=5)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        pipe("the cat", streamer=TextStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True))
    printed.getvalue()
    """,
    """
    from threading import Thread
    from transformers import TextIteratorStreamer
    pipe = pipeline("text-generation", "llama_b", do_sample=False, max_new_tokens=5)
    streamer = TextIteratorStreamer(pipe.tokenizer, skip_prompt=True)
    thread = Thread(target=pipe, args=("the cat",), kwargs={"streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    text
    """,
    """
    from transformers.generation.streamers import BaseStreamer
    class Collect(BaseStreamer):
        def __init__(self):
            self.tokens = []
        def put(self, value):
            self.tokens += value.flatten().tolist()
        def end(self):
            self.tokens.append(-1)
    streamer = Collect()
    pipe = pipeline("text-generation", "llama_b", do_sample=False, max_new_tokens=5)
    pipe("the cat", streamer=streamer)
    streamer.tokens
    """,
)
