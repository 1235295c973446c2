"""A script for the published DeepInversion code, of which only the first import is changed. About half a minute.

Run it with: python examples/drop_in.py
"""

import random

import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.utils import save_image

from exml_fast.compat.deep_inversion import DeepInversionFeatureHook, get_image_prior_losses

torch.manual_seed(0)
model = resnet18(num_classes=10)
with torch.no_grad():
    for _ in range(5):  # replaces training: smooth images set the running statistics
        model(nn.functional.interpolate(torch.randn(32, 3, 8, 8), (64, 64), mode="bilinear"))
model.eval()

hooks = [DeepInversionFeatureHook(module) for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
targets = torch.arange(10)
inputs = torch.randn(10, 3, 64, 64, requires_grad=True)
optimizer = torch.optim.Adam([inputs], lr=0.1)
for step in range(81):
    inputs_jit = torch.roll(inputs, (random.randint(-4, 4), random.randint(-4, 4)), dims=(2, 3))
    optimizer.zero_grad()
    loss_ce = nn.functional.cross_entropy(model(inputs_jit), targets)
    _, loss_var_l2 = get_image_prior_losses(inputs_jit)
    loss_bn = torch.stack([hook.r_feature for hook in hooks]).sum()
    loss = loss_ce + 1e-4 * loss_var_l2 + 0.05 * loss_bn
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step:3d}: cross-entropy {loss_ce.item():.3f}, statistics {loss_bn.item():.2f}")
for hook in hooks:
    hook.close()
save_image(inputs.detach(), "drop_in.png", nrow=5, normalize=True)
