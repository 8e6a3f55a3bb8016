"""Ways to call the pipelines that read text."""

from __future__ import annotations

from tests.migration.form import like, same

CLASSIFICATION = same(
    'pipeline("text-classification", "bert_seqcls")(["a cat", "a dog"])',
    'pipeline("text-classification", "bert_seqcls")(inputs="a cat")',
    'pipeline("text-classification", "bert_seqcls")("a cat", top_k=None)',
    'pipeline("text-classification", "bert_seqcls")(["a cat", "a dog"], top_k=1)',
    'pipeline("text-classification", "bert_seqcls")({"text": "a cat", "text_pair": "a dog"})',
    'pipeline("text-classification", "bert_seqcls")([{"text": "a cat", "text_pair": "a dog"}, {"text": "it"}])',
    'pipeline("text-classification", "bert_seqcls")([[["a cat", "a dog"]]])',
    'pipeline("text-classification", "bert_seqcls")("a cat " * 50, truncation=True, max_length=16)',
    'pipeline("text-classification", "bert_seqcls")(["a cat", "a dog ran"], padding=True, truncation=True)',
    'pipeline("text-classification", "bert_seqcls")("a cat", function_to_apply="none")',
    'pipeline("text-classification", "bert_seqcls")("a cat")[0]["label"]',
    'pipeline("text-classification", "bert_seqcls")(["a cat"])',
)

TOKENS = same(
    'pipeline("token-classification", "bert_ner")("Ada lives in Paris")',
    'pipeline("ner", "bert_ner")(["Ada lives in Paris", "Bob"])',
    'pipeline("ner", "bert_ner")(inputs="Ada lives in Paris")',
    'pipeline("ner", "bert_ner")("Ada lives in Paris", aggregation_strategy="first")',
    'pipeline("ner", "bert_ner")("Ada lives in Paris", aggregation_strategy="average")',
    'pipeline("ner", "bert_ner")("Ada lives in Paris", aggregation_strategy="max")',
    'pipeline("ner", "bert_ner", ignore_labels=[])("Ada lives in Paris")',
    'pipeline("ner", "bert_ner")(["Ada", "lives", "in", "Paris"], is_split_into_words=True)',
    """
    words = [["Ada", "lives"], ["in", "Paris"]]
    pipeline("ner", "bert_ner", aggregation_strategy="simple")(words, is_split_into_words=True, delimiter="-")
    """,
    'pipeline("ner", "bert_ner", aggregation_strategy="simple", stride=4)("Ada lives in Paris " * 30)',
)

ZERO_SHOT = same(
    'pipeline("zero-shot-classification", "bert_nli")("a cat sat", candidate_labels=["cats", "dogs"])',
    'pipeline("zero-shot-classification", "bert_nli")("a cat sat", ["cats", "dogs"])',
    'pipeline("zero-shot-classification", "bert_nli")("a cat sat", candidate_labels="cats, dogs", multi_label=True)',
    'pipeline("zero-shot-classification", "bert_nli")(["a cat", "a dog"], ["cats"], hypothesis_template="About {}.")',
    'pipeline("zero-shot-classification", "bert_nli")(sequences="a cat", candidate_labels=["a", "b"])["labels"][0]',
)

WRITTEN = "as in transformers 4"
TO_FRENCH = """
pipe = pipeline("translation", model="nllb", src_lang="eng_Latn", tgt_lang="fra_Latn")
pipe("the cat sat", max_new_tokens=5)
"""
TEXT_TO_TEXT = (
    *like(
        'pipeline("summarization", "bart")("the cat sat on the mat", max_length=9, min_length=2)',
        'pipeline("summarization", "bart", tokenizer="bart")("the cat sat on the mat", max_length=9, min_length=2)',
        """
        summarizer = pipeline("summarization", model="bart", max_length=9, min_length=2)
        [summarizer(["the cat sat on the mat"])[0]]
        """,
        'pipeline("summarization", "bart")("the cat sat on the mat", max_length=9, min_length=2, truncation=True)',
        """
        pipe = pipeline("summarization", "bart")
        [{"summary_text": pipe("the cat sat on the mat", max_length=9, min_length=2)[0]["summary_text"]}]
        """,
        note=WRITTEN,
    ),
    *like(
        'pipeline("translation_en_to_de", "t5")("the cat sat", max_new_tokens=5)',
        'pipeline("translation", "t5", src_lang="en", tgt_lang="de")("the cat sat", max_new_tokens=5)',
        'pipeline("translation", "t5")("the cat sat", max_new_tokens=5)',
        """
        ids = pipeline("translation_en_to_de", "t5")("the cat sat", max_new_tokens=5, return_tensors=True)
        from transformers import AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained("t5")
        [{"translation_text": tokenizer.decode(ids[0]["translation_token_ids"], skip_special_tokens=True)}]
        """,
        note=WRITTEN,
    ),
    *like(
        TO_FRENCH,
        'pipeline("translation", "nllb")("the cat sat", src_lang="eng_Latn", tgt_lang="fra_Latn", max_new_tokens=5)',
        'pipeline("translation_eng_Latn_to_fra_Latn", "nllb")("the cat sat", max_new_tokens=5)',
        note=WRITTEN,
    ),
    *like(
        'pipeline("text2text-generation", "t5")("the cat sat", max_new_tokens=5, num_beams=1)',
        'pipeline("text2text-generation", "t5")(["the cat sat"], max_new_tokens=5, num_beams=1)',
        'list(pipeline("text2text-generation", "t5")(iter(["the cat sat"]), max_new_tokens=5, num_beams=1))[0]',
        'pipeline(model="t5")("the cat sat", max_new_tokens=5, num_beams=1)',
        note=WRITTEN,
    ),
)

