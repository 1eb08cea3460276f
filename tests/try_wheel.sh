#!/bin/sh
# Build the source package and the wheel, and try the wheel in a new environment, in an empty folder.
# Usage: try_wheel.sh BIN, where BIN has python with build, twine and uv.
set -eu
bin=$(cd "$1" && pwd)
root=$(cd "$(dirname "$0")/.." && pwd)
out=$root/build/wheel
rm -rf "$out"
"$bin/python" -m build --outdir "$out" "$root"
"$bin/python" -m twine check --strict "$out"/*
"$bin/uv" venv --quiet "$out/venv"
"$bin/uv" pip install --quiet --python "$out/venv/bin/python" --torch-backend cpu "$out"/*.whl
mkdir "$out/empty"
cd "$out/empty"
ecanet=$out/venv/bin/ecanet
"$ecanet" --version
"$ecanet" list attention
"$ecanet" compare --recipe smoke/digits --epochs 1 --seeds 1 --attention none,eca --out study
test -f study/report/index.html
# As a user without an installation.
"$bin/uv" tool run --torch-backend cpu --from "$out"/*.whl ecanet --version
