# Steps that print in one line what they do and how long it took; their output goes to a log, shown when they fail.

failed_checks=()

fail() {
  echo "build.sh: $*" >&2
  exit 1
}

log_of() { echo "$logs/$(echo "$1" | tr -cs 'A-Za-z0-9' '-' | sed 's/-*$//').log"; }

# Runs a command quietly; its exit status is the command's.
quiet_step() {
  local name=$1 log started=$SECONDS status=0
  shift
  log=$(log_of "$name")
  printf '  %s ... ' "$name"
  "$@" >"$log" 2>&1 || status=$?
  if [ $status -eq 0 ]; then echo "$((SECONDS - started)) s"; else echo "failed after $((SECONDS - started)) s"; fi
  return $status
}

show_log() {
  echo "---- the end of ${1#"$root"/}" >&2
  tail -n 40 "$1" >&2
  echo "----" >&2
}

# A step that all that follows needs.
step() {
  quiet_step "$@" || { show_log "$(log_of "$1")"; fail "\"$1\" failed; its whole log is $(log_of "$1")."; }
}

# What files and folders hold, as one hash: of what git would commit, so that no build output counts.
tree_of() {
  git ls-files -z --cached --others --exclude-standard -- "$@" | xargs -0 sha256sum 2>/dev/null | sha256sum | cut -d " " -f 1
}

# A step that is skipped where its output was made from the same inputs. Usage: if_stale NAME OUTPUT INPUTS COMMAND...
if_stale() {
  local name=$1 output=$2 inputs=$3 stamp=$root/.out/built-from/$2
  shift 3
  if [ -e "$output" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$inputs" ]; then
    echo "  $name ... up to date"
    return
  fi
  step "$name" "$@"
  mkdir -p "$(dirname "$stamp")"
  echo "$inputs" >"$stamp"
}

# A step whose failure is remembered, so that one run shows every failure.
check() {
  quiet_step "$@" || { show_log "$(log_of "$1")"; failed_checks+=("$1"); }
}

# A check whose output is worth watching.
check_aloud() {
  local name=$1 started=$SECONDS
  shift
  echo "  $name:"
  "$@" || failed_checks+=("$name")
  echo "  $name ... $((SECONDS - started)) s"
}

# Prints what failed, or the sentence for success.
finish() {
  local name
  if [ ${#failed_checks[@]} -eq 0 ]; then
    echo "$1"
    return
  fi
  for name in "${failed_checks[@]}"; do echo "  failed: $name" >&2; done
  fail "${#failed_checks[@]} of the checks failed, see above."
}
