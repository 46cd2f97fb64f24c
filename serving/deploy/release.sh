#!/usr/bin/env bash
# Releases a bundle to a running server: package, gates of a benchmark, sign, image, promote, check. If one of them fails, the server
# answers with the generation from before, a server that is started later too, and the exit code is not 0.
#
#   NAME=reviews KEY=key.pem VERIFY_KEY=key.pub IMAGE=reviews.tar GATE='served.int8.c16.throughput >= 100' serving/deploy/release.sh
#
# Run it where `tritonize serve --repository "$REPOSITORY"` runs. The gates are measured on a second server, with the same files.
set -euo pipefail

NAME="${NAME:?the name of the model}"
BUNDLE="${BUNDLE:-artifacts/$NAME/bundle}"
REPOSITORY="${REPOSITORY:-model_repository}"
HTTP_PORT="${HTTP_PORT:-8000}"         # of the running server
STAGING_PORT="${STAGING_PORT:-18000}"  # first of the four ports of the second server
GATE="${GATE:-}"                       # gates of the benchmark, one a line; without one, its report is all that comes of it
BENCHMARK_OPTIONS="${BENCHMARK_OPTIONS:-}"
KEY="${KEY:-}"                         # private key that signs the package; with it:
VERIFY_KEY="${VERIFY_KEY:-}"           # its public key, which the bundle must be signed with too
IMAGE="${IMAGE:-}"                     # image to write; empty: none
IMAGE_OPTIONS="${IMAGE_OPTIONS:-}"
CHECK="${CHECK:-}"                     # command that must succeed after the new generation answers
TRITONIZE="${TRITONIZE:-.venv/bin/tritonize}"

staged=""
before=""
step="start"

answering() { "$TRITONIZE" status --http-port "$1" | awk -F'\t' -v name="$NAME" '$1 == name && $4 == "answers" { print $2 }'; }

current() { "$TRITONIZE" status --http-port "$HTTP_PORT" | awk -F'\t' -v name="$NAME" '$1 == name && $3 == "yes" { print $2 }'; }

require_current() {
  [ "$(current)" = "$generation" ] || { echo "$NAME was packaged again meanwhile: the current generation is not $generation" >&2; exit 1; }
}

stop_staging() {
  if [ -n "$staged" ]; then
    staged=""
    "$TRITONIZE" stop --http-port "$STAGING_PORT"
  fi
}

finish() {
  local code=$?
  trap - EXIT
  stop_staging || code=1
  if [ "$code" != 0 ] && [ -n "$before" ]; then
    echo "release failed at: $step; back to generation $before of $NAME" >&2
    "$TRITONIZE" promote "$NAME" "$before" --http-port "$HTTP_PORT" || echo "$NAME could not be brought back to $before" >&2
  fi
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

[ -z "$KEY" ] || [ -n "$VERIFY_KEY" ] || { echo "KEY needs VERIFY_KEY, its public key" >&2; exit 2; }
before="$(answering "$HTTP_PORT")"
[ -n "$before" ] || { echo "no server at port $HTTP_PORT answers for $NAME: start one with tritonize serve" >&2; exit 1; }
verified=()
[ -z "$VERIFY_KEY" ] || verified=(--verify-key "$VERIFY_KEY")

step="package"
packaged="$("$TRITONIZE" package --name "$NAME" --bundle "$BUNDLE" --repository "$REPOSITORY" --force --json "${verified[@]}")"
generation="$(sed -n 's/.*"generation": *"\([0-9]\{14\}\)".*/\1/p' <<< "$packaged")" # what is measured, signed and promoted
[ -n "$generation" ] || { echo "package has told no generation" >&2; exit 1; }

step="gates"
"$TRITONIZE" serve --detach --repository "$REPOSITORY" --http-port "$STAGING_PORT" --grpc-port "$((STAGING_PORT + 1))" \
  --metrics-port "$((STAGING_PORT + 2))" --health-port "$((STAGING_PORT + 3))"
staged=yes # from here on it is this script's server that is stopped
[ "$(answering "$STAGING_PORT")" = "$generation" ] || { echo "the second server does not serve generation $generation" >&2; exit 1; }
gates=()
while IFS= read -r gate; do
  [ -z "$gate" ] || gates+=(--gate "$gate")
done <<< "$GATE"
read -r -a options <<< "$BENCHMARK_OPTIONS"
"$TRITONIZE" benchmark "$NAME" --bundle "$BUNDLE" --repository "$REPOSITORY" --http-port "$STAGING_PORT" \
  --grpc-port "$((STAGING_PORT + 1))" --metrics-port "$((STAGING_PORT + 2))" "${gates[@]}" "${options[@]}"
stop_staging

step="sign"
require_current
[ -z "$KEY" ] || "$TRITONIZE" sign "$REPOSITORY" "$NAME" --key "$KEY"

step="image"
read -r -a options <<< "$IMAGE_OPTIONS"
[ -z "$IMAGE" ] || "$TRITONIZE" image "$NAME" --repository "$REPOSITORY" --output "$IMAGE" "${options[@]}"
require_current # else something else may have been signed or be in the image

step="promote"
"$TRITONIZE" promote "$NAME" "$generation" --http-port "$HTTP_PORT"

step="check"
[ -z "$CHECK" ] || bash -c "$CHECK"
[ "$(answering "$HTTP_PORT")" = "$generation" ] || { echo "the server does not answer with $generation" >&2; exit 1; }
echo "released: $NAME answers with $generation"
