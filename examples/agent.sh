#!/bin/sh
# An agent in POSIX sh and curl: it runs a command when a user says so, and shows what became of it.
#   AGENT_SSE_URL=http://127.0.0.1:8000 AGENT_SSE_TOKEN=… sh agent.sh SESSION COMMAND [ARGUMENT…]
# The token has the scope events:publish and lists the session. Whatever goes wrong, the command is not run.
set -eu
[ $# -ge 2 ] || { echo "usage: agent.sh SESSION COMMAND [ARGUMENT...]" >&2; exit 64; }
command -v curl >/dev/null || { echo "agent.sh needs curl" >&2; exit 69; }
session=$1; shift
api=${AGENT_SSE_URL:?is not set}${AGENT_SSE_PREFIX:-/agent_backend/api/sse}
: "${AGENT_SSE_TOKEN:?is not set}"
call="call_$$_$(date +%s)"
request='' status='' body=''

# A text as JSON.
json() {
  printf '"%s"' "$(printf '%s' "$1" | LC_ALL=C sed 's/[\\"]/\\&/g' | LC_ALL=C awk '{ printf "%s%s", s, $0; s = "\\n" }')"
}

# METHOD PATH [BODY [HEADER]]: sets status and body. The token goes through a file descriptor, not the command line.
http() {
  reply=$(printf 'header = "Authorization: Bearer %s"\n' "$AGENT_SSE_TOKEN" | curl -sS -K - --max-time 90 \
    -X "$1" ${3:+-H "Content-Type: application/json" --data-raw "$3"} ${4:+-H "$4"} \
    -w '\n%{http_code}' "$api/$2") || return 1
  status=${reply##*
} body=${reply%
*}
}

publish() { # NAME EVENT: with a key of its own, an event that is sent again is stored once
  for _ in 1 2 3; do
    if http POST "publish/$session" "$2" "Idempotency-Key: $call-$1"; then
      case $status in 201) return 0 ;; 4??) break ;; esac # what is refused now is refused again
    fi
    sleep 1
  done
  echo "agent.sh: '$1' is not published: ${body:-no answer}" >&2
}

tell() { # STATUS
  publish "$1" "{\"type\": \"tool_status\", \"data\": {\"tool_name\": \"shell\", \"tool_call_id\": \"$call\",
    \"status\": \"$1\", \"details\": {\"parameters\": $parameters, \"risk_level\": \"high\"}}}"
}

show() { # SUCCESS RESULT ERROR, in JSON
  publish result "{\"type\": \"tool_result\", \"data\": {\"tool_name\": \"shell\", \"tool_call_id\": \"$call\",
    \"success\": $1, \"result\": $2, \"error\": $3}}"
}

withdraw() {
  [ -z "$request" ] || http DELETE "permission-request/$session/$request" || :
  tell cancelled; show false null '"interrupted"'
  exit 130
}

parameters="{\"command\": ["; comma=''
for argument in "$@"; do
  # What a user approves must be what is run: nothing that cannot be shown.
  [ "$(printf '%s' "$argument" | tr -d '\001-\011\013-\037\177')" = "$argument" ] ||
    { echo "agent.sh: an argument has control characters, or ends with a line break" >&2; exit 65; }
  parameters="$parameters$comma$(json "$argument")"; comma=', '
done
parameters="$parameters]}"

trap withdraw INT TERM
tell waiting_permission
http POST "permission-request/$session" "{\"tool_name\": \"shell\", \"tool_call_id\": \"$call\",
  \"parameters\": $parameters, \"risk_level\": \"high\", \"timeout\": 300}" || status=0
while [ "$status" = 202 ]; do
  request=$(printf '%s' "$body" | sed -n 's/.*"request_id":"\([A-Za-z0-9_-]*\)".*/\1/p')
  http GET "permission-request/$session/$request?wait=30" || status=0
done
trap - INT TERM

# The decision comes first in `data`, so nothing that the user wrote can look like it.
case $status$body in
  200'{"success":true,"data":{"approved":true,'*) ;;
  *)
    tell denied; show false null '"not approved"'
    echo "agent.sh: not approved: ${body:-no answer}" >&2
    exit 1 ;;
esac

tell executing
code=0
output=$("$@" 2>&1) || code=$?
if [ "$code" = 0 ]; then tell completed; outcome=true; else tell failed; outcome=false; fi
shown=$(printf '%.2000s' "$(printf '%s' "$output" | tr -cd '\012\040-\176')")
show "$outcome" "{\"exit_status\": $code, \"output\": $(json "$shown")}" null
printf '%s\n' "$output"
exit "$code"
