"""The networks of the ECA-Net paper, with any of the attentions that it compares, from timm and torchvision.

    from eca_triton.models import create, eca_resnet50, fasterrcnn_eca_resnet50_fpn, load_checkpoint

    model = eca_resnet50(k_size=(3, 5, 5, 7), num_classes=10)
    model = create("se_resnet101", features_only=True)
    model = load_checkpoint("eca_resnet50_k3557.pth.tar")
    model = fasterrcnn_eca_resnet50_fpn(num_classes=21)

Needs timm and torchvision: `pip install 'eca_triton[timm]'`.
"""

try:
    import timm as timm
    import torchvision as torchvision
except ImportError as error:
    raise ImportError(
        "eca_triton.models needs timm and torchvision: pip install 'eca_triton[timm]'"
    ) from error

from .checkpoints import load_checkpoint, load_into
from .detection import (
    detector,
    fasterrcnn_eca_resnet50_fpn,
    fasterrcnn_eca_resnet101_fpn,
    maskrcnn_eca_resnet50_fpn,
    maskrcnn_eca_resnet101_fpn,
    resnet_fpn,
    retinanet_eca_resnet50_fpn,
    retinanet_eca_resnet101_fpn,
)
from .mobilenetv2 import eca_mobilenet_v2, mobilenet_v2
from .names import create, names
from .resnet import (
    eca_resnet18,
    eca_resnet34,
    eca_resnet50,
    eca_resnet101,
    eca_resnet152,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)

__all__ = [
    "create",
    "detector",
    "eca_mobilenet_v2",
    "eca_resnet18",
    "eca_resnet34",
    "eca_resnet50",
    "eca_resnet101",
    "eca_resnet152",
    "fasterrcnn_eca_resnet50_fpn",
    "fasterrcnn_eca_resnet101_fpn",
    "load_checkpoint",
    "load_into",
    "maskrcnn_eca_resnet50_fpn",
    "maskrcnn_eca_resnet101_fpn",
    "mobilenet_v2",
    "names",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet_fpn",
    "retinanet_eca_resnet50_fpn",
    "retinanet_eca_resnet101_fpn",
]
