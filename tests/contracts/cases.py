"""What the servers' loaders do with edited exports, and what `check` must say of them: a row for an edit and a server.

Run against the loaders with the NPU kernels emulated, on edited exports of small models, or read in their sources where
`does` ends in "(read)". Versions: those of quant.servers.rules.VERSIONS.

An edit is a list of steps, each a verb of edits.py and its arguments; names of tensors may be patterns. What `check`
says is a set of "level rule"; an export may break several rules with one edit.
"""

from dataclasses import dataclass, field

MINDIE, VLLM = "mindie", "vllm-ascend"
QWEN, QWEN25, LLAVA = "qwen2_vl", "qwen2_5_vl", "llava"
FINE = ("loads", "")
LAYERS = {QWEN: "model.layers", QWEN25: "model.layers", LLAVA: "language_model.model.layers"}


@dataclass(frozen=True)
class Case:
    """edit: in words; steps: the edit; families: exports that it is tried on; mindie, vllm: what that loader does, and
    what check must say, with a part of the effect that it names after a colon. made: how the export is made;
    source: whether check is told the float checkpoint.
    """

    edit: str
    steps: tuple[tuple, ...]
    mindie: tuple[str, ...]
    vllm: tuple[str, ...]
    families: tuple[str, ...] = (QWEN, QWEN25, LLAVA)
    made: dict = field(default_factory=dict)
    source: bool = False


def text(family_key: str) -> str:
    """A key of the language model, wherever config.json of the family has it."""
    return f"TEXT.{family_key}"


UNINITIALISED = "loads; the parameter stays uninitialised"
NO_WEIGHT = "AssertionError: weight ... does not exist"

