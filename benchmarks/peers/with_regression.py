"""Features by hand, and scikit-learn's logistic regression on them with a strength by cross-validation."""

import json
import sys
import warnings
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.models import squeezenet1_1
from torchvision.transforms import v2

given = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(given["seed"])
warnings.filterwarnings("ignore")
if given["network"] == "squeezenet1_1":
    network = squeezenet1_1()
    network.load_state_dict(torch.load(given["weights"], weights_only=True))
    backbone: nn.Module = nn.Sequential(network.features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    mean, std, mode = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), v2.InterpolationMode.BILINEAR
else:
    import timm

    backbone = timm.create_model(given["network"], checkpoint_path=given["weights"], num_classes=1000)
    backbone.reset_classifier(0)  # type: ignore[operator]
    mean, std, mode = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), v2.InterpolationMode.BICUBIC
backbone = backbone.eval().to(memory_format=torch.channels_last)
steps = [v2.PILToTensor(), v2.Resize(256, mode), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True)]
transform = v2.Compose([*steps, v2.Normalize(mean, std)])
found = {}
for split in ("train", "test"):
    photos = ImageFolder(Path(given["data"], split), transform)
    parts = []
    with torch.inference_mode():
        for images, targets in torch.utils.data.DataLoader(photos, batch_size=32):
            parts.append((backbone(images.contiguous(memory_format=torch.channels_last)), targets))
    found[split] = [torch.cat(column).numpy() for column in zip(*parts, strict=True)]
regression = LogisticRegressionCV(Cs=9, cv=min(5, len(photos.classes)), scoring="neg_log_loss", max_iter=2000)
model = make_pipeline(StandardScaler(), regression).fit(*found["train"])
features, targets = found["test"]
loss = log_loss(targets, model.predict_proba(features))
print(json.dumps({"accuracy": float((model.predict(features) == targets).mean()), "loss": float(loss)}))
