#!/usr/bin/env bash
# Writes the bill of materials of an environment: CycloneDX, JSON, checked against its schema before it is written. Needs
# cyclonedx-py (pip install cyclonedx-bom), and runs where pyproject.toml is.
#
#   sbom.sh PYTHON FILE     PYTHON: the interpreter of the environment
#
# Without a time or a number of its own, so that the same environment gives the same bytes; SOURCE_DATE_EPOCH sets the time.
set -euo pipefail

cyclonedx-py environment --pyproject pyproject.toml --mc-type application --gather-license-texts \
  --output-reproducible --output-file "$2" "$1"
