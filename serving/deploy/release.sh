#!/usr/bin/env bash
# Releases a bundle to a running server: package, gates of a benchmark, sign, image, promote, check. Until promote, neither the running
# server nor one that is started later serves anything else than before. If promote or the check fails, both go back to the generation
# that answered before. A generation that fails is removed, and the exit code is not 0.
#
#   NAME=reviews KEY=key.pem VERIFY_KEY=key.pub IMAGE=reviews.tar GATE='served.int8.c16.throughput >= 100' serving/deploy/release.sh
#
# Run it where `tritonize serve --repository "$REPOSITORY"` runs. A second server is measured, with a copy of the generation, which is
# also what is signed and what is in the image.
set -euo pipefail

NAME="${NAME:?the name of the model}"
BUNDLE="${BUNDLE:-artifacts/$NAME/bundle}"
REPOSITORY="${REPOSITORY:-model_repository}"
COPY_FOLDER="${COPY_FOLDER:-}"         # where the copy is, in a folder of its own; empty: beside the repository
HTTP_PORT="${HTTP_PORT:-8000}"         # of the running server
STAGING_PORT="${STAGING_PORT:-18000}"  # first of the four ports of the second server
QUALITY_GATE="${QUALITY_GATE:-}"       # gate of the quality; empty: as quality_gate says; "none": no such gate
GATE="${GATE:-}"                       # further gates of the benchmark, one a line
BENCHMARK_OPTIONS="${BENCHMARK_OPTIONS:-}"
KEY="${KEY:-}"                         # private key that signs the package; with it:
VERIFY_KEY="${VERIFY_KEY:-}"           # its public key, which the bundle must be signed with too
IMAGE="${IMAGE:-}"                     # image to write; empty: none
IMAGE_OPTIONS="${IMAGE_OPTIONS:-}"
CHECK="${CHECK:-}"                     # command that must succeed after the new generation answers
TRITONIZE="${TRITONIZE:-.venv/bin/tritonize}"

before=""     # the generation that answered at the start
packaged=""   # what package has printed
folder=""     # of the copy
staged=""     # maybe: the second server may run
promoted=""   # maybe: the running server may answer with the new generation
step="start"

answering() { "$TRITONIZE" status --http-port "$1" | awk -F'\t' -v name="$NAME" '$1 == name && $4 == "answers" { print $2 }'; }

current() { "$TRITONIZE" status --http-port "$HTTP_PORT" | awk -F'\t' -v name="$NAME" '$1 == name && $3 == "yes" { print $2 }'; }

packaged_generation() { sed -n 's/.*"generation": *"\([0-9]\{14\}\)".*/\1/p' <<< "$packaged"; }

quality_gate() { # the main metric is at most one percentage point below the original's, the perplexity at most 5 % above
  local task precision
  case "$QUALITY_GATE" in
    none) return ;;
    ?*) echo "$QUALITY_GATE"; return ;;
  esac
  IFS=$'\t' read -r task precision < <("$TRITONIZE" models --repository "$copy" |
    awk -F'\t' -v OFS='\t' -v name="$NAME" '$1 == name { print $3, $4 }')
  [ -n "$precision" ] || { echo "the copy holds no $NAME" >&2; return 1; }
  case "$task" in
    text-generation) echo "served.$precision.perplexity_increase <= 0.05" ;;
    *) echo "served.$precision.metric_drop <= 0.01" ;;
  esac
}

copy_generation() { # into a repository of its own, where it is the current one
  local entry
  folder="$(mktemp -d "${COPY_FOLDER:-$(dirname -- "$REPOSITORY")}/.$NAME.release.XXXXXX")"
  copy="$folder/model_repository"
  mkdir -p -- "$copy/$NAME"
  cp -RP -- "$REPOSITORY/$NAME/$generation" "$copy/$NAME/"
  cp -P -- "$REPOSITORY/$NAME/$generation/config.pbtxt" "$copy/$NAME/"
  if [ -d "$REPOSITORY/$NAME/warmup/$generation" ]; then
    mkdir -- "$copy/$NAME/warmup"
    cp -RP -- "$REPOSITORY/$NAME/warmup/$generation" "$copy/$NAME/warmup/"
  fi
  for entry in "$REPOSITORY/$NAME.$generation" "$REPOSITORY/$NAME.${generation}_"*; do
    [ ! -d "$entry" ] || cp -RP -- "$entry" "$copy/"
  done
}

