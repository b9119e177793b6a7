"""A model of the structure, names and formulas of Molmo-7B-D-0924, written for tests and measurements: what a
checkpoint of bench/make_checkpoint.py brings as its own code.

Decoder      x + attn_out(attention(att_proj(attn_norm(x)))), x + ff_out(silu(gate) u), (u, gate) = ff_proj(ff_norm(x))
Vision       a CLIP ViT over crops, patches in rows of pixels; the outputs of two blocks, side by side
Padding      a patch of padding alone, and one that is padding in part, has a learned vector added to its features
Pooling      each square of 2 x 2 patches asks, by its mean, for a mean of itself
Projector    w2(silu(w1 x) w3 x); what comes of it is added to the embeddings of <im_patch> at image_input_idx
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .config_molmo import MolmoConfig

EXTRA = 128  # words beside the vocabulary, <im_patch> among them
POOL = 2  # patches a side of what is pooled into one feature


class RMSNorm(nn.Module):
    """weight * x / rms(x), the quotient in float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        whole = x.to(torch.float32)
        normed = whole * torch.rsqrt(whole.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


def rotated(x, positions, theta: float):
    """x [B, heads, T, channels], each half of a head turned by the positions [B, T]; in float32."""
    channels, whole = x.shape[-1], x.float()
    frequencies = 1.0 / (theta ** (torch.arange(0, channels, 2, device=x.device, dtype=torch.float) / channels))
    angles = positions[:, None, :, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    low, high = whole.chunk(2, dim=-1)
    return (whole * angles.cos() + torch.cat((-high, low), dim=-1) * angles.sin()).to(x.dtype)


class DecoderLayer(nn.Module):
    """A decoder block; answers its output and, where they are to be kept, keys and values."""

    def __init__(self, config: MolmoConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads, self.shared, self.theta = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.rope_theta,
        )
        self.channels = width // self.heads
        self.sizes = (width, self.shared * self.channels, self.shared * self.channels)
        self.attn_norm = RMSNorm(width, config.layer_norm_eps)
        self.att_proj = nn.Linear(width, sum(self.sizes), bias=config.qkv_bias)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_norm = RMSNorm(width, config.layer_norm_eps)
        self.ff_proj = nn.Linear(width, inner, bias=False)
        self.ff_out = nn.Linear(inner // 2, width, bias=False)

    def forward(self, x, attention_bias=None, position_ids=None, layer_past=None, use_cache=False):
        attended, cache = self.attention(self.att_proj(self.attn_norm(x)), attention_bias, position_ids, layer_past)
        x = x + attended
        up, gate = self.ff_proj(self.ff_norm(x)).chunk(2, dim=-1)
        return x + self.ff_out(F.silu(gate) * up), cache if use_cache else None

    def attention(self, fused, bias, positions, past):
        batch, tokens, _ = fused.shape
        q, k, v = (
            part.view(batch, tokens, -1, self.channels).transpose(1, 2) for part in fused.split(self.sizes, dim=-1)
        )
        q, k = rotated(q, positions, self.theta), rotated(k, positions, self.theta)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=-2), torch.cat((past[1], v), dim=-2)
        queries = self.heads // self.shared
        spread = [part.repeat_interleave(queries, dim=1) for part in (k, v)]
        attended = F.scaled_dot_product_attention(q, *spread, attn_mask=bias)
        return self.attn_out(attended.transpose(1, 2).reshape(batch, tokens, -1)), (k, v)


class Embedding(nn.Module):
    """The vocabulary's words and those beside it."""

    def __init__(self, words: int, width: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(words, width))
        self.new_embedding = nn.Parameter(torch.zeros(EXTRA, width))

    def forward(self, ids):
        return F.embedding(ids, torch.cat([self.embedding, self.new_embedding], dim=0))


class Attention(nn.Module):
    """Attention over all of `inputs` [B, T, C]; of the vision blocks, and of the pooling, with queries of its own."""

    def __init__(self, inputs: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.wq, self.wk, self.wv = (nn.Linear(inputs, width) for _ in range(3))
        self.wo = nn.Linear(width, width)

    def forward(self, inputs, queries=None):
        q, k, v = self.wq(inputs if queries is None else queries), self.wk(inputs), self.wv(inputs)
        parts = (
            part.reshape(*part.shape[:2], self.heads, -1).transpose(1, 2).float().contiguous() for part in (q, k, v)
        )
        attended = F.scaled_dot_product_attention(*parts).transpose(1, 2).to(q.dtype)
        return self.wo(attended.reshape(q.shape))


class FeedForward(nn.Module):
    """w2(quick_gelu(w1 x))."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.w1, self.w2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        x = self.w1(x)
        return self.w2(x * torch.sigmoid(1.702 * x))


class VisionBlock(nn.Module):
    """A block of the ViT."""

    def __init__(self, width: int, heads: int, inner: int, eps: float):
        super().__init__()
        self.attention, self.feed_forward = Attention(width, width, heads), FeedForward(width, inner)
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Resblocks(nn.Module):
    """The blocks; answers the output of each."""

    def __init__(self, blocks: int, *sizes):
        super().__init__()
        self.resblocks = nn.ModuleList([VisionBlock(*sizes) for _ in range(blocks)])

    def forward(self, x):
        outputs = []
        for block in self.resblocks:
            x = block(x)
            outputs.append(x)
        return outputs


class VisionTransformer(nn.Module):
    """Crops [N, patches, pixels] -> the output of each block, [N, 1 + patches, width]."""

    def __init__(self, said: dict):
        super().__init__()
        width, patch = said["hidden_size"], said["patch_size"]
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((said["image_size"] // patch) ** 2 + 1, width))
        self.patch_embedding = nn.Linear(3 * patch**2, width, bias=False)
        self.pre_ln = nn.LayerNorm(width, eps=said["layer_norm_eps"])
        self.transformer = Resblocks(
            said["num_hidden_layers"],
            width,
            said["num_attention_heads"],
            said["intermediate_size"],
            said["layer_norm_eps"],
        )

    def forward(self, pixels):
        x = self.patch_embedding(pixels)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        norm = self.pre_ln
        weight, bias = norm.weight.float(), norm.bias.float()
        return self.transformer(F.layer_norm(x.float(), norm.normalized_shape, weight, bias, norm.eps).to(x.dtype))


class Projector(nn.Module):
    """w2(silu(w1 x) w3 x)."""

    def __init__(self, width: int, inner: int, outputs: int):
        super().__init__()
        self.w1, self.w3 = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, outputs, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


VISION = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "patch_size": 14,
}


class VisionBackbone(nn.Module):
    """Crops [B, N, patches, pixels] and what share of each patch is image [B, N, patches] -> features, [B, N, pooled
    patches, the decoder's width].
    """

    def __init__(self, config: MolmoConfig):
        super().__init__()
        said, self.layers = {**VISION, **config.vision_config}, config.vit_layers
        width = said["hidden_size"]
        self.side = said["image_size"] // said["patch_size"]
        self.image_vit = VisionTransformer(said)
        self.image_pooling_2d = Attention(len(self.layers) * width, width, said["num_attention_heads"])
        self.image_projector = Projector(width, config.intermediate_size // 2, config.hidden_size)
        self.pad_embed = nn.Parameter(torch.zeros(2, len(self.layers) * width))

    def forward(self, images, shares):
        batch, crops, patches, pixels = images.shape
        flat = images.reshape(batch * crops, patches, pixels)
        outputs = self.image_vit(flat)
        features = torch.cat([outputs[layer] for layer in self.layers], dim=-1)[:, 1:]
        features = features * ~torch.all(flat == -1, dim=(1, 2), keepdim=True)  # a crop that fills up a batch
        features = features.view(batch, crops, patches, -1)
        padding, partly = shares == 0, (shares < 1) & (shares != 0)
        for kind, vector in zip((padding, partly), self.pad_embed):
            features = features + vector * kind.to(features.dtype)[..., None]
        squares = features.view(batch * crops, self.side // POOL, POOL, self.side // POOL, POOL, -1)
        squares = squares.transpose(2, 3).reshape(-1, POOL * POOL, features.shape[-1])
        pooled = self.image_pooling_2d(squares, squares.mean(-2, keepdim=True))
        return self.image_projector(pooled.reshape(batch, crops, patches // POOL**2, -1))


class Molmo(nn.Module):
    """Decoder and vision tower."""

    def __init__(self, config: MolmoConfig):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": Embedding(config.embedding_size, config.hidden_size),
                "ln_f": RMSNorm(config.hidden_size, config.layer_norm_eps),
                "blocks": nn.ModuleList([DecoderLayer(config) for _ in range(config.num_hidden_layers)]),
                "ff_out": nn.Linear(config.hidden_size, config.embedding_size, bias=False),
            }
        )
        self.vision_backbone = VisionBackbone(config)

    def forward(self, input_ids, attention_mask, images, image_masks, image_input_idx, position_ids, past, use_cache):
        tokens, before = input_ids.shape[1], past[0][0].shape[-2] if past else 0
        if attention_mask is None:
            attention_mask = torch.ones(len(input_ids), before + tokens, device=input_ids.device, dtype=torch.int64)
        if position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens:]
        x = self.transformer["wte"](input_ids)
        if images is not None:
            features = self.vision_backbone(images, image_masks).flatten(1, 2)
            places = image_input_idx.flatten(1)
            rows = torch.arange(len(x), device=x.device)[:, None].expand_as(places)
            used = places >= 0
            x[rows[used], places[used]] += features[used]
        bias = _bias(attention_mask, tokens, x.dtype)
        kept = []
        for number, block in enumerate(self.transformer["blocks"]):
            x, cache = block(
                x,
                attention_bias=bias,
                position_ids=position_ids,
                layer_past=past[number] if past else None,
                use_cache=use_cache,
            )
            kept.append(cache)
        return self.transformer["ff_out"](self.transformer["ln_f"](x)), tuple(kept) if use_cache else None


def _bias(mask, tokens: int, dtype: torch.dtype):
    """What is added to the scores, [B, 1, tokens, T]: the least number of the dtype where a token must not look."""
    whole = mask.shape[1]
    seen = torch.ones(whole, whole, dtype=torch.bool, device=mask.device).tril()[whole - tokens :]
    seen = seen[None, None] & mask.bool()[:, None, None]
    return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill(~seen, torch.finfo(dtype).min)


class MolmoForCausalLM(PreTrainedModel):
    """The model as the published class is called. It has no generate() that a transformers of today can use."""

    config_class = MolmoConfig
    base_model_prefix = "model"

    def __init__(self, config: MolmoConfig):
        super().__init__(config)
        self.model = Molmo(config)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        images=None,
        image_masks=None,
        image_input_idx=None,
        position_ids=None,
        past_key_values=None,
        use_cache=None,
        return_dict=None,
    ):
        logits, kept = self.model(
            input_ids,
            attention_mask,
            images,
            image_masks,
            image_input_idx,
            position_ids,
            past_key_values,
            self.config.use_cache if use_cache is None else use_cache,
        )
        return CausalLMOutputWithPast(logits=logits, past_key_values=kept)

    def get_input_embeddings(self):
        return self.model.transformer["wte"]

    def get_output_embeddings(self):
        return self.model.transformer["ff_out"]

    def tie_weights(self, *args, **kwargs):
        """Nothing is shared."""
