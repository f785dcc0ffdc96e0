#!/usr/bin/env bash
# Proves that the README's two commands work on a bare Debian 12: debootstraps one, clones HEAD into it and runs them there.
# Needs root, and the Debian mirror that this machine's apt uses. The system stays in build/soak/bare after a failure.
#   tests/soak/bare.sh [COMMAND ...]    other commands than "./dev demo" and "./dev test", one argument each
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."
project=$PWD bare=$PWD/build/soak/bare shared=${PTQ_SHARED:-$PWD/../shared} mirror=http://deb.debian.org/debian
[ $# -gt 0 ] || set -- "./dev demo" "./dev test"

[ "$(id -u)" = 0 ] || { echo "skipped: needs root (it makes a chroot)"; exit 0; }
if ! command -v debootstrap >/dev/null || ! command -v git >/dev/null; then
  apt-get install -y -q --no-install-recommends debootstrap git >/dev/null || {
    apt-get update -q
    apt-get install -y -q --no-install-recommends debootstrap git
  } >/dev/null
fi
[ -z "$(git status --porcelain)" ] || echo "note: HEAD is tried, and what is not committed is not in it"

# The mirror, the proxies and the certificates that apt uses here are what it needs there.
# shellcheck disable=SC2016  # these are apt's own variables
repositories=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' | grep -E ' bookworm(-updates|-security)? ' | sort -u || :)
mirror=$(awk '$2 == "bookworm" { print $1; exit }' <<<"$repositories" | grep . || echo "$mirror")

rm -rf "$bare"
mkdir -p "$bare"
echo "==> debootstrap bookworm from $mirror"
debootstrap --variant=minbase bookworm "$bare" "$mirror" >"$bare.log" 2>&1 || { tail -n 20 "$bare.log"; exit 1; }
[ -z "$repositories" ] || awk '{ print "deb", $0 }' <<<"$repositories" >"$bare/etc/apt/sources.list"
apt-config dump | grep -E '^(Acquire::(http|https|ftp|Check|Retries)|[^ ]*::(Proxy|CaInfo))' >"$bare/etc/apt/apt.conf.d/90-as-outside" || :
cp /etc/resolv.conf /etc/hosts "$bare/etc/"
if [ -d /usr/local/share/ca-certificates ]; then cp -rT /usr/local/share/ca-certificates "$bare/usr/local/share/ca-certificates"; fi

[ ! -d "$shared" ] || mkdir -p "$bare/src/shared"
git clone -q --no-hardlinks "$project" "$bare/src/ptq-runner"

# In name spaces of its own: its mounts and whatever it leaves running end with it, and removing the folder can never reach the real /dev.
# pivot_root, not chroot alone: the Slurm lab enters name spaces again, and would find the outer system at their root.
inside() {
  mount --bind "$1" "$1"
  mount -t proc proc "$1/proc"
  mount --rbind /sys "$1/sys"
  mount --rbind /dev "$1/dev"
  mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
  if [ -d "$2" ]; then mount -o bind,ro "$2" "$1/src/shared"; fi
  cd "$1"
  mkdir -p .outside
  pivot_root . .outside
  exec chroot . /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
    ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} ${no_proxy:+no_proxy="$no_proxy"} \
    sh -c "umount -l /.outside && cd /src/ptq-runner && $3"
}
export -f inside

for command in "$@"; do
  echo "==> $command"
  start=$SECONDS
  unshare --mount --pid --fork --kill-child --propagation private bash -euc 'inside "$@"' inside "$bare" "$shared" "$command" || {
    status=$?
    echo "bare: '$command' failed with status $status in $bare"
    exit $status
  }
  echo "    $command: $((SECONDS - start)) s"
done
rm -rf --one-file-system "$bare"
echo "bare: passed"
