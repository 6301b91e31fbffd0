#!/usr/bin/env bash
# Starts fake_router and agentserve-gateway on free ports, runs run.mjs, stops them. Usage: run_conformance.sh BIN_DIR
# FAKE_ROUTER WORK_DIR. Exit 77 = skipped, with the reason.
set -euo pipefail
bin=$1 fake_router=$2 work=$3
here=$(cd "$(dirname "$0")" && pwd)
skip() { echo "[  SKIPPED ] openai_conformance: $1"; exit 77; }

command -v node >/dev/null || skip "node is not installed"
command -v npm >/dev/null || skip "npm is not installed"
[ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ] || skip "node 20 or newer is needed, this is $(node --version)"
mkdir -p "$work"
# The lock file decides whether what is installed is still right.
if ! cmp -s "$here/package-lock.json" "$work/installed-lock.json"; then
  cp "$here/package.json" "$here/package-lock.json" "$work/"
  if ! (cd "$work" && timeout 120 npm ci --no-audit --no-fund >npm.log 2>&1); then
    skip "npm ci failed (no network?): $(tail -n 1 "$work/npm.log")"
  fi
  cp "$here/package-lock.json" "$work/installed-lock.json"
fi

pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
}
trap cleanup EXIT
wait_for() {  # file, pattern -> number behind `port=`
  for _ in $(seq 200); do
    if grep -q "$2" "$1" 2>/dev/null; then
      grep "$2" "$1" | head -n 1 | sed -E 's/.*[ ^]?port=([0-9]+).*/\1/'
      return 0
    fi
    sleep 0.05
  done
  echo "no '$2' in $1:" >&2
  cat "$1" >&2
  return 1
}

rm -f "$work/fake_router.log" "$work/gateway.log"
# The fake router runs until its standard input ends; this shell alone holds the other end.
rm -f "$work/stdin"
mkfifo "$work/stdin"
exec 9<>"$work/stdin"
"$fake_router" <"$work/stdin" 9>&- >"$work/fake_router.log" 2>&1 &
pids+=($!)
router_port=$(wait_for "$work/fake_router.log" '^port=')
"$bin/agentserve-gateway" --port 0 --router "127.0.0.1:$router_port" --api-key conformance-key 9>&- >"$work/gateway.log" 2>&1 &
gateway=$!
pids+=("$gateway")
port=$(wait_for "$work/gateway.log" 'service.ready')
wait_for "$work/gateway.log" 'router.ready' >/dev/null

AGENTSERVE_URL="http://127.0.0.1:$port/v1" AGENTSERVE_API_KEY=conformance-key AGENTSERVE_AUTH=1 AGENTSERVE_FAKE=1 \
  AGENTSERVE_NODE_MODULES="$work/node_modules" node "$here/run.mjs" || { cat "$work/gateway.log"; exit 1; }

kill -TERM "$gateway"
wait "$gateway" && echo "gateway drained, exit 0"