stop_staging() { # no server but that of the copy
  [ -z "$staged" ] || "$TRITONIZE" stop --http-port "$STAGING_PORT" --only-repository "$copy" || return 1
  staged=""
}

go_back() { # the server answers as before, and the new generation is gone
  local generation
  if [ -n "$promoted" ]; then
    echo "back to generation $before of $NAME" >&2
    "$TRITONIZE" promote "$NAME" "$before" --http-port "$HTTP_PORT" || echo "$NAME could not be brought back to $before" >&2
  fi
  generation="$(packaged_generation)" # remove refuses it while it is current or in use
  [ -z "$generation" ] || "$TRITONIZE" remove "$NAME" "$generation" --repository "$REPOSITORY" >&2 ||
    echo "$NAME $generation could not be removed" >&2
}

finish() {
  local code=$?
  trap '' INT TERM HUP # another signal ends neither this nor what it calls
  trap - EXIT
  set +e # what follows a command that fails is done too
  if [ "$code" != 0 ]; then
    echo "release failed at: $step" >&2
    go_back
  fi
  if ! stop_staging; then
    code=1
  elif [ -n "$folder" ]; then
    rm -rf -- "$folder" || code=1
  fi
  exit "$code"
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

[ -z "$KEY" ] || [ -n "$VERIFY_KEY" ] || { echo "KEY needs VERIFY_KEY, its public key" >&2; exit 2; }
before="$(answering "$HTTP_PORT")"
[ -n "$before" ] || { echo "no server at port $HTTP_PORT answers for $NAME: start one with tritonize serve" >&2; exit 1; }
before_current="$(current)"
verified=()
[ -z "$VERIFY_KEY" ] || verified=(--verify-key "$VERIFY_KEY")

step="package"
packaged="$("$TRITONIZE" package --name "$NAME" --bundle "$BUNDLE" --repository "$REPOSITORY" --no-current --force --json \
  "${verified[@]}")"
generation="$(packaged_generation)" # what is measured, signed and promoted
[ -n "$generation" ] || { echo "package has told no generation" >&2; exit 1; }
copy_generation

step="gates"
staged=maybe # from here on the server of the copy is stopped, also where a signal comes before serve has ended
"$TRITONIZE" serve --detach --repository "$copy" --http-port "$STAGING_PORT" --grpc-port "$((STAGING_PORT + 1))" \
  --metrics-port "$((STAGING_PORT + 2))" --health-port "$((STAGING_PORT + 3))"
[ "$(answering "$STAGING_PORT")" = "$generation" ] || { echo "the second server does not serve generation $generation" >&2; exit 1; }
quality="$(quality_gate)"
gates=()
while IFS= read -r gate; do
  [ -z "$gate" ] || gates+=(--gate "$gate")
done <<< "$quality"$'\n'"$GATE"
read -r -a options <<< "$BENCHMARK_OPTIONS"
"$TRITONIZE" benchmark "$NAME" --bundle "$BUNDLE" --repository "$copy" --http-port "$STAGING_PORT" \
  --grpc-port "$((STAGING_PORT + 1))" --metrics-port "$((STAGING_PORT + 2))" "${gates[@]}" "${options[@]}"
stop_staging

step="sign"
if [ -n "$KEY" ]; then
  "$TRITONIZE" sign "$copy" "$NAME" --key "$KEY"
  cp -P -- "$copy/$NAME/$generation/manifest.sig" "$REPOSITORY/$NAME/$generation/"
fi

step="image"
read -r -a options <<< "$IMAGE_OPTIONS"
[ -z "$KEY" ] || options+=(--verify-key "$VERIFY_KEY") # without KEY, the bundle is signed but not the package
[ -z "$IMAGE" ] || "$TRITONIZE" image "$NAME" --repository "$copy" --output "$IMAGE" "${options[@]}"

step="promote"
[ "$(current) $(answering "$HTTP_PORT")" = "$before_current $before" ] ||
  { echo "another generation of $NAME was packaged or promoted meanwhile" >&2; exit 1; }
promoted=maybe
"$TRITONIZE" promote "$NAME" "$generation" --http-port "$HTTP_PORT"

step="check"
[ -z "$CHECK" ] || bash -c "$CHECK"
[ "$(answering "$HTTP_PORT")" = "$generation" ] || { echo "the server does not answer with $generation" >&2; exit 1; }
echo "released: $NAME answers with $generation"
