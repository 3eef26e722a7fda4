#!/bin/sh
# Trains the built-in adapters with `loramux train` as anybody would, then measures and draws everything for the card.
# usage: training/runs/builtin_adapters.sh [OUT]      (from the checkout; OUT holds the base, as the server has it)
# Needs the extra `train`, npm and tar.
set -eu
out=${1:-server/loramux_server/builtin}
train="python -m loramux_train.builtin --work out/train"

$train icons
$train pictures
for name in ink glossy noto; do
    loramux train run "training/runs/$name.toml"
    cp "out/train/runs/$name/$name.safetensors" "$out/adapters/"
done
# gone on with after 1,200 steps, on the cosine of 1,800: the same two calls give the same weights
loramux train run training/runs/zib.toml --run.steps 1200
loramux train run training/runs/zib.toml --resume latest
cp out/train/runs/zib/zib.safetensors "$out/adapters/"
loramux train run training/runs/sepia.toml
cp out/train/runs/sepia/sepia.safetensors "$out/demo/"
$train judge --out "$out"
$train card --out "$out"
