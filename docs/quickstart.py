# %% [markdown]
# # Using a trained student
#
# `python docs/quickstart.py` after `make setup`, or open this file as a notebook (with jupytext).
# It takes seconds and writes results/quickstart.png. The student comes with the project; give the
# path of your own in place of `zoo:digits-ctm`.

# %%
from pathlib import Path

import torch
from matplotlib.figure import Figure

import ctm_core
from ctm_core.data.dataset import to_float
from ctm_core.data.readers import digits
from ctm_core.diffusion import randomness

results = Path("results")
results.mkdir(exist_ok=True)
student = ctm_core.load("zoo:digits-ctm")
print({key: student.record[key] for key in ("experiment", "model", "step", "dataset")})

classes = torch.arange(10)
rows = {}

# %% [markdown]
# **Sampling.** One network evaluation, then four, without noise between the jumps (γ = 0) and with
# as much as possible (γ = 1). Each column starts from the same noise.

# %%
rows["1 jump"] = student.sample(10, nfe=1, seed=7, labels=classes)
rows["4 jumps, γ = 0"] = student.sample(10, nfe=4, gamma=0, seed=7, labels=classes)
rows["4 jumps, γ = 1"] = student.sample(10, nfe=4, gamma=1, seed=7, labels=classes)

# %% [markdown]
# **Jumps G(x, t, s)** go from any time t to any earlier time s along one trajectory. Two jumps
# should end where a single jump ends; the difference is the student's error. The noise is the same
# that `sample` drew above.

# %%
shape = (student.record["channels"], *[student.record["resolution"]] * 2)
noise = randomness.normal(7, "latents", 0, 0, 10, shape)
at_once = student.G(80 * noise, 80, 0.002, classes)
for s in (20, 5, 1):
    halfway = student.G(80 * noise, 80, s, classes)
    in_two = student.G(halfway, s, 0.002, classes)
    rows[f"80 → {s} → 0.002"] = in_two
    error = (in_two - at_once).square().mean().sqrt()
    print(f"80 → {s} → 0.002 differs from 80 → 0.002 by {error:.3f} (images span -1 … 1)")

# %% [markdown]
# **Denoising.** The student also predicts the posterior mean of the clean image, D(x, t).
# G(x, t, 0.002) is a single clean image, the end of the trajectory through x, and sharper.

# %%
real = digits.read("train", None, results, 1)
images, labels = (torch.as_tensor(values[:10]) for values in (*real.chunks, real.labels))
sigma = 1.0
noisy = to_float(images) + sigma * noise
rows["real digits"] = images
rows[f"noise σ = {sigma:g}"] = noisy
rows["denoised, D(x, σ)"] = student.denoise(noisy, sigma, labels)
rows["jump, G(x, σ, 0.002)"] = student.G(noisy, sigma, 0.002, labels)

# %%
figure = Figure(figsize=(9, 0.75 * len(rows)))
axes = figure.subplots(len(rows), 10)
for (title, pictures), line in zip(rows.items(), axes, strict=True):
    if pictures.is_floating_point():
        pictures = ((pictures.clamp(-1, 1) + 1) * 127.5).byte()
    for picture, panel in zip(pictures, line, strict=True):
        panel.imshow(picture[0].numpy(), cmap="gray", vmin=0, vmax=255)
        panel.set_axis_off()
    line[0].text(-0.3, 0.5, title, transform=line[0].transAxes, ha="right", va="center")
figure.subplots_adjust(left=0.22, right=0.99, top=0.99, bottom=0.01, wspace=0.05, hspace=0.05)
figure.savefig(results / "quickstart.png", dpi=120)
print(results / "quickstart.png")
