#!/usr/bin/env bash
# Installs a wheel of LoRAMux into a venv of its own, FOLDER, and writes FOLDER/sbom.cdx.json, the bill of its materials.
# Runs where constraints.txt and pyproject.toml are.
#
#   install.sh FOLDER WHEEL EXTRA [TORCH [INDEX]]     EXTRA: server, or cuda for NVIDIA cards
#                                                     TORCH: another release than the pinned one
#                                                     INDEX: the package index of its build, if not that of the rest
#
# torch comes first and alone, so that no other package chooses its build; what it depends on comes with the rest. A
# release other than the pinned one brings its own triton and CUDA: then their pins give way.
set -euo pipefail

folder="$1" wheel="$2" extra="$3"
pinned="$(sed -n 's/^torch==//p' constraints.txt)"
torch="${4:-$pinned}" index="${5:-}"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ "$torch" = "$pinned" ]; then
  cp constraints.txt "$work/pins.txt"
else
  sed -E '/^(torch|triton|(cuda|nvidia)-.*)==/d' constraints.txt > "$work/pins.txt"
  echo "torch==$torch" >> "$work/pins.txt"
fi
pip() { "$1/bin/python" -m pip "$2" --constraint "$work/pins.txt" "${@:3}"; }

python -m venv "$folder"
pip "$folder" install pip
pip "$folder" install --no-deps ${index:+--index-url "$index"} "torch==$torch"
pip "$folder" install "${wheel}[$extra,otel]"
"$folder/bin/python" -m pip check

python -m venv "$work/tools"
pip "$work/tools" install cyclonedx-bom
PATH="$work/tools/bin:$PATH" "$(dirname "$0")/sbom.sh" "$folder/bin/python" "$folder/sbom.cdx.json"