MASKS = same(
    'pipeline("fill-mask", "bert")(["a [MASK]", "the [MASK] sat"])',
    'pipeline("fill-mask", "bert")(["a [MASK]"])',
    'pipeline("fill-mask", "bert")("[MASK] and [MASK]")',
    'pipeline("fill-mask", "bert")("a [MASK]", top_k=1)[0]["token_str"]',
    'pipeline("fill-mask", "bert")("a [MASK]", targets=["cat", "dog"])',
    'pipeline("fill-mask", "bert")("a [MASK]", targets="cat")',
    'pipeline("fill-mask", "bert")("a [MASK] " + "cat " * 99, tokenizer_kwargs={"truncation": True, "max_length": 9})',
    """
    pipe = pipeline("fill-mask", "bert")
    pipe(f"Paris is the {pipe.tokenizer.mask_token} of France.")
    """,
)

FEATURES = same(
    'pipeline("feature-extraction", "bert")("a cat")',
    'pipeline("feature-extraction", "bert")(["a cat", "a dog ran"])',
    'pipeline("feature-extraction", "bert")("a cat", return_tensors=True)',
    """
    import numpy as np
    np.array(pipeline("feature-extraction", "bert")("a cat")).squeeze().mean(axis=0)
    """,
    'pipeline("feature-extraction", "bert")("a cat", return_tensors="pt")[0].numpy().mean(axis=0)',
    'pipeline("feature-extraction", "bert")("a cat " * 99, truncation=True)',
    'pipeline("feature-extraction", "bert")("a cat " * 9, tokenize_kwargs={"truncation": True, "max_length": 8})',
)

QUESTION = 'pipeline("question-answering", "bert_qa")({"question": "Who sat?", "context": "The cat sat on the mat."})'
ANSWERING = like(
    QUESTION,
    'pipeline("question-answering", "bert_qa")(question="Who sat?", context="The cat sat on the mat.")',
    'pipeline("question-answering", "bert_qa")("Who sat?", "The cat sat on the mat.")',
    'pipeline("question-answering", model="bert_qa", tokenizer="bert_qa")("Who sat?", "The cat sat on the mat.")',
    'pipeline("question-answering", "bert_qa")(question=["Who sat?"], context=["The cat sat on the mat."])[0]',
    """
    data = [{"question": "Who sat?", "context": "The cat sat on the mat."}]
    pipeline("question-answering", "bert_qa")(data)[0]
    """,
    note="as in transformers 4",
)

DATASETS = (
    *same(
        """
        import json
        from torch.utils.data import Dataset
        class Reviews(Dataset):
            def __init__(self):
                self.rows = json.load(open("reviews.json"))
            def __len__(self):
                return len(self.rows)
            def __getitem__(self, i):
                return self.rows[i]["text"]
        [out for out in pipeline("text-classification", "bert_seqcls")(Reviews(), batch_size=2)]
        """,
        """
        import json
        from transformers.pipelines.pt_utils import KeyDataset
        rows = json.load(open("reviews.json"))
        list(pipeline("text-classification", "bert_seqcls")(KeyDataset(rows, "text")))
        """,
        """
        import json
        from transformers.pipelines.pt_utils import KeyPairDataset
        rows = json.load(open("reviews.json"))
        list(pipeline("text-classification", "bert_seqcls")(KeyPairDataset(rows, "text", "pair")))
        """,
        """
        import json
        from transformers.pipelines.pt_utils import KeyDataset
        rows = json.load(open("reviews.json"))
        len(pipeline("text-classification", "bert_seqcls")(KeyDataset(rows, "text"), batch_size=1))
        """,
        """
        import json
        from transformers.pipelines.pt_utils import KeyDataset
        texts = KeyDataset(json.load(open("reviews.json")), "text")
        pipe = pipeline("text-generation", "llama_b")
        [out[0]["generated_text"] for out in pipe(texts, do_sample=False, max_new_tokens=3)]
        """,
        """
        def data():
            for i in range(5):
                yield f"My example {i}"
        list(pipeline("text-classification", "bert_seqcls")(data()))
        """,
        """
        def data():
            for i in range(5):
                yield f"My example {i}"
        pipe = pipeline("text-generation", "llama_b")
        [out[0]["generated_text"] for out in pipe(data(), do_sample=False, max_new_tokens=3)]
        """,
        """
        seen = []
        def data():
            yield "a cat"
            yield seen[-1]["label"]
        for out in pipeline("text-classification", "bert_seqcls")(data()):
            seen.append(out)
        seen
        """,
        """
        texts = ["a cat", "a dog", "the mat"]
        [pipeline("text-classification", "bert_seqcls")(text)[0]["score"] for text in texts]
        """,
        """
        pipe = pipeline("text-classification", "bert_seqcls")
        list(map(pipe, ["a cat", "a dog"]))
        """,
        """
        from concurrent.futures import ThreadPoolExecutor
        pipe = pipeline("text-classification", "bert_seqcls")
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(pipe, ["a cat", "a dog", "the mat"]))
        answers
        """,
    ),
    *like(
        'pipeline("text-classification", "bert_seqcls")(["a cat", "a dog"])',
        'pipeline("text-classification", "bert_seqcls")(("a cat", "a dog"))',
        'list(pipeline("text-classification", "bert_seqcls")(iter(["a cat", "a dog"])))',
        note="as a list (transformers takes neither)",
    ),
)