MISSED = [
    Case(
        "biases of the int8 q, k, v dropped",
        (("drop", "LAYERS.*.self_attn.[qkv]_proj.bias"),),
        (NO_WEIGHT, "error missing-tensors: AssertionError: weight model.layers.0.self_attn.k_proj.bias"),
        (UNINITIALISED, "error missing-tensors: uninitialised"),
        (QWEN, QWEN25),
    ),
    Case(
        "bias of one linear dropped, of every block, float16",
        (("drop", "LAYERS.*.self_attn.v_proj.bias"),),
        (NO_WEIGHT, "error missing-tensors: AssertionError"),
        (UNINITIALISED, "error missing-tensors: uninitialised"),
        (QWEN, QWEN25),
        {"dtype": "float16"},
    ),
    Case(
        "biases of the vision tower's int8 linears dropped",
        (("drop", "visual.blocks.*.attn.qkv.bias", "visual.blocks.*.attn.proj.bias"),),
        (NO_WEIGHT, "error missing-tensors: AssertionError"),
        (UNINITIALISED, "error missing-tensors: uninitialised"),
        (QWEN, QWEN25),
    ),
    Case(
        "biases of a float vision tower dropped",
        (("drop", "visual.blocks.*.attn.qkv.bias"),),
        (NO_WEIGHT, "error missing-tensors: AssertionError"),
        (UNINITIALISED, "error missing-tensors: uninitialised"),
        (QWEN, QWEN25),
        {"vision": "float"},
    ),
    Case(
        "biases of CLIP's q, k, v dropped",
        (("drop", "vision_tower.vision_model.encoder.layers.*.self_attn.[qkv]_proj.bias"),),
        (NO_WEIGHT, "error missing-tensors: AssertionError"),
        (UNINITIALISED, "error missing-tensors: uninitialised"),
        (LLAVA,),
    ),
    Case(
        "bias of the merger dropped",
        (("drop", "visual.merger.mlp.0.bias"),),
        (NO_WEIGHT, "error missing-tensors: visual.merger.mlp.0.bias"),
        (UNINITIALISED, "error missing-tensors: uninitialised"),
        (QWEN, QWEN25),
    ),
    Case(
        "bias of the projector dropped",
        (("drop", "multi_modal_projector.linear_1.bias"),),
        (NO_WEIGHT, "error missing-tensors: AssertionError"),
        (UNINITIALISED, "error missing-tensors: uninitialised"),
        (LLAVA,),
    ),
    Case(
        "a norm dropped from every block",
        (("drop", "LAYERS.*.post_attention_layernorm.weight"),),
        (NO_WEIGHT, "error missing-tensors: AssertionError"),
        (UNINITIALISED, "error missing-tensors: uninitialised"),
    ),
    Case(
        "the patch embedding dropped",
        (("drop", "visual.patch_embed.proj.weight"),),
        (NO_WEIGHT, "error missing-tensors: AssertionError"),
        (UNINITIALISED, "error missing-tensors: uninitialised"),
        (QWEN, QWEN25),
    ),
    Case(
        "the last of CLIP's blocks, which has no effect, dropped",
        (("drop", "vision_tower.vision_model.encoder.layers.2.*"),),
        (NO_WEIGHT, "error missing-tensors: AssertionError"),
        ("loads: it leaves that block out", ""),
        (LLAVA,),
    ),
    Case(
        "gate and up fused into one tensor",
        (("fuse", "LAYERS.*.mlp", ("gate_proj", "up_proj"), "gate_up_proj"),),
        ("KeyError", "error missing-tensors: KeyError"),
        ("KeyError", "error missing-tensors: KeyError", "error unknown-tensors"),
    ),
    Case(
        "q, k and v fused into one tensor",
        (("fuse", "LAYERS.*.self_attn", ("q_proj", "k_proj", "v_proj"), "qkv_proj"),),
        ("KeyError", "error missing-tensors: KeyError"),
        ("KeyError", "error missing-tensors: KeyError", "error unknown-tensors"),
        (QWEN, LLAVA),
    ),
    Case(
        "intermediate_size doubled",
        (("config", text("intermediate_size"), 640),),
        ("loads: its Python loader goes by the tensors", "warning config-numbers"),
        ("AssertionError: Attempted to load weight", "error config-numbers: Attempted to load weight"),
    ),
    Case(
        "num_key_value_heads changed",
        (("config", text("num_key_value_heads"), {QWEN: 2, QWEN25: 2, LLAVA: 1}),),
        ("loads: its Python loader goes by the tensors", "warning config-numbers"),
        ("AssertionError: Attempted to load weight", "error config-numbers: Attempted to load weight"),
    ),
    Case(
        "vocab_size raised",
        (("config", text("vocab_size"), 1600),),
        ("loads: its Python loader goes by the tensors", "warning config-numbers"),
        ("AssertionError", "error config-numbers: Attempted to load weight"),
    ),
    Case(
        "vision intermediate_size changed",
        (("config", "vision_config.intermediate_size", 512),),
        ("loads: its Python loader goes by the tensors (read)", "warning config-numbers"),
        ("AssertionError (read)", "error config-numbers: Attempted to load weight"),
        (QWEN25, LLAVA),
    ),
    Case(
        "fewer language blocks in config.json than in the weights",
        (("config", text("num_hidden_layers"), 1),),
        ("loads the first of them: another model (read)", "error block-count: without a word"),
        ("ValueError: There is no module or parameter", "error block-count: ValueError"),
    ),
    Case(
        "more language blocks in config.json than in the weights",
        (("config", text("num_hidden_layers"), 3),),
        ("KeyError (read)", "error missing-tensors: KeyError"),
        ("KeyError (read)", "error missing-tensors: KeyError"),
    ),
    Case(
        "a smaller vision depth in config.json than in the weights",
        (("config", "vision_config.depth", 1),),
        ("loads the first of them: another model (read)", "error block-count: without a word"),
        ("KeyError", "error block-count: KeyError"),
        (QWEN, QWEN25),
    ),
    Case(
        "tie_word_embeddings true beside a head",
        (("config", text("tie_word_embeddings"), True),),
        ("loads another model", "error tied-head: another model"),
        ("loads another model", "error tied-head: another model"),
    ),
    Case(
        "tie_word_embeddings true beside a head that is the embedding",
        (("config", text("tie_word_embeddings"), True), ("copy", "EMBEDDING.weight", "HEAD.weight")),
        ("loads the same model", ""),
        ("loads the same model", ""),
    ),
    Case(
        "plain positions where YaRN's were",
        (("source config", "rope_scaling", {"type": "yarn", "mrope_section": [16, 24, 24], "factor": 4.0}),),
        ("loads another model", "error same-model: another model"),
        ("loads another model", "error same-model: another model"),
        (QWEN, QWEN25),
        source=True,
    ),
    Case(
        "another rope_theta",
        (("config", text("rope_theta"), 500000.0), ("source config", text("rope_theta"), 1000000.0)),
        ("loads another model (read)", "error same-model: another model"),
        ("loads another model (read)", "error same-model: another model"),
        source=True,
    ),
    Case(
        "another epsilon of the norms",
        (("config", text("rms_norm_eps"), 1e-4),),
        ("loads another model (read)", "error same-model: another model"),
        ("loads another model (read)", "error same-model: another model"),
        source=True,
    ),
    Case(
        "config.json is a symbolic link",
        (("link", "config.json"),),
        ("the service refuses it (read)", "error symbolic-links: symlink"),
        FINE,
    ),
    Case(
        "generation_config.json is a symbolic link",
        (("link", "generation_config.json"),),
        ("the service refuses it (read)", "error symbolic-links: symlink"),
        FINE,
    ),
    Case(
        "the directory is a symbolic link",
        (("link", "."),),
        ("the service refuses it (read)", "error symbolic-links: symlink"),
        FINE,
    ),
    Case("the weights are a symbolic link", (("link", "WEIGHTS"),), FINE, FINE),
    Case(
        "wrong model_type",
        (("config", "model_type", "qwen3_omni"),),
        ("KeyError", "error model-type: KeyError"),
        ("ValueError", "error model-type: ValueError"),
    ),
    Case(
        "no model_type",
        (("config remove", "model_type"),),
        ("KeyError: 'model_type'", "error model-type: KeyError: 'model_type'"),
        ("ValueError: Unrecognized model (read)", "error model-type: ValueError"),
    ),
    Case(
        "unknown image processor",
        (("json", "preprocessor_config.json", "image_processor_type", "NoSuchImageProcessor"),),
        ("ValueError: Unrecognized image processor", "error processor: Unrecognized image processor"),
        ("ValueError: Unrecognized image processor (read)", "error processor: Unrecognized image processor"),
    ),
    Case(
        "the fast image processor",
        (("json", "preprocessor_config.json", "image_processor_type", "PROCESSORFast"),),
        FINE,
        FINE,
    ),
    Case(
        "W8A8_MIX with an int8 vision tower",
        (),
        ("KeyError: 'W8A8_MIX'", "error description-type: KeyError: 'W8A8_MIX'", "warning activation-type"),
        FINE,
        (QWEN25,),
        {"act": "mix"},
    ),
    Case(
        "W8A8_MIX with an int8 vision tower of Qwen2-VL, whose types are not looked up",
        (),
        ("loads (read)", "warning activation-type"),
        FINE,
        (QWEN,),
        {"act": "mix"},
    ),
    Case(
        "W8A8_MIX of a language model whose types are looked up by name",
        (),
        ("KeyError: 'W8A8_MIX' (read)", "error description-type: KeyError: 'W8A8_MIX'", "warning activation-type"),
        FINE,
        (LLAVA,),
        {"act": "mix"},
    ),
    Case(
        "a vocabulary below MindIE's default top_k",
        (("json remove", "generation_config.json", "top_k"),),
        ("ValueError: self._config.top_k must be between", "warning sampling: top_k"),
        FINE,
    ),
]

