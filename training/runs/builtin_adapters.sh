#!/bin/sh
# Trains the built-in adapters on an exported base, then measures and draws everything for the model card.
# usage: training/runs/builtin_adapters.sh [WORK] [OUT]      (after builtin_base.sh with the same folders)
set -eu
work=${1:-out/train}
out=${2:-out/builtin}
train="python -m loramux_train.builtin --work $work"

$train icons
$train adapters --out "$out"
$train judge --out "$out"
$train card --out "$out"
