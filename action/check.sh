#!/usr/bin/env bash
# Runs `isoform check` with the inputs of the action, which come as environment variables, never as text of the script.
# The step fails with the exit code of the check: 1 not the same, 2 wrong input.
set -uo pipefail

mkdir -p "$REPORTS" || exit 2
given=(--json --html "$REPORTS/report.html" --junit "$REPORTS/report.xml" --markdown "$REPORTS/report.md")
[[ -n "${AGAINST:-}" ]] && given+=(--against "$AGAINST")
[[ -n "${CONFIG:-}" ]] && given+=(--config "$CONFIG")
[[ -n "${BUDGET:-}" ]] && given+=(--budget "$BUDGET")
[[ -n "${MEMORY:-}" ]] && given+=(--memory "$MEMORY")
[[ -n "${BASELINE:-}" && -f "$BASELINE" ]] && given+=(--baseline "$BASELINE")
[[ -n "${BUNDLE:-}" ]] && given+=(-- "$BUNDLE")

isoform check "${given[@]}" >"$REPORTS/report.json"
code=$?

if [[ $code -eq 0 ]]; then same=true; else same=false; fi
{
  echo "same=$same"
  echo "reports=$REPORTS"
} >>"$GITHUB_OUTPUT"
if [[ -f "$REPORTS/report.md" ]]; then
  cat "$REPORTS/report.md" >>"$GITHUB_STEP_SUMMARY"
fi
if [[ $code -eq 1 ]]; then
  echo "::error title=isoform::a form is not the same as its source; see the step's summary"
elif [[ $code -ne 0 ]]; then
  echo "::error title=isoform::the check could not run; see the log"
fi
exit "$code"
