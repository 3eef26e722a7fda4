#!/bin/sh
# Makes the built-in base: downloads the icons, trains, exports, judges.
# usage: training/runs/builtin_base.sh [WORK] [OUT]     (about 1 h 25 min on two idle cores; stop and start it at will)
# Needs the extra `train`, open-clip-torch for CLIP's merge list (pip install --no-deps open-clip-torch), npm and tar.
set -eu
work=${1:-out/train}
out=${2:-out/builtin}
train="python -m loramux_train.builtin --work $work"

$train icons
$train vae --updates 14000 --seed 0
# the schedule was shortened twice while it ran, to end in time: the same three calls give the same weights
$train joint --updates 15000 --until 7162 --seed 0
$train joint --updates 12000 --until 7981 --seed 0
$train joint --updates 11000 --seed 0
$train export --out "$out"
$train judge --out "$out" base
