#!/bin/sh
# Draws a picture with `koala serve`: sh curl.sh PROMPT FILE.png. Needs curl 7.82 or newer, and jq.
set -eu
url=${KOALA_URL:-http://127.0.0.1:8000/v1}
answer=$(
    jq --null-input --arg prompt "$1" '{$prompt, seed: 0}' |
        curl --silent --show-error --fail-with-body --retry 5 --max-time 300 --json @- \
            --header "Authorization: Bearer ${KOALA_API_KEY:-none}" "$url/images/generations"
) || { echo "$answer" >&2; exit 1; }
printf %s "$answer" | jq --raw-output '.data[0].b64_json' | base64 --decode >"$2"
