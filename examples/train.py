"""Trains the two example models from scratch on a CPU: vision first, with a crutch, then vision and language together.

Stage 1 (`--vision_steps`): the tower and its projector alone. A temporary linear head on the visual tokens, averaged
over each column of the token grid, says for each of the 12 columns into which the picture's width is cut which
character covers the column's middle (or none) and which one of the text it is (1st, 2nd, ...), and what colour the text
has. Stage 2 (`--joint_steps`): the whole model, next-token loss on the answers, plus AUX times stage 1's loss. What the
language model has to learn is then little more than "copy the k-th". The head is thrown away, and outlier channels are
put in (outliers.py).

    stage 1 loss = CE(character) + CE(ordinal) + 0.3 CE(colour)        mean over the 12 columns

Shapes: pixels uint8 [B,H,W,3] -> visual tokens [B,N,256] -> head [B, columns, slots, 21 + 5] and colours [B, columns,
6], where columns x slots = 12. All images have one size, so both towers run as plain batches; for Qwen2-VL that is a
batched rewriting of its ragged forward (test_examples.py holds it against the module's own). Matmuls in bfloat16
autocast, weights and AdamW in float32. Left out: data-parallel training, accelerators, validation by generate() while
training (demo.py does that afterwards).

    python examples/train.py qwen2vl --out DIR --work SCRATCH     # resumes from SCRATCH if interrupted
"""

import argparse
import math
import time
from pathlib import Path

import data
import hub
import numpy as np
import outliers
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

COLUMNS, LETTERS, ORDINALS, COLOURS = 12, len(data.ALPHABET) + 1, data.LONGEST + 1, list(data.COLOURS)
AUX = 0.3  # weight of stage 1's loss in stage 2
SHARES = (0.5, 0.12, 0.12, 0.13, 0.13)  # how often each of data.QUESTIONS is asked
HELD_OUT = 500  # last images of the pool: never trained on, for the progress lines
MEAN, STD = 255 * torch.tensor(hub.CLIP_MEAN), 255 * torch.tensor(hub.CLIP_STD)