TAKEN = [
    Case("no `quantize`", (("config remove", "quantize"),), FINE, FINE, (QWEN, QWEN25)),
    Case("no `quantize`, float16", (("config remove", "quantize"),), FINE, FINE, (QWEN, QWEN25), {"dtype": "float16"}),
    Case(
        "no `quantize` in a family that MindIE configures by config.json alone",
        (("config remove", "quantize"),),
        ("ValueError: linear type not matched (read)", "error quantize-key: linear type not matched"),
        FINE,
        (LLAVA,),
    ),
    Case(
        "no `quantize`, nor a model_quant_type",
        (("config remove", "quantize"), ("drop entries", "model_quant_type")),
        ("KeyError: 'quantize' (read)", "error quantize-key: KeyError: 'quantize'", "taste description-keys"),
        FINE,
    ),
    Case(
        "no `quantize`, description under its old name",
        (("config remove", "quantize"), ("rename file", "DESCRIPTION", "quant_model_description_w8a8.json")),
        ("ValueError: linear type not matched (read)", "error quantize-key: linear type not matched"),
        ("ModelSlim Quantization Config Not Found", "error description-file"),
    ),
    Case(
        "`quantize` under its newer name",
        (("config", "quantize", "w8a8_pdmix"),),
        ("loads", "warning activation-type"),
        FINE,
        (QWEN,),
        {"act": "mix", "vision": "float"},
    ),
    Case(
        "`quantize` as the description writes it",
        (("config", "quantize", "w8a8_mix"),),
        ("loads (read)", "warning activation-type"),
        FINE,
        (QWEN,),
        {"act": "mix", "vision": "float"},
    ),
    Case("int8 input_offset", (("cast", "*.input_offset", "int8"),), FINE, FINE),
    Case("int8 input_offset, float16", (("cast", "*.input_offset", "int8"),), FINE, FINE, made={"dtype": "float16"}),
    Case("int32 input_offset", (("cast", "*.input_offset", "int32"),), ("loads (read)", ""), ("loads (read)", "")),
    Case("bias entries absent from the description", (("drop entries", "*.bias"),), FINE, FINE),
    Case("entries of norms absent from the description", (("drop entries", "*norm*"),), FINE, FINE),
    Case(
        "entries of scales absent from the description",
        (("drop entries", "*.deq_scale", "*.input_scale"),),
        ("loads (read)", ""),
        ("loads (read)", ""),
    ),
    Case("merges.txt absent beside tokenizer.json", (("remove", "merges.txt"),), FINE, FINE, (QWEN, QWEN25)),
    Case("vocab.json absent beside tokenizer.json", (("remove", "vocab.json"),), FINE, FINE, (QWEN, QWEN25)),
    Case(
        "merges.txt absent beside tokenizer.json, with the source at hand",
        (("remove", "merges.txt"),),
        ("loads", "taste side-files"),
        ("loads", "taste side-files"),
        (QWEN,),
        source=True,
    ),
    Case(
        "merges.txt absent, and no tokenizer.json",
        (("remove", "merges.txt"), ("remove", "tokenizer.json")),
        ("TypeError: expected str", "error tokenizer: TypeError"),
        ("TypeError: expected str", "error tokenizer: TypeError"),
        (QWEN,),
    ),
    Case(
        "dtype in place of torch_dtype",
        (("rename key", "torch_dtype", "dtype"),),
        ("torch_dtype is only supported for float16 and bfloat16", "error torch-dtype"),
        FINE,
    ),
    Case(
        "tensor names of transformers 5",
        (("rename", "model.", "model.language_model."), ("rename", "visual.", "model.visual.")),
        (NO_WEIGHT, "error tensor-names: AssertionError"),
        FINE,
        (QWEN, QWEN25),
    ),
    Case(
        "tensor names of transformers 5, float16, tied head",
        (("rename", "model.", "model.language_model."), ("rename", "visual.", "model.visual.")),
        (NO_WEIGHT, "error tensor-names: AssertionError"),
        FINE,
        (QWEN,),
        {"tied": True, "dtype": "float16"},
    ),
    Case(
        "tensor names of transformers 5",
        (
            ("rename", "language_model.model.", "model.language_model."),
            ("rename", "language_model.lm_head.", "lm_head."),
            ("rename", "vision_tower.", "model.vision_tower."),
            ("rename", "multi_modal_projector.", "model.multi_modal_projector."),
        ),
        (NO_WEIGHT, "error tensor-names: AssertionError"),
        FINE,
        (LLAVA,),
    ),
    Case(
        "int64 quant_bias",
        (("cast", "*.quant_bias", "int64"),),
        ("hands int64 to the kernel (read)", "error linear-shapes"),
        FINE,
    ),
    Case(
        "weight_offset absent",
        (("drop", "*.weight_offset"),),
        FINE,
        ("loads; a parameter that is not computed with stays uninitialised (read)", "warning linear-parts"),
    ),
    Case(
        "weight_scale absent from dynamic linears",
        (("drop", "LAYERS.*.weight_scale"),),
        (NO_WEIGHT, "error linear-parts: AssertionError", "warning activation-type"),
        (UNINITIALISED, "error linear-parts: uninitialised"),
        (QWEN,),
        {"act": "dynamic", "vision": "float"},
    ),
    Case(
        "weight_scale without its second dimension",
        (("flatten", "*.weight_scale"),),
        ("loads: it does not read it (read)", ""),
        ("AssertionError", "error linear-shapes: Attempted to load weight"),
    ),
    Case("version absent", (("drop entries", "version"),), ("loads", "taste description-keys"), FINE),
    Case("model_quant_type absent", (("drop entries", "model_quant_type"),), ("loads", "taste description-keys"), FINE),
    Case("rope_theta absent", (("config remove", "rope_theta"),), FINE, FINE, (QWEN, QWEN25)),
    Case(
        "rope_scaling absent",
        (("config remove", "rope_scaling"),),
        ("AttributeError (read)", "error flat-config: AttributeError"),
        ("loads", ""),
        (QWEN, QWEN25),
    ),
    Case("no architectures", (("config remove", "architectures"),), FINE, FINE),
    Case(
        "LLaVA in bfloat16",
        (),
        ("RuntimeError: expected mat1 and mat2 to have the same dtype", "error vision-dtype"),
        FINE,
        (LLAVA,),
        {"dtype": "bfloat16"},
    ),
    Case(
        "an entry that no tensor and no layer asks for",
        (("entry", "model.layers.7.mlp.x.weight", "W8A8"),),
        ("loads (read)", "warning description-stale"),
        ("loads (read)", "warning description-stale"),
        (QWEN,),
    ),
    Case(
        "no entry for a linear that MindIE does not pack",
        (("drop entries", "LAYERS.0.self_attn.o_proj.weight"),),
        ("loads: it goes by the tensor (read)", ""),
        ("KeyError", "error description-entry: KeyError"),
    ),
    Case(
        "no entry for a linear that both pack",
        (("drop entries", "LAYERS.0.self_attn.q_proj.weight"),),
        ("KeyError", "error description-entry: KeyError"),
        ("KeyError", "error description-entry: KeyError"),
    ),
]

