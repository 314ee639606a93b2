"""Which of dropout, patch size, width, depth and heads matter to a Vision Transformer?

python sweeps/vit_search.py --trials 50
"""

from optuna.distributions import CategoricalDistribution as Choice
from optuna.distributions import FloatDistribution as Float
from optuna.distributions import IntDistribution as Int

from visweep import Recipe, Space, ViTConfig, patch_sizes, run


def small(image_size: int) -> Space:
    """Sized for the embedded images on two CPU cores."""
    return {
        "drop": Float(0.0, 0.3),
        "attn_drop": Float(0.0, 0.3),
        "patch_size": patch_sizes(image_size, [4, 8, 16]),
        "embed_dim": Choice([32, 64, 96]),
        "depth": Int(2, 6),
        "num_heads": Choice([2, 4, 8]),
    }


def report(image_size: int) -> Space:
    """Spans the values of the student report that visweep grew from; made for a GPU."""
    return {
        "drop": Float(0.0, 0.3),
        "attn_drop": Float(0.0, 0.3),
        "patch_size": patch_sizes(image_size, [4, 8, 16, 32]),
        "embed_dim": Choice([64, 96, 128, 184, 256]),
        "depth": Int(4, 24),
        "num_heads": Choice([2, 4, 8]),
    }


SEARCH = Recipe(
    name="vit",
    baseline=ViTConfig(patch_size=16, embed_dim=64, depth=4, num_heads=4),
    spaces={"small": small, "report": report},
)

if __name__ == "__main__":
    run(SEARCH)