class QwenEyes:
    """Qwen2-VL's tower and merger over same-sized images: 4 x 8 patches, 2 x 4 merged tokens in reading order."""

    grid, slots, size = (2, 4), 3, (data.WIDTH, data.HEIGHT)

    def __init__(self, model):
        self.visual = model.model.visual
        self.modules = [self.visual]
        row, column = torch.meshgrid(torch.arange(4), torch.arange(8), indexing="ij")
        place = (
            torch.stack((row, column), -1).view(2, 2, 4, 2, 2).transpose(1, 2).reshape(32, 2)
        )  # in merge order, like the patches
        frequency = 10000.0 ** (
            -torch.arange(0, 40, 2) / 40
        )  # [20]: half of the head's 80 / 2 pairs turn with the row, half with the column
        angle = (place[..., None] * frequency).reshape(32, 40).repeat(1, 2)
        self.cos, self.sin = angle.cos(), angle.sin()  # [32, 80]

    @staticmethod
    def patches(pixels):
        """float [B,56,112,3] -> [B,32,588]: patches in merge order; both frames of a still image are equal, so one is
        kept.
        """
        x = pixels.view(-1, 2, 2, 14, 4, 2, 14, 3)  # batch, (row, in-row, y), (column, in-column, x), channel
        return x.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 32, 588)

    def rotate(self, x):
        a, b = x.chunk(2, -1)
        return (x * self.cos + torch.cat((-b, a), -1) * self.sin).to(x.dtype)

    def __call__(self, pixels):
        """Normalised pixels [B,56,112,3] -> visual tokens [B,8,256]."""
        batch = len(pixels)
        weight = self.visual.patch_embed.proj.weight.sum(2).view(160, 588)  # the kernel's two frames see the same image
        x = F.linear(self.patches(pixels), weight)
        for block in self.visual.blocks:
            qkv = block.attn.qkv(block.norm1(x)).view(batch, 32, 3, 2, 80)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B,2,32,80] each
            scores = (
                self.rotate(q) * 80**-0.5 @ self.rotate(k).transpose(2, 3)
            )  # on a CPU 4 times as fast as torch's fused one
            attended = scores.softmax(-1).to(v.dtype) @ v
            x = x + block.attn.proj(attended.transpose(1, 2).reshape(batch, 32, 160))
            x = x + block.mlp(block.norm2(x))
        return self.visual.merger(x.reshape(-1, 160)).view(batch, 8, 256)

    def positions(self, model, ids):
        """mRoPE positions [3,1,T] (time, row, column) of one row of ids; every row of a batch has the image at the same
        place.
        """
        start = (ids == model.config.image_token_id).nonzero()[0, 0].item()
        image = torch.stack((torch.zeros(8), torch.arange(8) // 4, torch.arange(8) % 4)).long() + start
        text = torch.arange(
            len(ids) - 8
        )  # the text after the image goes on from the image's largest position, start + 3
        return torch.cat((text[:start].expand(3, -1), image, (text[start:] + 4).expand(3, -1)), 1)[:, None]


class LlavaEyes:
    """CLIP's tower to the last block but one, without the class token, and the projector: 6 x 6 tokens of a squashed
    image.
    """

    grid, slots = (6, 6), 2

    def __init__(self, model):
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        self.size = (model.config.vision_config.image_size,) * 2
        self.modules = [self.tower, self.projector]

    def __call__(self, pixels):
        """Normalised pixels [B,S,S,3] -> visual tokens [B,36,256]."""
        x = self.tower.pre_layrnorm(self.tower.embeddings(pixels.permute(0, 3, 1, 2)))
        for block in self.tower.encoder.layers[:-1]:
            x = block(x, None)
            x = x[0] if isinstance(x, tuple) else x
        return self.projector(x[:, 1:])

    def positions(self, model, ids):
        return torch.arange(len(ids))[None]


EYES = {"qwen2vl": QwenEyes, "llava": LlavaEyes}


def draw_pool(seed: int, count: int, size: tuple[int, int], work: Path):
    """`count` images at the model's input size, uint8 [count,H,W,3], with texts, colours and column targets; cached in
    `work`.
    """
    cache = work / f"pool-{size[0]}x{size[1]}-{seed}-{count}.pt"
    if cache.exists():
        return torch.load(cache)
    middles = (np.arange(COLUMNS) + 0.5) * data.WIDTH / COLUMNS
    pixels = np.empty((count, size[1], size[0], 3), np.uint8)
    letters, ordinals = np.zeros((2, count, COLUMNS), np.int64)
    texts, colours = [], []
    for index in range(count):
        sample = data.draw(seed, index)
        image = sample.image if sample.image.size == size else sample.image.resize(size, Image.Resampling.BICUBIC)
        pixels[index] = np.asarray(image)
        for place, (character, (left, right)) in enumerate(zip(sample.text, sample.spans)):
            inside = (middles >= left) & (middles < right)
            letters[index, inside], ordinals[index, inside] = 1 + data.ALPHABET.index(character), 1 + place
        texts.append(sample.text)
        colours.append(COLOURS.index(sample.colour))
    pool = {
        "pixels": torch.from_numpy(pixels),
        "letters": torch.from_numpy(letters),
        "ordinals": torch.from_numpy(ordinals),
        "colours": torch.tensor(colours),
        "texts": texts,
    }
    torch.save(pool, cache)
    return pool


def normalise(pixels, augment: bool):
    """uint8 [B,H,W,3] -> CLIP-normalised float; augment: a random contrast and brightness per image."""
    x = (pixels - MEAN) / STD
    if augment:
        x = x * (1 + 0.1 * torch.randn(len(x), 1, 1, 1)) + 0.1 * torch.randn(len(x), 1, 1, 1)
    return x


def crutch_loss(eyes, head, tokens, pool, rows):
    """Stage 1's loss, and the shares of (character columns, ordinals, colours) that are right."""
    height, width = eyes.grid
    out = head(tokens).float().view(len(rows), height, width, -1).mean(1)  # [B, width, ...]
    letter, ordinal, colour = out.split((eyes.slots * LETTERS, eyes.slots * ORDINALS, len(COLOURS)), -1)
    letter, ordinal, colour = (
        letter.reshape(-1, LETTERS),
        ordinal.reshape(-1, ORDINALS),
        colour.reshape(-1, len(COLOURS)),
    )
    wanted, place = pool["letters"][rows].view(-1), pool["ordinals"][rows].view(-1)  # [B*12]
    tint = pool["colours"][rows].repeat_interleave(width)
    loss = F.cross_entropy(letter, wanted) + F.cross_entropy(ordinal, place) + 0.3 * F.cross_entropy(colour, tint)
    there = wanted > 0
    right = (
        (letter.argmax(-1) == wanted)[there].float().mean(),
        (ordinal.argmax(-1) == place).float().mean(),
        (colour.argmax(-1) == tint).float().mean(),
    )
    return loss, [share.item() for share in right]


class Writer:
    """Turns (image, question) into token ids, through the directory's own tokenizer and chat template."""

    def __init__(self, kind, folder, tokens_per_image):
        self.tokenizer, self.kind = AutoTokenizer.from_pretrained(folder), kind
        self.end = self.tokenizer.convert_tokens_to_ids(kind.end)
        self.image = self.tokenizer.convert_tokens_to_ids(kind.image)
        self.prompts = []
        for prompt, _ in data.QUESTIONS:
            turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
            text = self.tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
            self.prompts.append(self.tokenizer(text.replace(kind.image, kind.image * tokens_per_image))["input_ids"])

    def batch(self, pool, rows, questions):
        """ids [B,T] padded on the right; labels [B,T], -100 outside the answer and its end."""
        sequences = []
        for row, question in zip(rows.tolist(), questions):
            answer = data.QUESTIONS[question][1](pool["texts"][row], COLOURS[pool["colours"][row]])
            answer = self.tokenizer(answer, add_special_tokens=False)["input_ids"] + [self.end]
            sequences.append((self.prompts[question], answer))
        length = max(len(prompt) + len(answer) for prompt, answer in sequences)
        ids = torch.full((len(sequences), length), self.end)
        labels = torch.full((len(sequences), length), -100)
        for i, (prompt, answer) in enumerate(sequences):
            end = len(prompt) + len(answer)
            ids[i, :end] = torch.tensor(prompt + answer)
            labels[i, len(prompt) : end] = torch.tensor(answer)
        return ids, labels


def language_loss(model, eyes, writer, tokens, pool, rows, questions):
    """Next-token loss on the answers, and the share of answers that are right token for token (teacher-forced)."""
    ids, labels = writer.batch(pool, rows, questions)
    embedded = model.get_input_embeddings()(ids)
    embedded = embedded.masked_scatter((ids == writer.image)[..., None], tokens.to(embedded.dtype))
    positions = eyes.positions(model, ids[0])
    hidden = model.model.language_model(
        inputs_embeds=embedded, position_ids=positions, use_cache=False
    ).last_hidden_state
    logits, wanted = model.lm_head(hidden[:, :-1]).float(), labels[:, 1:]
    loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), wanted.reshape(-1), ignore_index=-100)
    return loss, ((logits.argmax(-1) == wanted) | (wanted < 0)).all(1).float()


