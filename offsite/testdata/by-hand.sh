#!/bin/sh
# Brings a copy back with nothing but restic and rdiff (Debian: apt install restic rdiff).
#
#   export RESTIC_REPOSITORY=… RESTIC_PASSWORD_FILE=…
#   by-hand.sh 20261124T115419Z /srv/restored
#
# makes /srv/restored, which must not exist, with the files of that snapshot, and
# compares all of them with SHA256SUMS. Instead of a stamp, the ID of a restic
# snapshot can be given. Empty directories are there; for modes and times, see
# recipe.json in the copy.
set -eu
copy=$1 target=${2%/}
[ ! -e "$target" ] || { echo "$target exists" >&2; exit 1; }
case $copy in
*T*Z*) restic restore latest --tag "atocore,stamp=$copy" --target "$target.copy" ;;
*) restic restore "$copy" --target "$target.copy" ;;
esac
mv "$target.copy/files" "$target"
target=$(cd "$target" && pwd)
# A large file is a base, and differences that have to be applied in their order.
(cd "$target.copy/large" && find . -type f -name 'base-*' -exec sh -eu -c '
	target=$1; shift
	for base; do
		parts=${base%/*}
		mv "$base" "$target/$parts"
		for delta in "$parts"/[0-9]*.delta; do
			[ -e "$delta" ] || continue
			rdiff patch "$target/$parts" "$delta" "$target/$parts.next"
			mv "$target/$parts.next" "$target/$parts"
		done
	done' sh "$target" {} +)
rm -r "$target.copy"
cd "$target"
sha256sum --quiet -c SHA256SUMS
echo "$target is what was pushed."
