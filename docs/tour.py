"""A finished run from Python, cell by cell (`# %%` as editors know it) or at once: python docs/tour.py [RUN]."""

# %% Open a run: its stages, how long each took, and the scores.
import sys

import pgolf

path = sys.argv[1] if len(sys.argv) > 1 else "artifacts/demo"
run = pgolf.open_run(path)
for label, stage in run.stages.items():
    print(f"{label:<20} {stage.manifest.seconds:7.1f} s")
for label, bits_per_byte in run.scores.items():
    print(f"{label:<20} {bits_per_byte:.4f} bits per byte")

# %% Load the packaged model, which needs nothing but its folder, and score any text.
model = pgolf.load(f"{path}/package")
text = "The function returns a list of the names in the module."
print(f"{model.bits_per_byte(text):.2f} bits per byte: {text}")
shuffled = " ".join(sorted(text.split()))
print(f"{model.bits_per_byte(shuffled):.2f} bits per byte: {shuffled}")

# %% Which tokens surprise the model? The bits of all add up to the score above.
for token, bits in model.token_losses(text):
    print(f"{bits:6.2f} {'#' * round(2 * bits):<24} {token.decode('utf-8', 'replace')!r}")

# %% Let it write. Low temperatures repeat what is likely, high ones invent.
for temperature in (0.3, 0.8, 1.2):
    print(f"--- temperature {temperature}")
    print(model.generate("The function", tokens=40, temperature=temperature, seed=1)[0])

# %% What quantization cost: the same text under the weights before it.
full = run.load("ema-finalize")
print(f"{full.bits_per_byte(text):.4f} before quantization, {model.bits_per_byte(text):.4f} after")
