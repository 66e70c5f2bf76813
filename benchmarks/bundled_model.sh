#!/usr/bin/env bash
# Rebuilds the bundled model from one dataset that holds the training photographs of docs/bundled-model.md, about three
# and a half hours on one CPU core:  benchmarks/bundled_model.sh DATASET WORK_FOLDER
# Run it again after an interruption: what is finished is kept, what was begun goes on. The bundle is WORK_FOLDER/bundle.
set -euo pipefail
data=$1
work=$2
mkdir -p "$work"

if [ ! -e "$work/base/model_index.json" ]; then
    dengine train-base "$data" --labels all --style "microscope photo" --rotate --preset small \
        --steps-scale 0.6 --resume --out "$work/base"
fi

# The frozen pyramids of 10 views of each image are kept: 4.5 GB of memory, and three fifths of each step saved.
echo '{"cache_views": 10, "cache_gb": 4.5}' > "$work/adapter-settings.json"
if [ ! -e "$work/adapter/adapter.json" ]; then
    dengine train-adapter "$data" --model "$work/base" --rotate --steps 5000 --folds 3 --fold-steps 2000 \
        --settings "$work/adapter-settings.json" --resume --out "$work/adapter"
fi

echo '{"guidance": 3.0}' > "$work/defaults.json"
if [ ! -e "$work/bundle/manifest.json" ]; then
    rm -f "$work"/base/learned.safetensors "$work"/adapter/learned.safetensors # small pictures of what was learned from
    dengine export --model "$work/base" --adapter "$work/adapter" --frame 320x256 --defaults "$work/defaults.json" --int8 \
        --out "$work/bundle"
fi
