#!/usr/bin/env bash
# Run `hamr_lib.session` on a bare machine that has Python and torch, without a network.
#
#   scripts/gpu.sh OUT [--profile gpu] [--minutes 14]
#
# wheels/ holds the packages that the machine lacks, gathered beforehand on one with a network:
#   pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels NAME==VERSION ...
# with the versions of requirements.lock.
set -euo pipefail
cd "$(dirname "$0")/.."
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if compgen -G 'wheels/*.whl' >/dev/null; then
  python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" wheels/*.whl
fi
export PYTHONPATH="$site:$PWD"
for package in torch lightning pandas anny deodr mediapipe pydantic roma smplx trimesh; do
  if ! python3 -c "import importlib.util, sys; sys.exit(not importlib.util.find_spec('$package'))"
  then
    echo "scripts/gpu.sh: Python has no $package: expected its wheel in wheels/" >&2
    exit 1
  fi
done
python3 -m hamr_lib.session "$@"