TOLD_WRONG = [
    Case(
        "no vision_config.quantize with an int8 vision tower",
        (("config remove", "vision_config.quantize"),),
        ("ValueError: linear type not matched", "error vision-switch: ValueError: linear type not matched"),
        FINE,
        (QWEN, QWEN25),
    ),
    Case(
        "a dynamic vision tower",
        (),
        (
            "ValueError: linear type not matched",
            "error vision-switch: ValueError: linear type not matched",
            "warning activation-type",
        ),
        FINE,
        (QWEN, QWEN25),
        {"act": "dynamic"},
    ),
    Case(
        "a dynamic vision tower that says it is static",
        (("config", "vision_config.quantize", "w8a8"),),
        (NO_WEIGHT, "error vision-switch: .deq_scale does not exist", "warning activation-type"),
        FINE,
        (QWEN, QWEN25),
        {"act": "dynamic"},
    ),
    Case(
        "vision_config.quantize with a float vision tower",
        (("config", "vision_config.quantize", "w8a8"),),
        (NO_WEIGHT, "error vision-switch: input_scale does not exist"),
        FINE,
        (QWEN, QWEN25),
        {"vision": "float"},
    ),
]

GOOD = [
    Case(
        "`quantize` of dynamic linears on static ones, which have all that it reads",
        (("config", "quantize", "w8a8_dynamic"),),
        ("loads, and computes per token (read)", "warning quantize-key: computes it as w8a8_dynamic"),
        FINE,
    ),
    Case(
        "`quantize` of static linears on dynamic ones",
        (("config", "quantize", "w8a8"),),
        (NO_WEIGHT, "error quantize-key: .deq_scale does not exist", "warning activation-type"),
        FINE,
        (QWEN, LLAVA),
        {"act": "dynamic", "vision": "float"},
    ),
    Case(
        "text_config without max_position_embeddings",
        (("config remove", "text_config.max_position_embeddings"),),
        ("ValueError: ... is not initialized (read)", "error nested-config: ValueError"),
        FINE,
        (LLAVA,),
    ),
    Case(
        "text_config without vocab_size, which is at the top",
        (("config remove", "text_config.vocab_size"),),
        ("KeyError: 'vocab_size' (read)", "error nested-config: KeyError", "warning config-numbers"),
        ("AssertionError (read)", "error config-numbers"),
        (LLAVA,),
    ),
    Case("nothing, in three files", (), FINE, FINE, made={"shards": 3}),
    Case(
        "one file of three lost",
        (("remove", "quant_model_weight_w8a8-00002-of-00003.safetensors"),),
        (NO_WEIGHT, "error missing-tensors", "error linear-parts"),
        (UNINITIALISED, "error missing-tensors", "error linear-parts", "warning linear-parts"),
        (QWEN,),
        {"shards": 3},
    ),
    Case(
        "biases of q, k, v dropped, in three files",
        (("drop", "LAYERS.*.self_attn.[qkv]_proj.bias"),),
        (NO_WEIGHT, "error missing-tensors: AssertionError"),
        (UNINITIALISED, "error missing-tensors: uninitialised"),
        (QWEN, QWEN25),
        {"shards": 3},
    ),
    Case(
        "nothing, --mindie_format",
        (),
        FINE,
        ("ModelSlim Quantization Config Not Found", "error description-file", "error quantization-config"),
        made={"layout": "mindie"},
    ),
    Case(
        "no head, and none tied",
        (("drop", "HEAD.weight"),),
        (NO_WEIGHT, "error tied-head: AssertionError"),
        ("KeyError, or uninitialised", "error tied-head", "error description-entry"),
    ),
    Case(
        "a head that is not tied by the key of the language model",
        (("config", "tie_word_embeddings", True),),
        FINE,
        FINE,
        (LLAVA,),
    ),
    Case(
        "float tensors of twice the width, which both round",
        (("cast", "*norm*", "float32"), ("cast", "EMBEDDING.weight", "float32"), ("cast", "HEAD.weight", "float32")),
        ("loads (read)", ""),
        ("loads (read)", ""),
    ),
    Case(
        "a weight transposed",
        (("transpose", "LAYERS.1.mlp.gate_proj.weight"),),
        ("RuntimeError", "error linear-shapes"),
        ("AssertionError", "error linear-shapes: Attempted to load weight"),
    ),
    Case(
        "vocab_size below the special tokens",
        (("config", "vocab_size", 300),),
        ("ValueError: self._config.eos_token_id must be between (read)", "warning config-numbers", "error sampling"),
        ("AssertionError", "error config-numbers"),
        (QWEN, QWEN25),
    ),
    Case(
        "an unknown processor class",
        (("json", "preprocessor_config.json", "processor_class", "NoSuchProcessor"),),
        ("AttributeError: no attribute image_processor (read)", "error processor: AttributeError"),
        ("AttributeError: no attribute image_processor (read)", "error processor: AttributeError"),
        (QWEN, QWEN25),
    ),
    Case(
        "a second copy of a block's tensor names",
        (("copy", "LAYERS.0.input_layernorm.weight", "LAYERS.0.pre_layernorm.weight"),),
        ("loads: it does not ask for it (read)", ""),
        ("KeyError", "error unknown-tensors"),
    ),
    Case(
        "old buffers among the tensors",
        (("copy", "EMBEDDING.weight", "LAYERS.0.self_attn.rotary_emb.inv_freq"),),
        FINE,
        FINE,
    ),
    Case(
        "model_type in capitals",
        (("config", "model_type", "LLaVA"),),
        ("loads (read)", ""),
        ("ValueError (read)", "error model-type"),
        (LLAVA,),
    ),
    Case(
        "`quantize` in capitals",
        (("config", "quantize", "W8A8"),),
        ("NotImplementedError: `quantize` is only supported for value in (read)", "error quantize-key: NotImplemented"),
        FINE,
    ),
    Case(
        "text_config in a flat family",
        (("config", "text_config", {"hidden_size": 256}),),
        ("TypeError: got multiple values (read)", "error flat-config: TypeError"),
        ("loads (read)", ""),
        (QWEN,),
    ),
    Case(
        "rope_parameters beside the older keys",
        (("config", "rope_parameters", {"rope_theta": 1000000.0, "rope_type": "default"}),),
        ("loads (read)", ""),
        ("loads (read)", ""),
        (QWEN,),
    ),
    Case("nothing", (), FINE, FINE),
    Case("nothing, float16", (), FINE, FINE, made={"dtype": "float16"}),
    Case("nothing, float vision tower", (), FINE, FINE, (QWEN, QWEN25), {"vision": "float"}),
    Case("nothing, tied head", (), FINE, FINE, (QWEN, QWEN25), {"tied": True}),
    Case(
        "nothing, W8A8_DYNAMIC",
        (),
        ("not documented", "warning activation-type"),
        FINE,
        (QWEN, LLAVA),
        {"act": "dynamic", "vision": "float"},
    ),
]

CASES = [*MISSED, *TAKEN, *TOLD_WRONG, *GOOD]
