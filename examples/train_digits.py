"""Train the small Vision Mamba of `examples/digits` on scikit-learn's handwritten digits, on a CPU, in minutes.

    pip install "vimdeploy[export]" scikit-learn
    python examples/train_digits.py

The digits are 8 x 8 pixels; they are enlarged to 32 x 32 exactly as `vimdeploy predict` does it with the recipe
`export/vim_digits.toml`. A quarter of them, the same share of every digit, is held back and never trained on; it is
written to `held_out.npz`. The checkpoint has the layout of the official training script (hustvl/Vim, `vim/main.py`)
without the optimizer: `model`, `model_ema` (other weights), `epoch`, `args`.

On one machine two runs give the same bits; on another processor the last digits of the weights may differ.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path

import numpy as np
import sklearn
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import vimdeploy
from vimdeploy.models.vim.config import VimConfig
from vimdeploy.models.vim.model import VisionMamba

CONFIG = VimConfig(
    img_size=(32, 32),
    patch_size=(8, 8),
    stride=8,
    embed_dim=48,
    depth=4,
    num_classes=10,
    final_pool_type="mean",
)
MEAN = STD = 0.5
HELD_OUT_SHARE = 0.25
EMA_DECAY = 0.99
THREADS = 1
"""Fixed, because it decides the order of summation; a step is too small to gain from a second thread."""


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    train, held_out = load_split(args.split_seed)

    started = time.perf_counter()
    model, ema = fit(VisionMamba(CONFIG), train, args)
    seconds = time.perf_counter() - started

    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = {
        "model": model.state_dict(),
        "model_ema": ema.state_dict(),
        "epoch": args.epochs - 1,
        "args": official_arguments(args),
    }
    torch.save(checkpoint, args.out / "vim_digits.pth")
    images, labels, index = held_out
    np.savez_compressed(args.out / "held_out.npz", images=images, labels=labels, index=index)
    save_examples(args.out, images, labels)
    report = {
        "checkpoint": "vim_digits.pth",
        "held_out": {"images": len(labels), "share": HELD_OUT_SHARE, "split_seed": args.split_seed},
        "accuracy": {"model": accuracy(model, images, labels), "model_ema": accuracy(ema, images, labels)},
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": {"images": len(train[1]), "epochs": args.epochs, "seed": args.seed, "seconds": round(seconds)},
        "versions": {
            "vimdeploy": vimdeploy.__version__,
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
            "python": platform.python_version(),
        },
    }
    (args.out / "vim_digits.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["accuracy"]), f"in {seconds:.0f} s, written to {args.out}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small Vision Mamba on scikit-learn's digits.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "digits", help="folder for the results")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--split-seed", type=int, default=0, help="of the held-back split")
    return parser.parse_args()


def official_arguments(args: argparse.Namespace) -> argparse.Namespace:
    """Return the training arguments under the names of the official script."""
    return argparse.Namespace(
        model="vim_digits_patch8_32_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2",
        input_size=CONFIG.img_size[0],
        nb_classes=CONFIG.num_classes,
        data_set="DIGITS",
        batch_size=args.batch_size,
        epochs=args.epochs,
        lr=args.lr,
        weight_decay=args.weight_decay,
        seed=args.seed,
        model_ema=True,
        model_ema_decay=EMA_DECAY,
    )


Split = tuple[np.ndarray, np.ndarray, np.ndarray]
"""uint8 images (n, 8, 8), labels (n,), and their positions in scikit-learn's data set (n,)."""


def load_split(seed: int) -> tuple[Split, Split]:
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    index = np.arange(len(images), dtype=np.int16)
    train, held_out = train_test_split(index, test_size=HELD_OUT_SHARE, random_state=seed, stratify=digits.target)
    train, held_out = np.sort(train), np.sort(held_out)
    labels = digits.target.astype(np.uint8)
    return (images[train], labels[train], train), (images[held_out], labels[held_out], held_out)


def preprocess(images: np.ndarray) -> Tensor:
    """Turn uint8 images (n, h, w) into model input (n, 3, 32, 32): bicubic, scaled to [0, 1], normalised."""
    size = (CONFIG.img_size[1], CONFIG.img_size[0])
    enlarged = [np.asarray(Image.fromarray(i).convert("RGB").resize(size, Image.Resampling.BICUBIC)) for i in images]
    values = torch.from_numpy(np.stack(enlarged)).permute(0, 3, 1, 2).float() / 255
    return (values - MEAN) / STD


def augment(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Turn, scale and shift each 8 x 8 image a little."""
    size = images.shape[-1]
    centre = (size - 1) / 2
    changed = []
    for image in images:
        angle = random.uniform(-0.2, 0.2)
        zoom = random.uniform(0.9, 1.1)
        dx, dy = random.uniform(-0.8, 0.8, 2)
        c, s = math.cos(angle) * zoom, math.sin(angle) * zoom
        # PIL wants the map from an output pixel to the input pixel.
        matrix = (c, s, centre + dx - c * centre - s * centre, -s, c, centre + dy + s * centre - c * centre)
        moved = Image.fromarray(image).transform(
            (size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        )
        changed.append(np.asarray(moved))
    return np.stack(changed)


def fit(model: VisionMamba, train: Split, args: argparse.Namespace) -> tuple[VisionMamba, VisionMamba]:
    """Train and return the model and its exponential moving average."""
    images, labels, _ = train
    targets = torch.from_numpy(labels.astype(np.int64))
    initialise(model)
    ema = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY), use_buffers=True
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, args.weight_decay), lr=args.lr, betas=(0.9, 0.95))
    steps = args.epochs * (len(labels) // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.1)
    random = np.random.default_rng(args.seed)
    for epoch in range(args.epochs):
        order = random.permutation(len(labels))
        total = 0.0
        for start in range(0, len(order) - args.batch_size + 1, args.batch_size):
            batch = order[start : start + args.batch_size]
            logits = model(preprocess(augment(images[batch], random)))
            loss = F.cross_entropy(logits, targets[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            ema.update_parameters(model)
            total += loss.item()
        print(f"epoch {epoch + 1:3d}/{args.epochs}  loss {total / (len(labels) // args.batch_size):.4f}", flush=True)
    averaged = ema.module
    assert isinstance(averaged, VisionMamba)
    return model.eval(), averaged.eval()


def initialise(model: VisionMamba) -> None:
    """Shrink what every block adds to the residual stream, as the official code does (`_init_weights`)."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("out_proj.weight"):
                parameter.div_(math.sqrt(CONFIG.depth))
        nn.init.trunc_normal_(model.head.weight, std=0.02)
        nn.init.zeros_(model.head.bias)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay matrices only: not the scan's A and D, norms, biases, class token and position embeddings."""
    kept = ("A_log", "A_b_log", "pos_embed", "cls_token")
    named = list(model.named_parameters())
    decayed = [p for n, p in named if p.dim() > 1 and not n.endswith(kept)]
    others = [p for n, p in named if p.dim() <= 1 or n.endswith(kept)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


@torch.no_grad()
def accuracy(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images whose top class is right, to four digits."""
    predicted = model(preprocess(images)).argmax(-1).numpy()
    return round(float((predicted == labels).mean()), 4)


def save_examples(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write the first held-back image of each digit as an 8 x 8 PNG."""
    for digit in range(10):
        Image.fromarray(images[np.flatnonzero(labels == digit)[0]]).save(folder / f"{digit}.png")


if __name__ == "__main__":
    main()
