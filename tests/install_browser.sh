#!/bin/sh
# Find a Chromium for the tests of the report, or install one the way this machine allows.
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq && apt-get install -y -qq chromium fonts-liberation >/dev/null && exit 0
fi
.venv/bin/playwright install chromium 2>/dev/null && exit 0
echo "no Chromium found or installed: the browser tests will be skipped"
exit 0
