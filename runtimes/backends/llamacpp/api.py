"""The part of llama.cpp's C interface that isoform calls, read from the library that the xllamacpp wheel carries.

Declarations follow `include/llama.h` of llama.cpp build 11549. Parameters and batches go by value, so a library of
another build would misread them without a word: `Api` insists on the exact wheel and checks the defaults it returns.
Only the worker process loads it.
"""

from __future__ import annotations

from collections import deque
from importlib import metadata, util
from pathlib import Path
from typing import Any

from isoform.errors import BackendUnavailable

XLLAMACPP = "2026.10.11549"
INSTALL = f"run `pip install xllamacpp=={XLLAMACPP}`"
REINSTALL = f"run `pip install --force-reinstall xllamacpp=={XLLAMACPP}`"
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
F32 = 0  # GGML_TYPE_F32
FLASH_ATTENTION_OFF = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED
POOLING_NONE = 0  # LLAMA_POOLING_TYPE_NONE
WINDOWS_ONLY = 1  # LLAMA_STATE_SEQ_FLAGS_SWA_ONLY
SPLIT_NONE = 0  # LLAMA_SPLIT_MODE_NONE

DECLARATIONS = """
typedef struct llama_model_params {
    void ** devices;
    const void * tensor_buft_overrides;
    int32_t n_gpu_layers;
    int split_mode;
    int load_mode;
    int lazy_mode;
    int32_t main_gpu;
    const float * tensor_split;
    void * progress_callback;
    void * progress_callback_user_data;
    const void * kv_overrides;
    bool vocab_only;
    bool check_tensors;
    bool use_extra_bufts;
    bool no_host;
    bool no_alloc;
    bool load_mtp;
} llama_model_params;

typedef struct llama_context_params {
    uint32_t n_ctx;
    uint32_t n_batch;
    uint32_t n_ubatch;
    uint32_t n_seq_max;
    uint32_t n_rs_seq;
    uint32_t n_outputs_max;
    uint32_t n_outputs_max_per_seq;
    int32_t n_threads;
    int32_t n_threads_batch;
    int ctx_type;
    int rope_scaling_type;
    int pooling_type;
    int attention_type;
    int flash_attn_type;
    float rope_freq_base;
    float rope_freq_scale;
    float yarn_ext_factor;
    float yarn_attn_factor;
    float yarn_beta_fast;
    float yarn_beta_slow;
    uint32_t yarn_orig_ctx;
    float defrag_thold;
    void * cb_eval;
    void * cb_eval_user_data;
    int type_k;
    int type_v;
    size_t moe_cache_size;
    void * abort_callback;
    void * abort_callback_data;
    bool embeddings;
    bool offload_kqv;
    bool no_perf;
    bool op_offload;
    bool swa_full;
    bool kv_unified;
    void * samplers;
    size_t n_samplers;
    void * ctx_other;
} llama_context_params;

typedef struct llama_batch {
    int32_t n_tokens;
    int32_t * token;
    float * embd;
    int32_t * pos;
    int32_t * n_seq_id;
    int32_t ** seq_id;
    int8_t * logits;
} llama_batch;

typedef struct ggml_tensor {
    int type;
    void * buffer;
    int64_t ne[4];
    size_t nb[4];
    int op;
    int32_t op_params[16];
    int32_t flags;
    struct ggml_tensor * src[10];
} ggml_tensor;

typedef bool (*eval_callback)(ggml_tensor * tensor, bool ask, void * user_data);
typedef void (*log_callback)(int level, const char * text, void * user_data);

void llama_log_set(log_callback callback, void * user_data);
void llama_backend_init(void);
bool llama_supports_gpu_offload(void);
llama_model_params llama_model_default_params(void);
llama_context_params llama_context_default_params(void);

void * llama_model_load_from_file(const char * path, llama_model_params params);
void llama_model_free(void * model);
const void * llama_model_get_vocab(const void * model);
int32_t llama_model_n_ctx_train(const void * model);
int32_t llama_model_n_embd_out(const void * model);
int32_t llama_model_n_swa(const void * model);
bool llama_model_has_encoder(const void * model);

void * llama_init_from_model(void * model, llama_context_params params);
void llama_free(void * context);
uint32_t llama_n_ctx_seq(const void * context);
void * llama_get_memory(const void * context);
void llama_memory_clear(void * memory, bool data);
bool llama_memory_seq_rm(void * memory, int32_t seq, int32_t first, int32_t end);
void llama_memory_seq_cp(void * memory, int32_t source, int32_t target, int32_t first, int32_t end);
size_t llama_state_seq_get_size(void * context, int32_t seq);
size_t llama_state_seq_get_size_ext(void * context, int32_t seq, uint32_t flags);
size_t llama_state_seq_get_data(void * context, uint8_t * out, size_t size, int32_t seq);
size_t llama_state_seq_set_data(void * context, const uint8_t * data, size_t size, int32_t seq);

int32_t llama_encode(void * context, llama_batch batch);
int32_t llama_decode(void * context, llama_batch batch);
float * llama_get_logits(void * context);
float * llama_get_embeddings(void * context);

const char * ggml_get_name(const ggml_tensor * tensor);
const char * ggml_op_desc(const ggml_tensor * tensor);
bool ggml_is_contiguous(const ggml_tensor * tensor);
size_t ggml_nbytes(const ggml_tensor * tensor);
void ggml_backend_tensor_get(const ggml_tensor * tensor, void * data, size_t offset, size_t size);

int32_t llama_vocab_n_tokens(const void * vocab);
int32_t llama_tokenize(const void * vocab, const char * text, int32_t length, int32_t * tokens, int32_t capacity,
                       bool add_special, bool parse_special);
int32_t llama_detokenize(const void * vocab, const int32_t * tokens, int32_t count, char * text, int32_t capacity,
                         bool remove_special, bool unparse_special);
"""