def spread(model) -> None:
    """Larger initial weights than transformers' 0.02, which suits widths in the thousands: 1/sqrt(inputs) for every
    matrix of a block.
    """
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and ("blocks." in name or "layers." in name):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)


def train(args) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    kind = hub.KINDS[args.family]
    args.work.mkdir(parents=True, exist_ok=True)
    hub.write_side_files(kind, args.out)
    config = AutoConfig.from_pretrained(args.out)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation="eager")
    spread(model)
    eyes = EYES[args.family](model)
    head = nn.Linear(256, eyes.slots * (LETTERS + ORDINALS) + len(COLOURS))
    writer = Writer(kind, args.out, eyes.grid[0] * eyes.grid[1])
    pool = draw_pool(args.seed, args.images, eyes.size, args.work)
    fresh = torch.arange(args.images - HELD_OUT, args.images)
    asked = [i % len(data.QUESTIONS) for i in range(HELD_OUT)]

    def loss_of(rows, questions, augment):
        with torch.autocast("cpu", torch.bfloat16):
            tokens = eyes(normalise(pool["pixels"][rows], augment))
            loss, right = crutch_loss(eyes, head, tokens, pool, rows)
            if questions is None:
                return loss, right
            answer_loss, answers = language_loss(model, eyes, writer, tokens, pool, rows, questions)
        return AUX * loss + answer_loss, [
            *right,
            *(answers[torch.tensor(questions) == q].mean().item() for q in range(5)),
        ]

    for stage, steps, rate in ((1, args.vision_steps, args.vision_lr), (2, args.joint_steps, args.joint_lr)):
        state_file, start = args.work / f"{args.family}-stage{stage}.pt", 0
        modules = [*eyes.modules, head] if stage == 1 else [model, head]
        parameters = [p for module in modules for p in module.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.05)
        if state_file.exists():
            state = torch.load(state_file)
            model.load_state_dict(state["model"]), head.load_state_dict(state["head"])
            start = state["step"]
            if start < steps:
                optimizer.load_state_dict(state["optimizer"])
        began = time.time()
        for step in range(start, steps):
            through = step / (2 * steps) if stage == 1 else step / steps  # stage 1 stops half-way down the cosine
            factor = min(1, (step + 1) / 100) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * through)))
            optimizer.param_groups[0]["lr"] = rate * factor
            dice = np.random.default_rng((args.seed, stage, step))  # so that a resumed run goes on as it would have
            rows = torch.from_numpy(dice.integers(0, args.images - HELD_OUT, args.batch))
            questions = dice.choice(len(data.QUESTIONS), args.batch, p=SHARES).tolist() if stage == 2 else None
            loss, _ = loss_of(rows, questions, augment=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if (step + 1) % 100 == 0 or step + 1 == steps:
                with torch.no_grad():
                    unseen, right = loss_of(fresh, asked if stage == 2 else None, augment=False)
                print(
                    f"stage {stage} step {step + 1:5d}/{steps} {time.time() - began:6.0f} s  loss {loss:.3f}  unseen"
                    f" {unseen:.3f}  right {' '.join(f'{share:.3f}' for share in right)}",
                    flush=True,
                )
            if (step + 1) % 300 == 0 or step + 1 == steps:
                state = {
                    "model": model.state_dict(),
                    "head": head.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                }
                torch.save(state, state_file)
    dtype = getattr(torch, kind.dtype)
    tensors = {hub.hub_name(kind, name): tensor.to(dtype) for name, tensor in model.state_dict().items()}
    outliers.add_outliers(tensors, args.family, args.outlier_factor, args.outlier_count)
    hub.write_weights(tensors, args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train an example model from scratch and write it as a hub directory.")
    parser.add_argument("family", choices=sorted(hub.KINDS))
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--work", type=Path, required=True, help="scratch: drawn images and states to resume from")
    parser.add_argument("--images", type=int, default=40000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--vision_steps", type=int, default=2400)
    parser.add_argument("--joint_steps", type=int, default=1700)
    parser.add_argument("--vision_lr", type=float, default=1.5e-3)
    parser.add_argument("--joint_lr", type=float, default=1e-3)
    parser.add_argument("--outlier_factor", type=float, default=128, help="a power of two; 1: none")
    parser.add_argument("--outlier_count", type=int, default=2, help="outlier channels of every norm")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
