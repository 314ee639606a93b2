"""Does the student report's table hold? A ConvNet, a ViT, and one change at a time, over K seeds.

python sweeps/report_ablation.py --seeds 5
"""

from visweep import Ablation, ConvNetConfig, TrainConfig, ViTConfig, run

REPORT = Ablation(
    name="report-ablation",
    image_size=64,
    baselines={
        "convnet": ConvNetConfig(widths=(16, 32, 64), depths=(1, 1, 1)),
        "vit": ViTConfig(patch_size=32, embed_dim=128, depth=16, num_heads=4),
    },
    changes={
        "convnet": [
            {"block": "late_relu"},
            {"block": "preadd_relu"},
        ],
        "vit": [
            {"block": "post_norm"},
            {"block": "single_residual"},
            {"block": "parallel"},
            {"drop": 0.2, "attn_drop": 0.2},
            {"patch_size": 16},
            {"embed_dim": 184},
            {"depth": 24},
            {"num_heads": 8},
        ],
    },
    # The report wondered why training accuracy was lower than validation accuracy.
    train=TrainConfig(train_curves=True),
)

if __name__ == "__main__":
    run(REPORT)