def library_path() -> Path:
    """The shared library inside the installed xllamacpp wheel; found without importing the package."""
    spec = util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        raise BackendUnavailable(f"the llamacpp backend needs the package xllamacpp, which is not installed; {INSTALL}")
    version = metadata.version("xllamacpp")
    if version != XLLAMACPP:
        raise BackendUnavailable(
            f"xllamacpp {version} is installed, but this isoform calls the C interface of {XLLAMACPP}; {INSTALL}"
        )
    found = [
        path
        for folder in spec.submodule_search_locations
        for path in Path(folder).glob("xllamacpp.*")
        if path.suffix in (".so", ".pyd")
    ]
    if not found:
        raise BackendUnavailable(f"xllamacpp {version} has no library for this Python and machine; {INSTALL}")
    return found[0]


class Api:
    """llama.cpp, loaded and initialised; `log` holds the last lines it wrote (warnings and errors only)."""

    def __init__(self) -> None:
        import cffi

        path = library_path()
        self.ffi: Any = cffi.FFI()
        self.ffi.cdef(DECLARATIONS)
        try:
            self.lib: Any = self.ffi.dlopen(str(path))
            _check_layout(self.ffi, self.lib)
        except (OSError, AttributeError) as error:
            raise BackendUnavailable(f"{path} does not load as llama.cpp ({error}); {REINSTALL}") from error
        self.log: deque[str] = deque(maxlen=8)
        self._level = 0
        self._callback = self.ffi.callback("log_callback", self._keep)  # must outlive the library's use of it
        self.lib.llama_log_set(self._callback, self.ffi.NULL)
        self.lib.llama_backend_init()

    def _keep(self, level: int, text: Any, _: Any) -> None:
        warning, error, continued = 3, 4, 5  # enum ggml_log_level
        if level != continued:
            self._level = level
        line = self.ffi.string(text).decode(errors="replace").strip()
        if self._level in (warning, error) and line:
            self.log.append(line)

    def reason(self) -> str:
        """What llama.cpp said since the last call, oldest first, or "it gave no reason"."""
        lines = list(dict.fromkeys(self.log))
        self.log.clear()
        return "; ".join(lines) or "it gave no reason"


def _check_layout(ffi: Any, lib: Any) -> None:
    """Refuse a library whose structs differ: a wrong offset would show in the defaults, first field to last."""
    model, context = lib.llama_model_default_params(), lib.llama_context_default_params()
    expected = {
        "n_ctx": (context.n_ctx, 512),
        "n_batch": (context.n_batch, 2048),
        "n_ubatch": (context.n_ubatch, 512),
        "n_seq_max": (context.n_seq_max, 1),
        "flash_attn_type": (context.flash_attn_type, -1),
        "yarn_ext_factor": (context.yarn_ext_factor, -1.0),
        "type_k": (context.type_k, 1),
        "type_v": (context.type_v, 1),
        "embeddings": (context.embeddings, False),
        "offload_kqv": (context.offload_kqv, True),
        "swa_full": (context.swa_full, True),
        "kv_unified": (context.kv_unified, False),
        "n_samplers": (context.n_samplers, 0),
        "ctx_other": (context.ctx_other, ffi.NULL),
        "n_gpu_layers": (model.n_gpu_layers, -1),
        "vocab_only": (model.vocab_only, False),
        "use_extra_bufts": (model.use_extra_bufts, True),
        "no_alloc": (model.no_alloc, False),
    }
    wrong = ", ".join(f"{name} is {found}, not {want}" for name, (found, want) in expected.items() if found != want)
    if wrong:
        raise BackendUnavailable(
            f"llama.cpp in xllamacpp {XLLAMACPP} returns unexpected defaults ({wrong}); {REINSTALL}"
        )
