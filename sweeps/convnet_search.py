"""Which of width, depth, dropout and block type matter to a residual ConvNet?

python sweeps/convnet_search.py --trials 50
"""

from optuna.distributions import CategoricalDistribution as Choice
from optuna.distributions import FloatDistribution as Float
from optuna.distributions import IntDistribution as Int

from visweep import ConvNetConfig, Recipe, Space, run


def small(image_size: int) -> Space:
    """Sized for the embedded images on two CPU cores."""
    return {
        "widths.0": Choice([8, 12, 16]),
        "widths.1": Choice([16, 24, 32]),
        "widths.2": Choice([32, 48, 64]),
        "depths.0": Int(1, 2),
        "depths.1": Int(1, 2),
        "depths.2": Int(1, 2),
        "drop": Float(0.0, 0.5),
        "block": Choice(["basic", "late_relu", "preadd_relu"]),
    }


def report(image_size: int) -> Space:
    """ResNet-sized stages; made for a GPU."""
    return {
        "widths.0": Choice([32, 48, 64]),
        "widths.1": Choice([64, 96, 128]),
        "widths.2": Choice([128, 192, 256]),
        "depths.0": Int(1, 4),
        "depths.1": Int(1, 4),
        "depths.2": Int(1, 4),
        "drop": Float(0.0, 0.5),
        "block": Choice(["basic", "late_relu", "preadd_relu"]),
    }


SEARCH = Recipe(
    name="convnet",
    baseline=ConvNetConfig(widths=(16, 32, 64), depths=(1, 1, 1)),
    spaces={"small": small, "report": report},
)

if __name__ == "__main__":
    run(SEARCH)
