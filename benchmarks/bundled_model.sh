#!/usr/bin/env bash
# Rebuilds the bundled model from the BCCD dataset (https://github.com/Shenggan/BCCD_Dataset, MIT), about two hours on
# two CPU cores:  benchmarks/bundled_model.sh BCCD_FOLDER WORK_FOLDER
# Run it again after an interruption: what is finished is kept, what was begun goes on. Then it measures the adapter on
# the val split, and leaves the bundle in WORK_FOLDER/bundle.
set -euo pipefail
data=$1
work=$2
mkdir -p "$work"

if [ ! -e "$work/base/model_index.json" ]; then
    dengine train-base "$data" --split train --labels all --style "microscope photo" --turns --preset small \
        --resume --out "$work/base"
fi

# The frozen pyramids of 32 views of each image are kept: 6 GB of memory, and three fifths of each step saved.
echo '{"cache_views": 32, "cache_gb": 6.0}' > "$work/adapter-settings.json"
if [ ! -e "$work/adapter/adapter.json" ]; then
    dengine train-adapter "$data" --split train --model "$work/base" --turns --steps 4500 \
        --settings "$work/adapter-settings.json" --resume --out "$work/adapter"
fi

echo '{"guidance": 3.0}' > "$work/defaults.json"
if [ ! -e "$work/bundle/manifest.json" ]; then
    dengine export --model "$work/base" --adapter "$work/adapter" --frame 320x256 --defaults "$work/defaults.json" --int8 \
        --out "$work/bundle"
fi

for prompt in generic listing empty; do
    [ -e "$work/val-$prompt/annotations.json" ] ||
        dengine label "$data" --split val --bundle "$work/bundle" --prompt "$prompt" --out "$work/val-$prompt"
done
